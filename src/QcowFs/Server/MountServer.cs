// The process behind a mount: opens the image, mounts, serves, and ends so that everything is on stable storage.
//
// M1. The image is opened, and with it locked, before the mount appears, and closed only after the last request was answered.
// M2. However the mount ends (umount, fusermount3, our own command, SIGTERM, an aborted connection), the same close follows.
// M3. Nothing here names a path below the mount point once the mount exists: that would wait for ourselves.
using System.Runtime.InteropServices;
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.Commands;
using QcowFs.FileSystem;
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Server;

/// <summary>Serves one mount from start to end.</summary>
internal sealed class MountServer : IDisposable
{
    // Between attempts of one `qcowfs umount`, whose caller sees nobody that holds the mount.
    private static readonly TimeSpan RetryInterval = TimeSpan.FromMilliseconds(100);

    private readonly MountSettings _settings;
    private readonly MountPoint _mountPoint;
    private readonly string _source; // absolute
    private readonly ServerLog _log;
    private readonly ImageDirectory? _directory;
    private readonly DiskFileSystem _fileSystem;
    private readonly Passthrough _passthrough;
    private readonly HostDirectory? _beside; // the image's, opened before a mount could cover it
    private readonly string? _overlayPath; // absolute; null: none, or a temporary one
    private readonly ManualResetEventSlim _ended = new(false);
    private FuseMount? _mount;
    private Receipt? _receipt; // set before _ended
    private int _terminations;
    private volatile bool _frozen;
    private volatile FuseSession? _session;

    private MountServer(MountSettings settings)
    {
        _settings = settings;
        _mountPoint = MountPoint.Check(settings.MountPoint, settings.MayCoverFiles);
        string? log = settings.LogFile is { } given
            ? Path.GetFullPath(given)
            : settings.StaysInForeground ? null : RuntimeDirectory.Create() + "/qcowfs.log";
        _log = new ServerLog(log, _mountPoint.Path, TimeProvider.System);
        _source = Path.GetFullPath(settings.Source);
        _overlayPath = settings.OverlayFile is { } overlay ? Path.GetFullPath(overlay) : null;
        OpenOptions open = settings.Open with { Log = _log.Write };
        _passthrough = new Passthrough(settings.PassthroughRule, _log.Write) { Views = settings.MakesViews ? new ReflinkLimits() : null };
        TreeSettings tree = settings.Tree with { Passthrough = _passthrough };
        if (!IsDirectory(settings.Source))
        {
            if (settings.MakesViews) _beside = OpenBeside(settings.Source);
            _fileSystem = ForImage(open, tree);
            return;
        }
        if (_mountPoint.IsFile)
            throw new CommandFailure(settings.MountPoint, "is a regular file, which can show one image only", "give a directory");
        if (settings.HasOverlay)
            throw CommandFailure.Usage(MountSettings.Overlay.Display, $"{settings.Source} is a directory, and an overlay lies over one image", "give that image");
        _directory = new ImageDirectory(_source, new ImageDirectoryOptions
        {
            Open = open with
            {
                Dedup = open.Dedup is null ? null : open.Dedup with { IsOptional = true },
                Journal = open.Journal is null ? null : open.Journal with { IsOptional = true },
            },
            Growable = settings.MayGrow,
            ShowsPartitions = settings.Tree.ShowsPartitions,
            Log = _log.Write,
            Describe = ErrorLine.For,
        });
        _fileSystem = DiskFileSystem.ForDirectory(_directory, tree, TimeProvider.System, _log.Write);
    }

    // Blocks are shared only within a file system, so it is the directory that the file itself lies in.
    private static HostDirectory OpenBeside(string image) =>
        new(Path.GetDirectoryName(Libc.Canonical(image, out string real) == Errno.None ? real : Path.GetFullPath(image)) ?? "/", LinkPolicy.None);

    private static bool IsDirectory(string path) =>
        Libc.Status(path, 0, out StatxData facts) == Errno.None && (facts.Mode & Libc.S_IFMT) == Libc.S_IFDIR;

