// Whether the kernel may serve disks by itself, and what it says to that.
//
// W1. Of each reason why it does not happen the log tells once; the disk is then served as any other.
using Microsoft.Win32.SafeHandles;
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.FileSystem;

/// <summary>Which disks the kernel may serve out of their host files.</summary>
public enum PassthroughRule
{
    /// <summary>None: the page cache of the host file is not to be used, or none of the mount's.</summary>
    None,
    /// <summary>Those that cannot change.</summary>
    ReadOnly,
    /// <summary>Raw disks that can be written too: the kernel makes them larger.</summary>
    Growing,
    /// <summary>All that can be written: the kernel does not mind our size there.</summary>
    Writable,
}

/// <summary>Who serves the bytes of a disk's file.</summary>
internal enum DataPath
{
    /// <summary>This process.</summary>
    Server,
    /// <summary>The kernel, out of the host file that is the disk.</summary>
    Passthrough,
    /// <summary>The kernel, out of a file that shares the image's blocks.</summary>
    ReflinkView,
}

/// <summary>Passthrough of one mount. Thread-safe.</summary>
/// <param name="rule">Which disks.</param>
/// <param name="log">Told one line for each reason why a disk is not served so.</param>
public sealed class Passthrough(PassthroughRule rule, Action<string> log)
{
    private readonly Lock _telling = new(); // guards _told
    private readonly HashSet<string> _told = [];
    private volatile IBackingFiles? _kernel;
    private volatile bool _isRefused; // for good: this process may not

    /// <summary>None at all.</summary>
    public static Passthrough None { get; } = new(PassthroughRule.None, static _ => { });

    /// <summary>What views of disks may cost that are no plain files themselves; null: none are made.</summary>
    public ReflinkLimits? Views { get; init; }

    /// <summary>Finds, in words, a process that has a file of the mount mapped, by the file's inode; set when the mount exists.</summary>
    public Func<ulong, string?>? FindMapper { get; set; }

    /// <summary>The kernel has agreed to serve.</summary>
    public void Connect(IBackingFiles? kernel)
    {
        if (rule == PassthroughRule.None) return;
        _kernel = kernel;
        if (kernel is null && (Views is not null || rule >= PassthroughRule.Growing))
            Say("passthrough: the kernel does not offer it; Linux 6.9 or newer is needed");
    }

    internal bool Permits(bool writing) => _kernel is not null && !_isRefused && rule >= (writing ? PassthroughRule.Growing : PassthroughRule.ReadOnly);

    /// <summary>Whether bytes past the end of a disk may be written that do not make it larger.</summary>
    internal bool MayTrail => rule == PassthroughRule.Writable;

    /// <summary>Makes a host file known to the kernel.</summary>
    /// <param name="name">The image, for the log.</param>
    /// <param name="file">The file.</param>
    /// <param name="id">What opens are answered with.</param>
    internal bool TryOpen(string name, SafeFileHandle file, out int id)
    {
        id = 0;
        if (_kernel is not { } kernel) return false;
        // A program that asks the disk for direct I/O gets it from us in any case; from the kernel only where the host file has it.
        if (!FileStorage.CanBeOpenedDirect(file))
        {
            Say($"passthrough: {HostText.Show(name)} is on a file system without direct I/O; it is served without passthrough");
            return false;
        }
        Errno errno = kernel.TryOpen(file, out id);
        if (errno == Errno.None) return true;
        _isRefused |= errno == Errno.EPERM;
        Say(errno switch
        {
            Errno.EPERM => "passthrough: this process has no CAP_SYS_ADMIN; disks are served without it",
            Errno.ELOOP => $"passthrough: {HostText.Show(name)} is on a stacked file system, which the kernel does not take; it is served without passthrough",
            _ => $"passthrough: {HostText.Show(name)}: {ErrnoText.Describe(errno)}; it is served without passthrough",
        });
        return false;
    }

    internal void Close(int id) => _kernel?.Close(id);

    /// <summary>Tells the log, once (W1).</summary>
    internal void Say(string sentence)
    {
        lock (_telling)
            if (!_told.Add(sentence)) return;
        log(sentence);
    }
}
