// Memory that a server has before it needs it.
//
// Who writes back to a disk of ours under memory pressure waits for the server, and a server that touches a new page then waits for the
// memory that only its own work can free: where both share a small memory cgroup, for good (version 1 of cgroups; seen in a page fault on
// a buffer that no request had filled yet). So for --cache=none, which is meant for such places, everything that serving touches is
// touched before the mount answers, and kept where the user may lock memory.
using System.Globalization;
using QcowFs.Native;

namespace QcowFs.Server;

internal static class ResidentMemory
{
    /// <summary>Threads of a server with resident memory: a fixed number, since a new one brings memory that nobody has touched. It is the
    /// depth at which the device is driven, as every transfer waits for it.</summary>
    public const int Threads = 32;

    /// <summary>Largest transfer: the buffers of all threads together are 16 MiB. The kernel splits a larger request, and its parts are
    /// under way at the same time.</summary>
    public const int MaxPayload = 256 << 10;

    /// <summary>Variables for the runtime: code is compiled once, not again when it turns out to be used much, and is written where it is
    /// run. Both would bring new pages in the middle of serving (seen to hang a server once in some ten runs).</summary>
    public static IReadOnlyList<string> Environment { get; } = ["DOTNET_TieredCompilation=0", "DOTNET_EnableWriteXorExecute=0"];

    private const long SpareHeap = 16 << 20;
    private const int HeapStep = 64 << 10;

    /// <summary>Makes memory resident: the program's code and as much heap as the metadata cache and its surroundings will use.</summary>
    public static void Prepare(long cacheSize)
    {
        _ = Libc.LockMemoryOnceTouched(); // an ordinary user may lock little; then pages that are in use stay by being in use
        PopulateCode();
        TouchHeap(cacheSize + SpareHeap);
    }

    /// <summary>Mapped files are the runtime, our code and the system's libraries: some 60 MiB, shared with every other program of the
    /// runtime.</summary>
    private static void PopulateCode()
    {
        foreach (string line in File.ReadAllLines("/proc/self/maps"))
        {
            string[] fields = line.Split(' ', 6, StringSplitOptions.RemoveEmptyEntries);
            if (fields.Length < 6 || fields[5][0] != '/' || fields[1][0] != 'r') continue;
            string[] bounds = fields[0].Split('-');
            ulong start = ulong.Parse(bounds[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            ulong end = ulong.Parse(bounds[1], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            _ = Libc.Populate(start, end - start); // what cannot be populated is read when it is needed, as ever
        }
    }

    /// <summary>The collector keeps what it has had (RetainVM), so what is touched once is there to be used again.</summary>
    private static void TouchHeap(long bytes)
    {
        List<byte[]> pages = [];
        for (long done = 0; done < bytes; done += HeapStep)
        {
            byte[] page = new byte[HeapStep];
            page.AsSpan().Fill(1);
            pages.Add(page);
        }
        GC.KeepAlive(pages);
    }
}
