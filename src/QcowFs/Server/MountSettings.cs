// What `mount` was asked to do, read from the command line and judged as a whole.
using QcowFs.CommandLine;
using QcowFs.Images;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>The settings of one mount.</summary>
internal sealed record MountSettings
{
    public static readonly Option Writable = new("writable", "allow writing; otherwise no byte of any image changes") { Short = 'w' };
    public static readonly Option Overlay = new(
        "overlay", "a writable view whose changes go to FILE (qcow2), or are gone after the mount; the image stays as it is", "FILE")
    { ValueIsOptional = true };
    public static readonly Option Snapshot = new("snapshot", "the disk of an internal snapshot, by name or id; read-only", "NAME");
    public static readonly Option Journal = new(
        "journal", "write a qcow2 through a journal: one sync per fsync, and a kill loses nothing; 1M to 64M, default: 16M", "SIZE")
    {
        ValueIsOptional = true,
    };

    public static readonly Option Stream = new(
        "stream", "fill an add-cow image from its backing file in the background, RATE bytes a second; default: 64M", "RATE")
    { ValueIsOptional = true };
    public static readonly Option Growable = new("growable", "writing past the end of a disk, or cutting its file, gives the disk another size");
    public static readonly Option Passthrough = new(
        "passthrough", "let the kernel write a disk that is a plain file directly: as fast as the file, and past the end it grows");
    public static readonly Option ReflinkView = new(
        "reflink-view", "let the kernel read a read-only disk directly, through a hidden file that shares the image's blocks (XFS, Btrfs)");
    public static readonly Option Dedup = new("dedup", "store equal clusters once, as they are written; keeps an index IMAGE.dedup beside the image");
    public static readonly Option AllowOther = new("allow-other", "let other users in (needs user_allow_other in /etc/fuse.conf)");
    public static readonly Option Uid = new("uid", "owner of the files, by name or number; default: the mounting user", "USER");
    public static readonly Option Gid = new("gid", "group of the files, by name or number", "GROUP");
    public static readonly Option Mode = new("mode", "permissions of the files; default: 0600 with -w or --overlay, else 0400", "OCTAL");
    public static readonly Option CacheSize = new("cache-size", "metadata cache per image; default: 32M", "SIZE");
    public static readonly Option Cache = new("cache", "host: use the host's page cache for the image file; none: O_DIRECT", "HOW");
    public static readonly Option Threads = new("threads", "FUSE worker threads; default: as many as are kept busy", "N");
    public static readonly Option Transport = new(
        "transport", "how requests come: device, uring (io_uring), or auto: io_uring where the kernel offers it", "HOW");
    public static readonly Option DirectIo = new(
        "direct-io", "auto: the kernel caches read-only disks; on: it caches none; off: the same as auto, never with -w", "HOW");
    public static readonly Option NoPartitions = new("no-partitions", "show no files for partitions");
    public static readonly Option Log = new("log", "log file; default: qcowfs.log in the runtime directory", "FILE");
    public static readonly Option Foreground = new("foreground", "stay in the foreground; log to standard error");
    public static readonly Option NonEmpty = new("nonempty", "allow a mount point that is not empty");
    public static readonly Option List = new("", "any of these options as mount(8) gives them, and nosuid, nodev, noexec, noatime, ro", "name[=value],...") { Short = 'o' };

    public static Option[] All { get; } =
    [
        Writable, Overlay, Stream, Journal, Growable, Passthrough, ReflinkView, Dedup, .. DedupOptions.All, Snapshot, ImageOptions.Format, ImageOptions.References, AllowOther, Uid, Gid, Mode,
        CacheSize, Cache, Threads, Transport, DirectIo, NoPartitions, Log, Foreground, NonEmpty, List,
    ];

    // Half of what a disk of spinning rust reads; who has more gives more.
    private const long DefaultStreamRate = 64 << 20;

    public required string Source { get; init; }

    public required string MountPoint { get; init; }

    public required OpenOptions Open { get; init; }

    public required FileSystem.TreeSettings Tree { get; init; }

    /// <summary>Which disks the kernel may serve by itself.</summary>
    public FileSystem.PassthroughRule PassthroughRule { get; init; }

    /// <summary>Whether disks take the size that their files are given.</summary>
    public bool MayGrow { get; init; }

