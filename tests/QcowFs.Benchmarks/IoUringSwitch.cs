// The fuse module's enable_uring, switched on while servers are to have their requests over io_uring.
namespace QcowFs.Benchmarks;

/// <summary>On until disposed; then as it was.</summary>
internal sealed class IoUringSwitch : IDisposable
{
    private const string Parameter = "/sys/module/fuse/parameters/enable_uring";

    private readonly string _before;

    public IoUringSwitch()
    {
        if (!File.Exists(Parameter)) throw new IOException("--io-uring: the kernel has no FUSE over io_uring (Linux 6.14)");
        _before = File.ReadAllText(Parameter);
        File.WriteAllText(Parameter, "Y");
    }

    public void Dispose() => File.WriteAllText(Parameter, _before);
}
