// The journal on a real mount: servers killed under load, images that QEMU refuses until they are replayed, plain images after a close.
using System.Text.Json;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class JournalTests
{
    private const int Block = 4096;
    private const int KillsInAPersonsRun = 10;

    /// <summary>J11: what a write answered is there after a kill, synced or not; in many kills of one image, each in new space, over
    /// old blocks, and with a discard between.</summary>
    [SkippableFact]
    public void A_killed_server_loses_nothing_that_was_answered()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "256M");
        byte[] expected = new byte[32 << 20];
        foreach (int round in Soak.Rounds())
        {
            for (int kill = 0; kill < KillsInAPersonsRun; kill++)
                WriteUntilKilled(box, image, expected, seed: (round * KillsInAPersonsRun) + kill + 1);
        }

        string raw = box.MountWritable(image);
        AssertHolds(box, raw, expected, doubtful: -1);
        box.UnmountAndCheck(image);
    }

    /// <summary>An ext4 on a loop device, files written and synced as a database or a mail server does; the server is killed in the
    /// middle; every file that was synced is whole afterwards.</summary>
    [SkippableFact]
    public void A_file_system_keeps_its_synced_files_when_the_server_is_killed()
    {
        using Sandbox box = new();
        Tools.Require("losetup", "mkfs.ext4", "e2fsck");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string image = box.Make("qcow2", "128M");
        string raw = box.MountWritable(image, "--journal=1M");
        box.Shell($"mkfs.ext4 -q {raw}; mkdir files").Expect();
        box.QcowFs("umount", "m").Expect();
        foreach (int round in Soak.Rounds())
        {
            for (int kill = 0; kill < 3; kill++)
                SyncFilesUntilKilled(box, image, $"{round}-{kill}", files: 8 + (5 * kill));
        }

        raw = box.MountWritable(image);
        box.Shell($"e2fsck -fy {raw} || [ $? -le 1 ]").Expect();
        string loop = box.Shell($"losetup --find --show {raw}").Expect();
        box.Shell($"mount {loop} files; sha256sum --quiet -c acknowledged; umount files; losetup -d {loop}").Expect();
        box.UnmountAndCheck(image);
    }

    /// <summary>Many writers at once, syncs between, small clusters and a small ring that turns many times.</summary>
    [SkippableTheory]
    [InlineData("cluster_size=4096")]
    [InlineData("extended_l2=on")]
    public void Random_writes_verify(string options)
    {
        using Sandbox box = new();
        Tools.Require("fio");
        string image = box.Make("qcow2", "256M", options);
        string raw = box.MountWritable(image, "--journal=1M");
        box.Run(
            "fio", "--name=verify", $"--filename={raw}", "--rw=randwrite", "--bsrange=512-64k", "--blockalign=512", "--size=256M",
            "--io_size=64M", "--direct=1", "--ioengine=libaio", "--iodepth=32", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
            "--fsync=16", "--randrepeat=0").Expect();
        string hash = box.Hash(raw);
        box.UnmountAndCheck(image);
        Assert.Equal(hash, box.HashByQemu(image));
    }

    /// <summary>What the journal is for, as the kernel sees it: one sync of the image for each fsync of the guest that allocated, one more
    /// for the first rewrite of what was new. The timer that confirms may come in between.</summary>
    [SkippableFact]
    public void An_fsync_is_one_sync_of_the_image()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "1G");
        string raw = box.MountWritable(image, "--journal");
        using FileStream disk = new(AsSeenBy(Assert.Single(box.Servers()), box, raw), FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, bufferSize: 0);
        byte[] block = Pattern.Bytes(1, 0, Block);
        const int count = 40;
        WriteAndSync(0); // the journal is made
        Assert.Equal(count, SyncsOf(i => WriteAndSync((1 + i) * 17L << 20)).Foreground);
        Assert.Equal(count, SyncsOf(i => WriteAndSync((900L << 20) + (i * 1024L), 1024)).Foreground);
        (int waitedFor, int byTimer) = SyncsOf(_ => WriteAndSync(950L << 20));
        Assert.Equal(count + 1, waitedFor + byTimer);
        disk.Dispose();
        box.UnmountAndCheck(image);

        (int Foreground, int Background) SyncsOf(Action<int> step)
        {
            using ServerTrace trace = new(box, "fdatasync,fsync");
            for (int i = 0; i < count; i++) step(i);
            return trace.CountSyncs(image);
        }

        void WriteAndSync(long at, int length = Block)
        {
            RandomAccess.Write(disk.SafeFileHandle, block.AsSpan(0, length), at);
            disk.Flush(flushToDisk: true);
        }
    }

    /// <summary>Both options: what was answered is there after a kill, also where it shares the place of an equal block.</summary>
    [SkippableFact]
    public void A_killed_server_loses_nothing_that_it_shared()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M", "cluster_size=4k");
        box.Shell("head -c 2M /dev/urandom > part; head -c 2M /dev/urandom > other").Expect();
        string raw;
        for (int round = 0; round < 3; round++)
        {
            // The owner, then a second copy of it that is not synced, then the owner again with other bytes.
            raw = box.MountWritable(image, "--journal=1M", "--dedup");
            box.Shell($"dd if=part of={raw} bs=256k seek={round * 64} conv=notrunc,fsync status=none; dd if=part of={raw} bs=64k seek={(round * 256) + 64} conv=notrunc status=none; "
                + $"dd if=other of={raw} bs=64k seek={round * 256} conv=notrunc status=none").Expect();
            using (JsonDocument stats = JsonDocument.Parse(box.Run("cat", $"m/.qcowfs/{image}/stats.json").Expect()))
                Assert.True(stats.RootElement.GetProperty("bytes-shared").GetInt64() >= 1 << 20);
            Kill(box);
            Assert.Contains("nsupported", box.Run("qemu-img", "check", image).Errors, StringComparison.Ordinal);
            raw = box.MountWritable(image, round == 1 ? ["--dedup"] : ["--journal", "--dedup"]);
            box.Shell($"cmp -n 2097152 -i {(round * 16 << 20) + (4 << 20)}:0 {raw} part; cmp -n 2097152 -i {round * 16 << 20}:0 {raw} other").Expect();
            box.UnmountAndCheck(image);
        }

        // A scan of an image that a kill left with its journal replays it first.
        raw = box.MountWritable(image, "--journal=1M");
        box.Shell($"dd if=part of={raw} bs=1M seek=60 conv=notrunc status=none").Expect();
        Kill(box);
        Assert.Contains("MiB shared", box.QcowFs("dedup", "scan", image).Expect(), StringComparison.Ordinal);
        Assert.Contains("no journal", box.QcowFs("journal", image).Expect(), StringComparison.Ordinal);
        box.Check(image);
        raw = box.MountReadOnly(image);
        box.Shell($"cmp -n 2097152 -i {60 << 20}:0 {raw} part").Expect();
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void Qemu_refuses_the_image_until_it_is_replayed()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        string raw = box.MountWritable(image, "--journal=1M");
        box.Shell($"dd if=/dev/urandom of=first bs=64k count=3 status=none; dd if=first of={raw} bs=64k seek=5 conv=notrunc,fsync status=none").Expect();
        Kill(box);
        Assert.Contains("qcowfs journal", box.Run("qemu-img", "check", image).Errors, StringComparison.Ordinal);
        string before = box.Shell($"sha256sum < {image}").Expect();
        Assert.Contains("journal", box.QcowFs("info", image).Expect(), StringComparison.Ordinal);
        using (JsonDocument journal = JsonDocument.Parse(box.QcowFs("journal", "--json", image).Expect()))
        {
            Assert.True(journal.RootElement.GetProperty("present").GetBoolean());
            Assert.All(journal.RootElement.GetProperty("records").EnumerateArray(), r => Assert.Equal("replayed", r.GetProperty("verdict").GetString()));
            Assert.NotEqual(0, journal.RootElement.GetProperty("records").GetArrayLength());
        }

        // A check reads through the journal, and so does a mount without -w; neither changes a byte.
        box.QcowFs("check", image).Expect();
        string seen = box.MountReadOnly(image);
        box.Shell($"cmp -n 196608 first <(tail -c +327681 {seen})").Expect();
        Assert.Contains("recovered: ", box.QcowFs("umount", "m").Expect(), StringComparison.Ordinal);
        Assert.Equal(before, box.Shell($"sha256sum < {image}").Expect());

        Assert.Contains("run qcowfs check --repair", box.QcowFs("resize", image, "128M").ExpectError(), StringComparison.Ordinal);
        box.QcowFs("check", "--repair", image).Expect();
        box.Run("qemu-img", "check", "-q", image).Expect();
        box.Shell($"qemu-img convert -O raw {image} plain; cmp -n 196608 first <(tail -c +327681 plain)").Expect();
        Assert.Contains("no journal", box.QcowFs("journal", image).Expect(), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void An_image_of_version_2_is_refused_with_advice()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M", "compat=0.10");
        box.MakeDirectory("m");
        string error = box.QcowFs("mount", "-w", "--journal", image, "m").ExpectError();
        Assert.Contains("a journal needs version 3 of the format, the image is version 2; run qemu-img amend -o compat=1.1", error, StringComparison.Ordinal);
        Assert.Contains("add -w", box.QcowFs("mount", "--journal", image, "m").ExpectError(64), StringComparison.Ordinal);
    }

    /// <summary>Mounts, verifies, writes until the server is killed, and keeps in <paramref name="expected"/> what was answered.</summary>
    private static void WriteUntilKilled(Sandbox box, string image, byte[] expected, int seed)
    {
        string raw = box.MountWritable(image, "--journal=1M");
        int server = Assert.Single(box.Servers());
        AssertHolds(box, raw, expected, doubtful: -1);
        Random random = new(seed);
        int writes = random.Next(20, 200);
        long doubtful = -1;
        byte[] block = new byte[Block];
        using (FileStream disk = new(AsSeenBy(server, box, raw), FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, bufferSize: 0))
        {
            for (int i = 0; i < writes; i++)
            {
                long at = random.Next(expected.Length / Block) * (long)Block;
                random.NextBytes(block);
                RandomAccess.Write(disk.SafeFileHandle, block, at);
                block.CopyTo(expected, at);
                if (random.Next(10) == 0)
                    disk.Flush(flushToDisk: true);
            }

            // The last write meets the kill: it may be there or not.
            doubtful = random.Next(expected.Length / Block) * (long)Block;
            random.NextBytes(block);
            using System.Diagnostics.Process kill = box.Start("kill", "-KILL", $"{server}");
            try
            {
                RandomAccess.Write(disk.SafeFileHandle, block, doubtful);
                block.CopyTo(expected, doubtful);
            }
            catch (Exception fault) when (fault is IOException or OperationCanceledException)
            {
                // Killed before it was answered; over io_uring the kernel says ECANCELED.
            }

            kill.WaitForExit();
        }

        Sandbox.WaitForEnd(server);
        box.QcowFs("umount", "m").Expect(1);
        raw = box.MountReadOnly(image);
        AssertHolds(box, raw, expected, doubtful, block);
        box.QcowFs("umount", "m").Expect();
    }

    private static void AssertHolds(Sandbox box, string raw, byte[] expected, long doubtful, byte[]? other = null)
    {
        byte[] found = new byte[expected.Length];
        using (FileStream disk = new(AsSeenBy(Assert.Single(box.Servers()), box, raw), FileMode.Open, FileAccess.Read, FileShare.ReadWrite, bufferSize: 0))
            disk.ReadExactly(found);
        for (long at = 0; at < found.Length; at += Block)
        {
            ReadOnlySpan<byte> block = found.AsSpan((int)at, Block);
            if (block.SequenceEqual(expected.AsSpan((int)at, Block)))
                continue;
            Assert.True(at == doubtful && block.SequenceEqual(other), $"the block at byte {at} was answered and is not there");
            block.CopyTo(expected.AsSpan((int)at));
        }
    }

    /// <summary>A file's name for this process, which does not see the sandbox's mounts.</summary>
    private static string AsSeenBy(int server, Sandbox box, string raw) => $"/proc/{server}/root{box.Path}/{raw}";

    private static void SyncFilesUntilKilled(Sandbox box, string image, string name, int files)
    {
        string raw = box.MountWritable(image, "--journal=1M");
        int server = Assert.Single(box.Servers());
        string loop = box.Shell($"losetup --find --show {raw}").Expect();
        box.Shell($"mount {loop} files").Expect();
        using System.Diagnostics.Process load = box.Start("bash", "-c",
            $"for i in $(seq 400); do dd if=/dev/urandom of=files/{name}-$i bs=3000 count=$((1 + i % 5)) conv=fsync status=none || break; sync files || break; "
            + $"sha256sum files/{name}-$i >> acknowledged || break; done");
        while (!File.Exists($"{box.Path}/acknowledged") || File.ReadLines($"{box.Path}/acknowledged").Count(l => l.Contains($"/{name}-", StringComparison.Ordinal)) < files)
            Assert.False(load.HasExited);
        box.Run("kill", "-KILL", $"{server}").Expect();
        load.WaitForExit();
        box.Shell($"umount files || umount -l files; losetup -d {loop}");
        Sandbox.WaitForEnd(server);
        box.QcowFs("umount", "m").Expect(1);
    }

    private static void Kill(Sandbox box)
    {
        int server = Assert.Single(box.Servers());
        box.Run("kill", "-KILL", $"{server}").Expect();
        Sandbox.WaitForEnd(server);
        box.QcowFs("umount", "m").Expect(1);
    }
}