    /// <summary>Whether views are made of read-only disks, so that the kernel can serve them.</summary>
    public bool MakesViews { get; init; }

    /// <summary>Whether what is mounted can be written, be it the image or an overlay.</summary>
    public bool IsWritable => Open.Writable || HasOverlay;

    /// <summary>Whether changes go to an overlay.</summary>
    public bool HasOverlay { get; init; }

    /// <summary>The overlay's file; null: none, or a temporary one.</summary>
    public string? OverlayFile { get; init; }

    public bool OthersAllowed { get; init; }

    public bool MayCoverFiles { get; init; }

    public int ThreadCount { get; init; }

    public Fuse.FuseTransport TransportChoice { get; init; }

    public string? LogFile { get; init; }

    public bool StaysInForeground { get; init; }

    public bool NoExec { get; init; }

    public bool NoAccessTime { get; init; }

    /// <summary>Reads and judges a command line.</summary>
    public static MountSettings From(ParsedLine line)
    {
        bool changesImage = line.Has(Writable);
        bool writable = changesImage || line.Has(Overlay);
        if (changesImage && line.Has(Overlay))
            throw CommandFailure.Usage(Overlay.Display, "contradicts --writable", "give one of them: the image is written, or it stays as it is");
        if (line.Has(Overlay) && line.Value(Overlay) == "")
            throw CommandFailure.Usage(Overlay.Display, "names no file", "give --overlay=FILE, or --overlay for a temporary one");
        if (writable && line.MountWords.Contains("ro"))
            throw CommandFailure.Usage("-o ro", $"contradicts {(changesImage ? Writable : Overlay).Display}", "give one of them");
        if (line.Value(Overlay) is not null && line.Has(Snapshot))
            throw CommandFailure.Usage(Snapshot.Display, "contradicts --overlay=FILE", "give --overlay without a file");
        if (changesImage && line.Has(Snapshot))
            throw CommandFailure.Usage(Snapshot.Display, "contradicts --writable", "mount it read-only, or make it the active disk with qcowfs snapshot apply");
        if (!changesImage && line.Has(Stream))
            throw CommandFailure.Usage(Stream.Display, "needs --writable", "give -w too");
        if (!writable && line.Has(Growable))
            throw CommandFailure.Usage(Growable.Display, "needs --writable", "give -w too, or --overlay");
        if (!changesImage && line.Has(Dedup))
            throw CommandFailure.Usage(Dedup.Display, "needs --writable", "give -w too");
        foreach (Option option in DedupOptions.All)
        {
            if (line.Has(option) && !line.IsFromSettings(option) && !line.Has(Dedup))
                throw CommandFailure.Usage(option.Display, "needs --dedup", "give --dedup too");
        }
        string direct = line.Choice(DirectIo, "auto", "on", "off") ?? "auto";
        if (writable && direct == "off")
        {
            throw line.Wrong(DirectIo, $"off is not possible with {(changesImage ? Writable : Overlay).Display}", "leave it out: cached pages would go stale");
        }
        return new MountSettings
        {
            PassthroughRule = PassthroughFrom(line, changesImage, direct),
            MayGrow = line.Has(Growable),
            MakesViews = line.Has(ReflinkView),
            Source = line.Operands[0],
            MountPoint = line.Operands[1],
            Open = OpenFrom(line, changesImage),
            HasOverlay = line.Has(Overlay),
            OverlayFile = line.Value(Overlay),
            Tree = new FileSystem.TreeSettings
            {
                Uid = Owner(line, Uid, Libc.FindUser) ?? Libc.GetUserId(),
                Gid = Owner(line, Gid, Libc.FindGroup) ?? Libc.GetGroupId(),
                FileMode = ModeFrom(line) ?? (writable ? 0x180u : 0x100u), // 0600, 0400
                AlwaysDirect = direct == "on",
                ShowsPartitions = !line.Has(NoPartitions),
                ShowsSnapshots = !line.Has(Snapshot),
            },
            OthersAllowed = line.Has(AllowOther),
            MayCoverFiles = line.Has(NonEmpty),
            ThreadCount = (int)(line.Number(Threads, 1, 256) ?? 0),
            TransportChoice = line.Choice(Transport, "auto", "device", "uring") switch
            {
                "device" => Fuse.FuseTransport.Device,
                "uring" => Fuse.FuseTransport.IoUring,
                _ => Fuse.FuseTransport.Automatic,
            },
            LogFile = line.Value(Log),
            StaysInForeground = line.Has(Foreground),
            NoExec = line.MountWords.Contains("noexec"),
            NoAccessTime = line.MountWords.Contains("noatime"),
        };
    }

