// fio writes patterns and verifies them, with the server well and with the server killed.
using System.Diagnostics;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class FioTests
{
    [SkippableTheory]
    [InlineData("raw", 1, 32)]
    [InlineData("qcow2", 1, 32)]
    [InlineData("qcow2", 1, 1)]
    [InlineData("qcow2", 0, 32)]
    [InlineData("qcow2", 0, 1)]
    [InlineData("vhdx", 1, 32)]
    public void Random_writes_verify(string format, int direct, int depth)
    {
        using Sandbox box = new();
        Tools.Require("fio");
        string image = box.Make(format, "256M");
        string raw = box.MountWritable(image);
        box.Run(
            "fio", "--name=verify", $"--filename={raw}", "--rw=randwrite", "--bsrange=512-128k", "--blockalign=512", "--size=256M",
            "--io_size=128M", $"--direct={direct}", "--ioengine=libaio", $"--iodepth={depth}", "--verify=crc32c", "--do_verify=1",
            "--verify_fatal=1", "--fsync=64", "--randrepeat=0").Expect();
        string hash = box.Hash(raw);
        box.UnmountAndCheck(image);
        Assert.Equal(hash, box.HashByQemu(image));
    }

    [SkippableTheory]
    [InlineData("qcow2", null)]
    [InlineData("qcow2", "extended_l2=on")]
    [InlineData("raw", null)]
    [InlineData("vhdx", "block_size=1M")]
    public void A_killed_server_loses_nothing_that_was_synced(string format, string? options)
    {
        using Sandbox box = new();
        Tools.Require("fio");
        string image = box.Make(format, "256M", options);
        // What was durable before: a known pattern at the front, which fio does not touch.
        string raw = box.MountWritable(image);
        box.Run("dd", "if=/dev/urandom", "of=front", "bs=1M", "count=16", "status=none").Expect();
        box.Run("dd", "if=front", $"of={raw}", "bs=1M", "conv=notrunc,fsync", "status=none").Expect();
        box.QcowFs("umount", "m").Expect();
        foreach (int round in Soak.Rounds()) KillOnce(box, image, killAfterMiB: 48 + (round * 7 % 100));
    }

    private static void KillOnce(Sandbox box, string image, int killAfterMiB)
    {
        string raw = box.MountWritable(image);
        using Process fio = box.Start(
            "fio", "--name=load", $"--filename={raw}", "--rw=randwrite", "--bs=4k", "--offset=16M", "--size=224M", "--direct=1",
            "--ioengine=libaio", "--iodepth=32", "--fsync=16", "--time_based", "--runtime=600", "--randrepeat=0");
        // The server is killed once it has demonstrably written much: no timing decides.
        int server = Assert.Single(box.Servers());
        while (Sandbox.WrittenBytes(server) < (long)killAfterMiB << 20) Assert.False(fio.HasExited);
        box.Run("kill", "-KILL", $"{server}").Expect();
        fio.StandardOutput.ReadToEnd();
        fio.WaitForExit();
        Sandbox.WaitForEnd(server);
        box.QcowFs("umount", "m").Expect(1);
        if (image.EndsWith(".qcow2", StringComparison.Ordinal))
            Assert.Contains(box.Run("qemu-img", "check", image).ExitCode, new[] { 0, 3 }); // leaks, never damage
        raw = box.MountWritable(image);
        box.Run("cmp", "-n", $"{16 << 20}", "front", raw).Expect();
        box.Shell($"cat {raw} > /dev/null; echo again | dd of={raw} bs=1M seek=20 conv=notrunc,fsync status=none").Expect();
        box.UnmountAndCheck(image); // what leaked has been collected
    }

    [SkippableFact]
    public void Memory_stays_small_under_random_IO_on_a_terabyte()
    {
        using Sandbox box = new();
        Tools.Require("fio");
        string image = box.Make("qcow2", "1T");
        string raw = box.MountWritable(image);
        box.Run(
            "fio", "--name=load", $"--filename={raw}", "--rw=randrw", "--bs=4k", "--size=1T", "--io_size=64M", "--direct=1",
            "--ioengine=libaio", "--iodepth=32", "--numjobs=4", "--group_reporting", "--randrepeat=0").Expect();
        long peak = Sandbox.PeakKilobytes(Assert.Single(box.Servers()));
        box.UnmountAndCheck(image);
        Assert.True(peak < 150 << 10, $"peak resident memory was {peak} KiB");
    }
}
