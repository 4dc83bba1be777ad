// Where and with what a run was made.
using System.Globalization;

namespace QcowFs.Benchmarks;

internal static class Machine
{
    /// <summary>Bytes of memory that could be used now.</summary>
    public static long AvailableMemory => Memory("MemAvailable:");

    /// <summary>Whether the fuse module offers its requests over io_uring.</summary>
    public static bool HasFuseOverIoUring => File.Exists(RingSwitch) && File.ReadAllText(RingSwitch).Trim() == "Y";

    private const string RingSwitch = "/sys/module/fuse/parameters/enable_uring";

    /// <summary>One line each.</summary>
    public static IEnumerable<string> Facts()
    {
        string processor = File.ReadLines("/proc/cpuinfo").FirstOrDefault(line => line.StartsWith("model name", StringComparison.Ordinal))?.Split(':', 2)[1].Trim() ?? "unknown";
        yield return string.Create(CultureInfo.InvariantCulture, $"{DateTime.UtcNow:yyyy-MM-dd}; {Environment.ProcessorCount} processors, {processor}; {Memory("MemTotal:") >> 30} GiB of memory");
        yield return $"Linux {File.ReadAllText("/proc/sys/kernel/osrelease").Trim()}; .NET {Environment.Version}; {FirstLine("fio", "--version")}; {FirstLine("qemu-storage-daemon", "--version")}; FUSE over io_uring {(HasFuseOverIoUring ? "on" : "off")}";
    }

    private static long Memory(string name) => long.Parse(
        File.ReadLines("/proc/meminfo").First(line => line.StartsWith(name, StringComparison.Ordinal)).Split(' ', StringSplitOptions.RemoveEmptyEntries)[1],
        CultureInfo.InvariantCulture) << 10;

    private static string FirstLine(string program, string argument) => Command.Run(program, [argument]).Split('\n')[0].Trim();
}