    private DiskFileSystem ForImage(OpenOptions open, TreeSettings tree)
    {
        if (open.StreamRate is not null && ImageOptions.Opener.ReadInfo(_settings.Source, open.Format).Format is var format and not "add-cow")
        {
            throw CommandFailure.Usage(MountSettings.Stream.Display,
                $"{_settings.Source} is {format}, and only add-cow images are filled from their backing file", "leave it out");
        }
        MountedImage image = new(
            new MountedImageOptions
            {
                Name = Path.GetFileName(_settings.Source),
                Writable = _settings.IsWritable,
                Growable = _settings.MayGrow,
                StaysOpen = true,
                ShowsPartitions = _settings.Tree.ShowsPartitions,
                Log = _log.Write,
                Describe = ErrorLine.For,
            },
            () => _settings.HasOverlay
                ? new OverlayHold(HostFileSystem.Instance, _settings.Source, _settings.OverlayFile, open)
                : new ImageHold(HostFileSystem.Instance, _settings.Source, open, _beside));
        return _mountPoint.IsFile
            ? DiskFileSystem.ForFile(image, tree)
            : DiskFileSystem.ForImage(image, tree, TimeProvider.System, _log.Write);
    }

    /// <summary>Serves the mount; returns when it has ended and everything is closed. <paramref name="ready"/> is called when the mount
    /// answers, and says whether anybody still wants it.</summary>
    public static int Run(MountSettings settings, Func<bool> ready)
    {
        using MountServer server = new(settings);
        return server.Serve(ready);
    }

    public void Dispose()
    {
        _mount?.Dispose();
        if (_receipt is null) _fileSystem.Close(); // a start that failed: nobody asks for the receipt
        _directory?.Dispose();
        _beside?.Dispose();
        _log.Dispose();
        _ended.Dispose();
    }