    private static FileSystem.PassthroughRule PassthroughFrom(ParsedLine line, bool changesImage, string direct)
    {
        bool usesHostCache = line.Choice(Cache, "host", "none") is null or "host";
        if (!changesImage && line.Has(Passthrough))
            throw CommandFailure.Usage(Passthrough.Display, "needs --writable", "give -w too; what is read-only needs no option for it");
        if (!usesHostCache && line.Has(Passthrough))
            throw CommandFailure.Usage(Passthrough.Display, "is not possible with --cache=none", "leave one of them out: the kernel would use the page cache");
        // Who wants no page cache in between gets every request served here.
        return direct == "on" || !usesHostCache ? FileSystem.PassthroughRule.None
            : line.Has(Passthrough) ? FileSystem.PassthroughRule.Writable
            : changesImage && line.Has(Growable) ? FileSystem.PassthroughRule.Growing : FileSystem.PassthroughRule.ReadOnly;
    }

    private static OpenOptions OpenFrom(ParsedLine line, bool writable)
    {
        OpenOptions options = new()
        {
            Format = ImageOptions.FormatOf(line),
            Writable = writable,
            Snapshot = line.Value(Snapshot),
            References = ImageOptions.ReferencesOf(line),
            DirectIo = line.Choice(Cache, "host", "none") == "none",
            Dedup = DedupOptions.From(line) is var dedup && line.Has(Dedup) ? dedup : null,
            StreamRate = line.Has(Stream) ? CheckRate(line.Size(Stream) ?? DefaultStreamRate) : null,
        };
        options = options with { Journal = JournalFrom(line, line.Has(Writable)) };
        const long least = 1 << 20;
        if (line.Size(CacheSize) is not { } size) return options;
        return size >= least ? options with { CacheSize = size } : throw line.Wrong(CacheSize, $"{size} bytes are too few", "give at least 1M");
    }

    private static JournalOptions? JournalFrom(ParsedLine line, bool writable)
    {
        if (!line.Has(Journal)) return null;
        if (!writable)
            throw CommandFailure.Usage(Journal.Display, "a journal is for writing", "add -w, or leave it out: mounts without -w read through a journal that is there");
        long size = line.Size(Journal) ?? JournalOptions.DefaultBytes;
        if (size is < JournalOptions.MinBytes or > JournalOptions.MaxBytes)
            throw CommandFailure.Usage(Journal.Display, $"{size} bytes are not a journal's size", "give 1M to 64M");
        return new JournalOptions { RingBytes = size, NewId = NewJournalId, WritesAhead = true };
    }

    private static UInt128 NewJournalId()
    {
        Span<byte> bytes = stackalloc byte[16];
        System.Security.Cryptography.RandomNumberGenerator.Fill(bytes);
        return System.Buffers.Binary.BinaryPrimitives.ReadUInt128BigEndian(bytes);
    }

    // A second of copying a cluster of the largest size is still a mount that answers.
    private static long CheckRate(long rate)
    {
        const long least = 64 << 10;
        return rate >= least
            ? rate
            : throw CommandFailure.Usage(Stream.Display, $"{rate} bytes a second are too few", "give at least 64k");
    }

    private static uint? Owner(ParsedLine line, Option option, Func<string, uint?> find)
    {
        if (line.Value(option) is not { } text) return null;
        bool isNumber = uint.TryParse(text, System.Globalization.NumberStyles.None, null, out uint number) && number < uint.MaxValue;
        return (isNumber ? number : find(text))
            ?? throw CommandFailure.Usage(option.Display, $"\"{text}\" is neither a number nor a name that the system knows", line.Command.HelpHint);
    }

    private static uint? ModeFrom(ParsedLine line)
    {
        if (line.Value(Mode) is not { } text) return null;
        uint mode = 0;
        foreach (char digit in text)
        {
            if (digit is < '0' or > '7' || mode > 0x3F) // 0777 at most
                throw line.Wrong(Mode, $"\"{text}\" is not an octal mode up to 0777", "give one such as 0640");
            mode = (mode << 3) | (uint)(digit - '0');
        }
        return mode;
    }
}
