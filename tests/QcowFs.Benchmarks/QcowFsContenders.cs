// QcowFs as a contender: over qcow2, over a plain raw file, and over add-cow before and after its image file holds all of the disk.
using System.Globalization;

namespace QcowFs.Benchmarks;

/// <summary>QcowFs, writable.</summary>
internal abstract record QcowFsServer(string Name, string Program, string? MountOptions, string Format, string Transport = "device") : Contender(Name)
{
    public override string Extension => Format;

    public override bool CanBypassHostCache => true;

    public override bool SyncsCanBeCounted => true;

    public override bool TakesRowsOfQcow2 => Format == "qcow2";

    /// <summary>What a mount that is written takes besides.</summary>
    public virtual string? OptionToWrite => null;

    public override ServedDisk Serve(string file, string mountPoint, Workload? only) => new Disk(this, file, mountPoint, only);

    /// <summary>Bytes of memory that the server of a mount has now.</summary>
    public static long ResidentMemory(string mountPoint) => FindServer(mountPoint) is { } server ? ServedDisk.MemoryOf(server, "VmRSS:") ?? 0 : 0;

    // The server's command line holds the mount point as given.
    private static int? FindServer(string mountPoint) => Directory.EnumerateDirectories("/proc")
        .Select(path => int.TryParse(System.IO.Path.GetFileName(path), NumberStyles.None, CultureInfo.InvariantCulture, out int id) ? id : 0)
        .Where(id => id > 0 && File.Exists($"/proc/{id}/cmdline") && File.ReadAllText($"/proc/{id}/cmdline").Split('\0').Contains(mountPoint))
        .Select(id => (int?)id)
        .FirstOrDefault();

    private sealed class Disk : ServedDisk
    {
        private readonly string _program;

        public Disk(QcowFsServer contender, string file, string mountPoint, Workload? only)
            : base(mountPoint)
        {
            _program = contender.Program;
            bool writes = only?.IsReadOnly != true;
            string?[] lists = [$"transport={contender.Transport}", contender.MountOptions, writes ? contender.OptionToWrite : null, only?.MountOptions];
            string[] options = [.. lists.OfType<string>().SelectMany(list => (string[])["-o", list])];
            _ = Command.Run(_program, ["mount", .. writes ? (string[])["-w"] : [], "-f", contender.Format, .. options, file, mountPoint]);
            Server = FindServer(mountPoint);
        }

        public override int? Server { get; }

        public override void Dispose() => Command.Run(_program, ["umount", Path]);
    }
}

/// <summary>QcowFs over qcow2.</summary>
internal sealed record QcowFsContender(string Program, string? MountOptions, string Name = "qcowfs", string Transport = "device")
    : QcowFsServer(Name, Program, MountOptions, "qcow2", Transport)
{
    public override void Make(string? content, string file, CancellationToken cancellation) => MakeImage("qcow2", content, file, cancellation);
}

/// <summary>QcowFs over VHDX.</summary>
internal sealed record QcowFsOverVhdx(string Program, string? MountOptions) : QcowFsServer("vhdx", Program, MountOptions, "vhdx")
{
    public override void Make(string? content, string file, CancellationToken cancellation) => MakeImage("vhdx", content, file, cancellation);
}

/// <summary>QcowFs over a plain file: what add-cow is to come close to.</summary>
internal sealed record QcowFsOverRaw(string Program, string? MountOptions) : QcowFsServer("raw", Program, MountOptions, "raw");

/// <summary>QcowFs over a plain file that the kernel serves itself.</summary>
internal sealed record QcowFsPassthrough(string Program) : QcowFsServer("raw-pass", Program, null, "raw")
{
    public override string OptionToWrite => "passthrough";

    /// <summary>Passthrough is for the host's page cache.</summary>
    public override bool CanBypassHostCache => false;
}

/// <summary>QcowFs over add-cow. Before it is complete one cluster behind the part that is measured is missing, so that the bitmap decides
/// every read and write; complete, the disk is its image file.</summary>
internal sealed record QcowFsOverAddCow(string Program, string? MountOptions, bool IsComplete)
    : QcowFsServer(IsComplete ? "add-cow-full" : "add-cow", Program, MountOptions, "add-cow")
{
    private const int ClusterSize = 64 << 10;

    public override string Extension => Name;

    public override bool HasEmptyDisks => !IsComplete;

    public override void Make(string? content, string file, CancellationToken cancellation)
    {
        string image = file + ".image";
        string backing = file + ".base";
        File.Delete(file);
        File.Delete(image);
        long size = content is null ? Workload.EmptyDiskSize : new FileInfo(content).Length;
        if (IsComplete)
        {
            File.Copy(content!, image);
            _ = Command.Run(Program, ["create", "-f", "add-cow", "-o", $"image_file={Path.GetFileName(image)}", file, $"{size}"], cancellation);
            return;
        }

        using (FileStream below = File.Create(backing))
        {
            below.SetLength(size + ClusterSize);
        }

        _ = Command.Run(Program, ["create", "-f", "add-cow", "-b", Path.GetFileName(backing), "-F", "raw", "-o", $"image_file={Path.GetFileName(image)}", file], cancellation);
        if (content is null)
        {
            return;
        }

        string mountPoint = file + ".mnt";
        File.WriteAllText(mountPoint, "");
        using ServedDisk disk = Serve(file, mountPoint, only: null);
        _ = Command.Run("dd", [$"if={content}", $"of={disk.Path}", "bs=1M", "conv=notrunc,fsync", "status=none"], cancellation);
    }
}
