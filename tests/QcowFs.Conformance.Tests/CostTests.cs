// What a request costs, in counts that no other load on the machine can change: system calls, bytes moved, device syncs. Speed itself is
// measured by `make bench`; here it cannot get lost unnoticed.
using System.Globalization;
using System.Text.RegularExpressions;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed partial class CostTests
{
    private const int Requests = 400;
    private const int Syncs = 20;

    // A debug build of the program asks for half of every transfer first, so that tests walk through the loop around it.
    private static readonly int Parts = Environment.GetEnvironmentVariable("QCOWFS_PROGRAM") is { Length: > 0 } ? 1 : 2;

    // Opening, asking for attributes and closing, and what the server's own threads do in the meantime.
    private const int Surroundings = 200;
    private const int FewCalls = 20;
    private const int FewBytes = 256 << 10;

    /// <summary>A READ or WRITE where the image has a block: taken, one transfer of its bytes, answered.</summary>
    [SkippableTheory]
    [InlineData("qcow2")]
    [InlineData("vhdx")]
    [InlineData("add-cow")]
    public void A_request_costs_three_system_calls_and_moves_its_bytes_once(string format)
    {
        using Sandbox box = new();
        string raw = MountFilled(box, format, out _);
        Calls reads = Traced(box, $"dd if={raw} of=/dev/null bs=4k count={Requests} iflag=direct status=none");
        Calls large = Traced(box, $"dd if={raw} of=/dev/null bs=1M count=8 iflag=direct status=none");
        Calls writes = Traced(box, $"dd if=data of={raw} bs=4k count={Requests} oflag=direct conv=notrunc status=none");
        box.QcowFs("umount", "m").Expect();

        AssertTransfers(reads, "pread64", Requests, Requests * 4096);
        AssertTransfers(large, "pread64", 8, 8 << 20);
        AssertTransfers(writes, "pwrite64", Requests, Requests * 4096);
        Assert.Equal(0, reads.Of("pwrite64") + large.Of("pwrite64") + reads.Syncs + large.Syncs);
        Assert.InRange(writes.BytesOf("pread64"), 0, FewBytes);
        Assert.InRange(writes.Syncs, 0, 2); // the last close
        foreach (Calls calls in new[] { reads, writes })
            Assert.InRange(calls.Total, (2 + Parts) * Requests, ((2 + Parts) * Requests) + Surroundings);
    }

    /// <summary>What cannot change is not asked for again: neither attributes with each read, nor bytes that the kernel has.</summary>
    [SkippableTheory]
    [InlineData("images/disk.qcow2")]
    [InlineData("images")]
    public void A_disk_that_is_only_read_is_asked_for_each_byte_once(string what)
    {
        using Sandbox box = new();
        _ = MountFilled(box, "qcow2", out _);
        box.QcowFs("umount", "m").Expect();
        box.Shell($"mkdir images tree; mv disk.qcow2 images; $QCOWFS mount --transport=device {what} tree").Expect();
        const string raw = "tree/disk.qcow2.raw";
        Calls direct = Traced(box, $"dd if={raw} of=/dev/null bs=4k count={Requests} iflag=direct status=none");
        Calls cached = Traced(box, $"exec 3<{raw}; for i in 1 2 3; do dd if={raw} of=/dev/null bs=4k count={Requests} status=none; done");
        box.QcowFs("umount", "tree").Expect();

        // A read(2) of the server takes a request.
        Assert.InRange(direct.Of("read"), Requests, Requests + FewCalls);
        Assert.InRange(cached.Of("read"), 1, Surroundings); // read ahead in long requests
        Assert.InRange(cached.BytesOf("pread64"), 0, (Requests * 4096) + (2 << 20)); // as far as the kernel reads ahead
    }

    // A look at the partition table may come on top.
    private static void AssertTransfers(Calls calls, string name, int requests, int bytes)
    {
        Assert.InRange(calls.Of(name), Parts * requests, (Parts * requests) + FewCalls);
        Assert.InRange(calls.BytesOf(name), bytes, bytes + FewBytes);
    }

    /// <summary>Whole new blocks are written as they come, once: nothing is read for them, and no metadata before the commit.</summary>
    [SkippableTheory]
    [InlineData("qcow2")]
    [InlineData("add-cow")]
    public void New_blocks_are_written_once(string format)
    {
        using Sandbox box = new();
        string raw = MountFilled(box, format, out int firstFree);
        Calls calls = Traced(box, $"dd if=data of={raw} bs=1M count=8 seek={firstFree} oflag=direct conv=notrunc status=none");
        box.QcowFs("umount", "m").Expect();
        Assert.InRange(calls.BytesOf("pwrite64"), 8L << 20, (8L << 20) + FewBytes); // the close commits: pages of the tables
        Assert.InRange(calls.BytesOf("pread64"), 0, FewBytes);
    }

    /// <summary>An fsync is one device sync after overwrites, two after allocations, and one in both cases with the journal.</summary>
    [SkippableTheory]
    [InlineData("qcow2", "", 1, 2)]
    [InlineData("qcow2", "--journal", 1, 1)]
    [InlineData("vhdx", "", 1, 2)]
    [InlineData("add-cow", "", 1, 2)]
    public void An_fsync_costs_so_many_device_syncs(string format, string option, int afterOverwrite, int afterAllocation)
    {
        using Sandbox box = new();
        string raw = MountFilled(box, format, out int firstFree, option.Length == 0 ? [] : [option]);
        box.Shell(Written(raw, 0, 64 << 10, 1)).Expect(); // the session's first change is marked
        int overwrites = SyncsOf(box, Written(raw, 0, 64 << 10, Syncs));
        long stride = format == "vhdx" ? 8 << 20 : 64 << 10;
        int allocations = SyncsOf(box, Written(raw, (long)firstFree << 20, stride, format == "vhdx" ? 2 : Syncs));
        box.QcowFs("umount", "m").Expect();
        int allocated = format == "vhdx" ? 2 : Syncs;

        // One more may fall between: a table that had to be made first, a journal that is confirmed.
        Assert.InRange(overwrites, afterOverwrite * Syncs, (afterOverwrite * Syncs) + 1);
        Assert.InRange(allocations, afterAllocation * allocated, (afterAllocation * allocated) + 2);
    }

    /// <summary>A disk whose first 16 MiB are written, mounted; <paramref name="firstFree"/> is a place in MiB that the image lacks.</summary>
    private static string MountFilled(Sandbox box, string format, out int firstFree, params string[] options)
    {
        Tools.Require("xfs_io");
        string image = $"disk.{format}";
        firstFree = 32;
        box.Shell("dd if=/dev/urandom of=data bs=1M count=16 status=none").Expect();
        if (format == "add-cow")
        {
            box.Shell("truncate -s 128M base.raw").Expect();
            box.QcowFs("create", "-f", "add-cow", "-b", "base.raw", "-F", "raw", "-o", "image_file=disk.raw", image).Expect();
        }
        else
        {
            string[] blocks = format == "vhdx" ? ["-o", "block_size=8M"] : [];
            box.QcowFs(["create", "-f", format, .. blocks, image, "128M"]).Expect();
        }

        string raw = box.MountWritable(image, ["--transport=device", .. options]); // io_uring gives many answers with one call
        box.Shell($"dd if=data of={raw} bs=1M conv=notrunc,fsync status=none").Expect();
        return raw;
    }

    private static string Written(string raw, long offset, long stride, int count) =>
        "xfs_io " + string.Concat(Enumerable.Range(0, count).Select(i =>
            string.Create(CultureInfo.InvariantCulture, $"-c 'pwrite -q {offset + (i * stride)} 4k' -c fsync "))) + raw;

    /// <summary>What the server called while a script ran.</summary>
    private static Calls Traced(Sandbox box, string script)
    {
        using ServerTrace trace = new(box, "all");
        box.Shell(script).Expect();
        return new Calls(trace.End());
    }

    /// <summary>Device syncs that the script's requests waited for; timers commit and confirm when they like.</summary>
    private static int SyncsOf(Sandbox box, string script)
    {
        using ServerTrace trace = new(box, "fdatasync");
        box.Shell(script).Expect();
        return trace.CountSyncs("/disk.").Foreground;
    }

    /// <summary>A trace by strace; a call that another thread's line interrupts has its result on a second one.</summary>
    private sealed class Calls(string[] lines)
    {
        private readonly List<(string Name, long Result)> _calls =
        [
            .. from line in lines
               let match = Pattern().Match(line)
               where match.Success
               select (match.Groups["name"].Value, long.Parse(match.Groups["result"].Value, CultureInfo.InvariantCulture)),
        ];

        // What the compiler takes for hot methods.
        private static readonly HashSet<string> NotOfRequests = ["mmap", "munmap", "mprotect", "madvise"];

        public int Total => _calls.Count(call => !NotOfRequests.Contains(call.Name));

        public int Syncs => Of("fsync") + Of("fdatasync");

        public int Of(string name) => _calls.Count(call => call.Name == name);

        public long BytesOf(string name) => _calls.Where(call => call.Name == name).Sum(call => call.Result);
    }

    [GeneratedRegex(@"^\d+ +(?:<\.\.\. )?(?<name>\w+)(?:\(| resumed).* = (?<result>-?\d+)")]
    private static partial Regex Pattern();
}