    private int Serve(Func<bool> ready)
    {
        if (IsResident) ResidentMemory.Prepare(_settings.Open.CacheSize);
        // Before the mount exists, so that at no moment a signal ends the process instead of the mount.
        using PosixSignalRegistration terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Terminate);
        using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Terminate);
        using PosixSignalRegistration hangUp = PosixSignalRegistration.Create(PosixSignal.SIGHUP, Terminate);
        _mount = FuseMount.Create(new FuseMountOptions
        {
            MountPoint = _mountPoint.Path,
            Source = _source,
            AllowOther = _settings.OthersAllowed,
            ReadOnly = !_settings.IsWritable,
            NoExec = _settings.NoExec,
            NoAccessTime = _settings.NoAccessTime,
        });
        FuseSessionOptions defaults = new();
        using FuseSession session = new(_fileSystem, _mount.TakeDevice(), defaults with
        {
            MaxPayload = IsResident ? ResidentMemory.MaxPayload : defaults.MaxPayload,
            Threads = _settings.ThreadCount == 0 && IsResident ? ResidentMemory.Threads : _settings.ThreadCount,
            ResidentMemory = IsResident,
            Transport = _settings.TransportChoice,
            TransportRefused = reason => _log.Write($"io_uring is not used: {reason}"),
            MapException = ErrorMap.ToErrno,
            Served = DiskFileSystem.Served,
            Report = fault => _log.Write($"{fault.Opcode}: {fault.Message}{(fault.Exception is { } e ? $": {e.Message}" : "")}"),
        });
        _session = session;
        try
        {
            _fileSystem.NameLeft = name => session.InvalidateEntry(IFuseFileSystem.RootNode, name.Span);
            _fileSystem.NodeChanged = node => session.InvalidateInode(node, -1, 0);
            session.Start();
            return ServeUntilEnd(session, ready);
        }
        catch (Exception fault)
        {
            _log.Write(ErrorLine.For(fault));
            Detach();
            throw;
        }
    }

    /// <summary>O_DIRECT is what places with tight memory ask for.</summary>
    private bool IsResident => _settings.Open.DirectIo;

    private int ServeUntilEnd(FuseSession session, Func<bool> ready)
    {
        // Relative paths have been resolved; a working directory would keep its file system busy.
        if (!_settings.StaysInForeground) Environment.CurrentDirectory = "/";
        MountEntry? own = MountTable.FindTop(_mountPoint.Path) is { IsOurs: true } top ? top : null;
        if (own is not null && !IsResident) ReadAhead.Raise(own);
        if (own is not null) _passthrough.FindMapper = inode => Holders.FindMapper(own.Device, inode);
        using ControlServer? control = own is not null
            ? new ControlServer($"{RuntimeDirectory.Create()}/{RuntimeDirectory.SocketName(own.Device)}", Answer)
            : null; // unmounted already
        _log.Write($"mounted {_source}{(_settings.HasOverlay ? $", changes go to {_overlayPath ?? "a temporary overlay"}" : _settings.IsWritable ? ", writable" : "")}{(session.Transport == FuseTransport.IoUring ? ", over io_uring" : "")}");
        if (_settings.StaysInForeground) ServiceNotice.Ready($"{_source} on {_mountPoint.Path}");
        using Watchdog watchdog = new(session.CopyRequestsInFlight, _log.Write, TimeProvider.System);
        if (!ready() || Volatile.Read(ref _terminations) > 0) Detach();
        FuseSessionEnd end = session.WaitForEnd();
        if (end != FuseSessionEnd.Unmounted)
        {
            _log.Write($"the connection ended: {end}");
            Detach(); // a dead mount would stay in the tree
        }
        Receipt receipt = new(_mountPoint.Path, [.. _fileSystem.Close(Check).Select(WithOverlay)]); // M2
        foreach (string line in receipt.Lines())
        {
            _log.Write(line);
            if (_settings.StaysInForeground) Console.Out.WriteLine(line);
        }
        _receipt = receipt;
        _ended.Set();
        return receipt.IsDurable ? ExitCode.Done : ExitCode.Failed;
    }

    private ImageReceipt WithOverlay(ImageReceipt receipt) =>
        _settings.HasOverlay ? receipt with { Overlay = _overlayPath ?? ImageReceipt.TemporaryOverlay } : receipt;

    /// <summary>What a check of an image, or of the overlay in its place, finds, for its account, unless it would take long.</summary>
    private string Check(IImageHold hold)
    {
        const long mostClusters = 4 << 20; // 256 GiB of the usual 64 KiB: a second or two
        if (_settings.HasOverlay && _overlayPath is null) return "not run"; // it is gone
        ImageFileFacts facts = hold is OverlayHold overlay ? overlay.ReadOverlayFacts() : hold.ReadFacts();
        bool isWorthIt = facts.ClusterSize is { } cluster && facts.ActualSize / cluster <= mostClusters;
        return isWorthIt ? CheckCommand.Summary(hold.Check()) : "not run";
    }

    /// <summary>SIGTERM: everything so far becomes durable, the mount leaves the tree, and what is open is served to its last close.
    /// The second one is a kill.</summary>
    private void Terminate(PosixSignalContext context)
    {
        context.Cancel = true;
        if (Interlocked.Increment(ref _terminations) > 1) _ = Libc.Kill(Environment.ProcessId, Libc.SIGKILL);
        if (_settings.StaysInForeground) ServiceNotice.Stopping("committing; files that are open are served until they are closed");
        _log.Write($"{context.Signal}: committing and detaching; files that are open are served until they are closed");
        try
        {
            Thaw();
            _fileSystem.SyncAll();
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException or ImageInUseException)
        {
            _log.Write(fault.Message); // the close will meet it again, and the exit code tells
        }
        Detach();
    }

    private void Detach()
    {
        try
        {
            _mount?.Unmount(lazy: true);
        }
        catch (FuseMountException fault)
        {
            if (fault.Failure != FuseMountFailure.NotMounted) _log.Write($"{fault.Message}; {fault.Advice}");
        }
    }

    private void Freeze()
    {
        _session?.ExpectWaits(true);
        try
        {
            _fileSystem.Freeze();
        }
        catch
        {
            _session?.ExpectWaits(false);
            throw;
        }
        _frozen = true;
    }

    private void Thaw()
    {
        _frozen = false;
        _fileSystem.Thaw();
        _session?.ExpectWaits(false);
    }

    /// <summary>Answers a request of the control socket; on a thread of its own.</summary>
    private void Answer(JsonElement request, Utf8JsonWriter json)
    {
        json.WriteStartObject();
        switch (request.TryGetProperty("command", out JsonElement command) ? command.GetString() : null)
        {
            case "status":
                WriteStatus(json);
                break;
            case "umount":
                if (request.GetProperty("again").GetBoolean()) _ended.Wait(RetryInterval);
                Unmount(request.GetProperty("lazy").GetBoolean(), json);
                break;
            case "sync":
                Attempt(request, json, () => Sync(request.GetProperty("state").GetString()));
                break;
            case "snapshot":
                WithImage(request, json, image => image.EditSnapshot(ActionOf(request), request.GetProperty("name").GetString()!));
                break;
            case "resize":
                WithImage(request, json, image => json.WriteNumber("size", image.Resize(
                    new SizeChange(request.GetProperty("bytes").GetInt64(), request.GetProperty("sign").GetInt32()),
                    request.GetProperty("shrink").GetBoolean())));
                break;
            case "check":
                WithImage(request, json, image =>
                {
                    CheckReport report = image.Check();
                    json.WritePropertyName("report");
                    CheckReports.Write(json, request.GetProperty("path").GetString()!, report);
                });
                break;
            default:
                json.WriteString("failure", "the server does not know this request; use the program that mounted");
                break;
        }
        json.WriteEndObject();
    }

    private void Sync(string? state)
    {
        switch (state)
        {
            case "freeze":
                Freeze();
                break;
            case "thaw":
                Thaw();
                break;
            default:
                _fileSystem.SyncAll();
                break;
        }
    }

    private static SnapshotAction ActionOf(JsonElement request) => request.GetProperty("action").GetString() switch
    {
        "create" => SnapshotAction.Create,
        "apply" => SnapshotAction.Apply,
        _ => SnapshotAction.Delete,
    };

    /// <summary>Works on the image that a request means: that of a file, or without one the only one.</summary>
    private void WithImage(JsonElement request, Utf8JsonWriter json, Action<MountedImage> work)
    {
        MountedImage? image = FindImage(request);
        if (image is null)
        {
            json.WriteBoolean("no-such-image", true);
            return;
        }
        Attempt(request, json, () => work(image));
        _fileSystem.Refresh();
    }

    private MountedImage? FindImage(JsonElement request)
    {
        if (!request.TryGetProperty("inode", out JsonElement inode)) return _directory is null ? _fileSystem.Images[0] : null;
        foreach (MountedImage image in _fileSystem.Images)
        {
            if (image.IsOpen && image.FileNow is { } file && file.Inode == inode.GetUInt64() && file.Device == request.GetProperty("device").GetUInt64())
                return image;
        }
        return null;
    }

    /// <summary>Does what was asked for; a fault is answered in one line.</summary>
    private void Attempt(JsonElement request, Utf8JsonWriter json, Action work)
    {
        string line;
        try
        {
            work();
            return;
        }
        catch (ImageBusyException busy)
        {
            line = $"{request.GetProperty("path").GetString()}: {busy.Problem}; {busy.Advice}";
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException or ImageInUseException)
        {
            line = ErrorLine.For(fault);
        }
        _log.Write(line);
        json.WriteString("failure", line);
    }

    private void WriteStatus(Utf8JsonWriter json)
    {
        if (_directory is not null) _fileSystem.Refresh();
        json.WriteNumber("pid", Environment.ProcessId);
        json.WriteBoolean("writable", _settings.IsWritable);
        json.WriteBoolean("directory", _directory is not null);
        json.WriteBoolean("frozen", _frozen);
        json.WriteStartArray("images");
        foreach (MountedImage image in _fileSystem.Images)
        {
            json.WriteStartObject();
            json.WriteString("name", HostText.Show(image.Name));
            json.WriteString("format", image.Format);
            json.WriteNumber("virtual-size", image.Length);
            json.WriteBoolean("open", image.IsOpen);
            json.WriteNumber("opens", image.Opens);
            json.WriteString("failure", image.Failure);
            json.WriteString("error", image.Error);
            json.WriteEndObject();
        }
        json.WriteEndArray();
    }

    private void Unmount(bool lazy, Utf8JsonWriter json)
    {
        try
        {
            if (lazy && _frozen) Thaw(); // who waits to write is waited for
            _mount!.Unmount(lazy);
        }
        catch (FuseMountException fault) when (fault.Failure == FuseMountFailure.Busy)
        {
            json.WriteBoolean("busy", true);
            return;
        }
        catch (FuseMountException fault) when (fault.Failure != FuseMountFailure.NotMounted) // else another way was quicker: wait for it
        {
            json.WriteString("error", fault.Message);
            json.WriteString("advice", fault.Advice);
            return;
        }
        _ended.Wait();
        json.WritePropertyName("receipt");
        _receipt!.Write(json);
    }
}
