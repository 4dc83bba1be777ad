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
    private readonly MountedImage _image;
    private readonly DiskFileSystem _fileSystem;
    private readonly FileStorage _hostFile; // for facts only; by descriptor, since the mount may cover the path (M3)
    private readonly OpenedOverlay? _overlay;
    private readonly string? _overlayPath; // absolute; null: none, or a temporary one
    private readonly ManualResetEventSlim _ended = new(false);
    private FuseMount? _mount;
    private Receipt? _receipt; // set before _ended
    private int _terminations;

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
        _hostFile = HostFiles.Open(settings.Source, StorageAccess.Read);
        // Read before the mount exists (M3), with ourselves as who has it open.
        ImageFileFacts facts = ImageOptions.Opener.ReadInfo(settings.Source, settings.Open.Format) with
        {
            Lock = new LockFacts($"qcowfs (process {Environment.ProcessId})", settings.Open.Writable),
        };
        OpenOptions open = settings.Open with { Log = _log.Write };
        if (open.StreamRate is not null && facts.Format != "add-cow")
        {
            throw CommandFailure.Usage(MountSettings.Stream.Display, $"{settings.Source} is {facts.Format}, and only add-cow images are filled from their backing file",
                "leave it out");
        }
        if (settings.HasOverlay) _overlay = OpenOverlay(open);
        IDiskImage disk = _overlay?.Disk ?? ImageOptions.Opener.Open(settings.Source, open);
        facts = facts with { VirtualSize = disk.Length }; // a snapshot's may be another than the image's
        _image = new MountedImage(Path.GetFileName(settings.Source), disk, facts, HostFacts);
        _fileSystem = _mountPoint.IsFile
            ? DiskFileSystem.ForFile(_image, settings.Tree)
            : DiskFileSystem.ForDirectory(_image, settings.Tree, TimeProvider.System);
    }

    private OpenedOverlay OpenOverlay(OpenOptions options)
    {
        OverlayOpener opener = new(HostFileSystem.Instance);
        return _settings.OverlayFile is { } file ? opener.Open(_settings.Source, file, options) : opener.OpenTemporary(_settings.Source, options);
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
        if (_receipt is null) _image.Close(); // a start that failed: nobody asks for the receipt
        _hostFile.Dispose();
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
        using FuseSession session = new(_fileSystem, _mount.TakeDevice(), new FuseSessionOptions
        {
            Threads = _settings.ThreadCount == 0 && IsResident ? ResidentMemory.Threads : _settings.ThreadCount,
            ResidentMemory = IsResident,
            AttributesValid = TimeSpan.Zero, // facts files change between opens, a disk's blocks with every write
            MapException = ErrorMap.ToErrno,
            Report = fault => _log.Write($"{fault.Opcode}: {fault.Message}{(fault.Exception is { } e ? $": {e.Message}" : "")}"),
        });
        try
        {
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
        using ControlServer? control = MountTable.FindTop(_mountPoint.Path) is { IsOurs: true } own
            ? new ControlServer($"{RuntimeDirectory.Create()}/{RuntimeDirectory.SocketName(own.Device)}", Answer)
            : null; // unmounted already
        _log.Write($"mounted {_source}{(_overlay is not null ? $", changes go to {_overlayPath ?? "a temporary overlay"}" : _settings.IsWritable ? ", writable" : "")}");
        if (_settings.StaysInForeground) ServiceNotice.Ready($"{_source} on {_mountPoint.Path}");
        using Watchdog watchdog = new(session.CopyRequestsInFlight, _log.Write, TimeProvider.System);
        if (!ready() || Volatile.Read(ref _terminations) > 0) Detach();
        FuseSessionEnd end = session.WaitForEnd();
        if (end != FuseSessionEnd.Unmounted)
        {
            _log.Write($"the connection ended: {end}");
            Detach(); // a dead mount would stay in the tree
        }
        Receipt receipt = new(_mountPoint.Path, [Checked(_image.Close())]); // M2
        foreach (string line in receipt.Lines())
        {
            _log.Write(line);
            if (_settings.StaysInForeground) Console.Out.WriteLine(line);
        }
        _receipt = receipt;
        _ended.Set();
        return receipt.IsDurable ? ExitCode.Done : ExitCode.Failed;
    }

    /// <summary>Adds to the account of an image that was written what a check of it, or of the overlay in its place, finds, unless that
    /// would take long.</summary>
    private ImageReceipt Checked(ImageReceipt receipt)
    {
        const long mostClusters = 4 << 20; // 256 GiB of the usual 64 KiB: a second or two
        string written = _source;
        if (_overlay is not null)
        {
            receipt = receipt with { Overlay = _overlayPath ?? ImageReceipt.TemporaryOverlay };
            if (_overlayPath is null) return receipt;
            written = _overlayPath;
        }
        if (receipt.Error is not null || receipt.Written + receipt.Discarded == 0) return receipt;
        try
        {
            ImageFileFacts facts = ImageOptions.Opener.ReadInfo(written, _overlay is null ? _image.Facts.Format : "qcow2");
            if (facts.ClusterSize is not { } cluster || facts.ActualSize / cluster > mostClusters) return receipt;
            return receipt with { Check = CheckCommand.Summary(ImageOptions.Opener.Check(written, facts.Format, _settings.Open.References)) };
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException or ImageInUseException)
        {
            _log.Write($"check after the close: {fault.Message}"); // somebody else has it already, most likely
            return receipt;
        }
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
            _image.Sync();
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException)
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

    /// <summary>Under an overlay the disk is kept in two files, and the overlay is the one that changes.</summary>
    private HostFileFacts HostFacts()
    {
        FileFacts facts = _hostFile.QueryFacts();
        long allocated = facts.AllocatedBytes;
        if (_overlay?.Facts() is { } overlay)
        {
            facts = overlay;
            allocated += overlay.AllocatedBytes;
        }
        return new HostFileFacts(
            allocated / HostFileFacts.BytesPerBlock,
            DateTimeOffset.FromUnixTimeSeconds(facts.ModifiedSeconds).AddTicks(facts.ModifiedNanoseconds / 100));
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
            default:
                json.WriteString("error", "the server does not know this request");
                break;
        }
        json.WriteEndObject();
    }

    private void WriteStatus(Utf8JsonWriter json)
    {
        json.WriteNumber("pid", Environment.ProcessId);
        json.WriteBoolean("writable", _settings.IsWritable);
        json.WriteStartArray("images");
        json.WriteStartObject();
        json.WriteString("name", _image.Name);
        json.WriteString("format", _image.Disk.Info.Format);
        json.WriteNumber("virtual-size", _image.Disk.Length);
        json.WriteNumber("opens", _image.Opens);
        json.WriteString("failure", _image.Disk.Failure);
        json.WriteEndObject();
        json.WriteEndArray();
    }

    private void Unmount(bool lazy, Utf8JsonWriter json)
    {
        try
        {
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
