// The fuse module's enable_uring, switched on while tests need it.
using Xunit;

namespace QcowFs.Testing.Host;

/// <summary>
/// Makes the kernel offer FUSE over io_uring to new mounts, and takes that back when disposed. Mounts that are there are not touched, and a
/// server that does not ask for rings sees no difference. Whoever else switches it waits meanwhile, also in other processes: the file is
/// locked, and the lock ends with the process.
/// </summary>
public sealed class IoUringSwitch : IDisposable
{
    private const string Parameter = "/sys/module/fuse/parameters/enable_uring";

    private readonly FileStream? _parameter;
    private readonly byte _before;

    /// <summary>Waits for others, and switches on. Without effect where the kernel has no such switch, or we may not use it.</summary>
    public IoUringSwitch()
        : this(on: true)
    {
    }

    private IoUringSwitch(bool on)
    {
        if (!File.Exists(Parameter) || Environment.UserName != "root") return;
        _parameter = Lock();
        if (_parameter is null) return;
        _before = (byte)_parameter.ReadByte();
        Set((byte)(on ? 'Y' : 'N'));
    }

    /// <summary>Waits for others, and switches off.</summary>
    public static IoUringSwitch Off() => new(on: false);

    /// <summary>Skips the test where the switch is without effect.</summary>
    public void Require() => Skip.If(_parameter is null, "the kernel has no FUSE over io_uring, or this is not root");

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_parameter is null) return;
        Set(_before);
        _parameter.Dispose();
    }

    /// <summary>Null where the file cannot be written, as in a container with a read-only /sys.</summary>
    private static FileStream? Lock()
    {
        const int isLocked = 11; // EWOULDBLOCK
        while (true)
        {
            try
            {
                return new FileStream(Parameter, FileMode.Open, FileAccess.ReadWrite, FileShare.None, bufferSize: 0);
            }
            catch (IOException fault) when (fault.HResult == isLocked)
            {
                Thread.Sleep(50); // somebody else's tests
            }
            catch (Exception fault) when (fault is IOException or UnauthorizedAccessException)
            {
                return null;
            }
        }
    }

    private void Set(byte value)
    {
        _parameter!.Position = 0;
        _parameter.WriteByte(value);
    }
}
