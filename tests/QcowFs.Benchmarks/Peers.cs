// The peers: other software that serves a disk image as a raw file.
using System.Diagnostics;
using System.Globalization;

namespace QcowFs.Benchmarks;

/// <summary>A disk that a process of ours serves over a regular file until it is told to end.</summary>
internal sealed class ProcessDisk : ServedDisk
{
    private readonly Process _process;
    private readonly bool _isUnmounted;

    /// <param name="process">The server; it is waited for until it has mounted.</param>
    /// <param name="mountPoint">Where it mounts.</param>
    /// <param name="file">What fio opens, the mount point or a file below.</param>
    /// <param name="isUnmounted">It ends by being unmounted; else by SIGTERM.</param>
    public ProcessDisk(Process process, string mountPoint, string file, bool isUnmounted)
        : base(file)
    {
        (_process, MountPoint, _isUnmounted) = (process, mountPoint, isUnmounted);
        AwaitMount(mountPoint, process);
    }

    private string MountPoint { get; }

    public override int? Server => _process.Id;

    public override void Dispose()
    {
        // Ctrl-C has reached it already.
        if (_isUnmounted)
        {
            _ = Command.Run("umount", [MountPoint]);
        }
        else if (!_process.HasExited)
        {
            _ = Command.Run("kill", [_process.Id.ToString(CultureInfo.InvariantCulture)]);
        }

        Command.End(_process);
    }
}

/// <summary>QEMU's FUSE export of an image, with its defaults; or on so many I/O threads, which QEMU can since version 10.2.</summary>
internal sealed record QemuExport(string Name, string Format, string Program = "qemu-storage-daemon", int Threads = 0) : Contender(Name)
{
    public override string Extension => Format;

    public override bool CanBypassHostCache => true;

    public override bool SyncsCanBeCounted => true;

    public override void Make(string? content, string file, CancellationToken cancellation) => MakeImage(Format, content, file, cancellation);

    public override ServedDisk Serve(string file, string mountPoint, Workload? only)
    {
        string cache = only?.BypassesHostCache == true ? ",cache.direct=on" : "";
        List<int> threads = [.. Enumerable.Range(0, Threads)];
        string onThreads = string.Concat(threads.Select(thread => $",iothread.{thread}=thread{thread}"));
        Process process = Command.Start(
            Program,
            [
                .. threads.SelectMany(thread => (string[])["--object", $"iothread,id=thread{thread}"]),
                "--blockdev", $"driver=file,node-name=file,filename={file}{cache}",
                "--blockdev", $"driver={Format},node-name=disk,file=file",
                "--export", $"type=fuse,id=export,node-name=disk,mountpoint={mountPoint},writable={(only?.IsReadOnly == true ? "off" : "on")},growable=off{onThreads}",
            ]);
        return new ProcessDisk(process, mountPoint, mountPoint, isUnmounted: false);
    }
}

/// <summary>libqcow's qcowmount: reads only, and shows the disk as a file in a directory.</summary>
internal sealed record QcowMount() : Contender("qcowmount")
{
    private const string FileName = "qcow1";

    public override string Extension => "qcow2";

    public override bool IsReadOnly => true;

    public override void Make(string? content, string file, CancellationToken cancellation) => MakeImage("qcow2", content, file, cancellation);

    public override ServedDisk Serve(string file, string mountPoint, Workload? only)
    {
        File.Delete(mountPoint);
        _ = Directory.CreateDirectory(mountPoint);

        // Told to be verbose it stays in the foreground; what it says goes nowhere.
        Process process = Command.StartSilent("qcowmount", ["-v", file, mountPoint]);
        return new ProcessDisk(process, mountPoint, System.IO.Path.Combine(mountPoint, FileName), isUnmounted: true);
    }
}

/// <summary>libnbd's nbdfuse over qemu-nbd: several connections to one server, as many as nbdfuse asks for.</summary>
internal sealed record NbdFuse() : Contender("nbdfuse")
{
    public override string Extension => "qcow2";

    public override void Make(string? content, string file, CancellationToken cancellation) => MakeImage("qcow2", content, file, cancellation);

    public override ServedDisk Serve(string file, string mountPoint, Workload? only) =>
        new ProcessDisk(Command.Start("nbdfuse", [mountPoint, "[", "qemu-nbd", "--shared=8", "--format=qcow2", file, "]"]), mountPoint, mountPoint, isUnmounted: true);
}
