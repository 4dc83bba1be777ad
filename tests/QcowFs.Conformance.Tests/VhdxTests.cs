// VHDX as a user meets it: a crashed disk of Windows', differencing disks, another program's opinion, NTFS inside.
using System.Buffers.Binary;
using System.Text.Json;
using QcowFs.Images.Vhdx;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class VhdxTests
{
    /// <summary>A disk that Windows left with a dirty log: read without a byte of it changing, and it says so; written after a replay.</summary>
    [SkippableFact]
    public void A_crashed_disk_is_read_unchanged_and_written_after_a_replay()
    {
        using Sandbox box = new();
        Samples.Unpack(Samples.DirtyVhdx, $"{box.Path}/disk.vhdx");
        File.Copy($"{box.Path}/disk.vhdx", $"{box.Path}/qemu.vhdx");
        box.Run("qemu-img", "check", "-q", "-r", "all", "qemu.vhdx").Expect();
        string expected = box.HashByQemu("qemu.vhdx");
        string before = box.Hash("disk.vhdx");
        JsonElement info = JsonDocument.Parse(box.QcowFs("info", "--json", "disk.vhdx").Expect()).RootElement;
        Assert.True(info.GetProperty("dirty-flag").GetBoolean());
        Assert.Contains("2 log entries", info.GetProperty("log").GetString(), StringComparison.Ordinal);
        string raw = box.MountReadOnly("disk.vhdx");
        Assert.Equal(expected, box.Hash(raw));
        JsonElement receipt = JsonDocument.Parse(box.QcowFs("umount", "--json", "m").Expect()).RootElement.GetProperty("images")[0];
        Assert.EndsWith("were replayed in memory, the file is unchanged", receipt.GetProperty("replayed").GetString(), StringComparison.Ordinal);
        Assert.Equal(before, box.Hash("disk.vhdx"));

        raw = box.MountWritable("disk.vhdx");
        Assert.Equal(expected, box.Hash(raw));
        Assert.Contains("were replayed", box.QcowFs("umount", "m").Expect(), StringComparison.Ordinal);
        box.Check("disk.vhdx");
        Assert.Equal(expected, box.HashByQemu("disk.vhdx"));
    }

    [SkippableFact]
    public void A_differencing_disk_is_written_over_its_parent()
    {
        using Sandbox box = new();
        Tools.Require("fio");
        string expected = MakeChain(box);
        Assert.Equal(expected, box.Hash(box.MountReadOnly("child.vhdx")));
        box.QcowFs("umount", "m").Expect();
        byte[] witness = new VhdxReader(File.ReadAllBytes($"{box.Path}/child.vhdx"), new VhdxReader(File.ReadAllBytes($"{box.Path}/base.vhdx"))).ReadAll();
        Assert.Equal(expected, Convert.ToHexStringLower(System.Security.Cryptography.SHA256.HashData(witness)));
        Assert.Equal("child.vhdx: backing \".\\base.vhdx\" (base.vhdx), format vhdx: allowed", box.QcowFs("inspect", "child.vhdx").Expect());

        // Who writes to the parent has broken the child, and is told when that is opened.
        box.MountWritable("base.vhdx");
        box.Shell("printf x | dd of=m/base.vhdx.raw conv=notrunc status=none").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Contains("it was written to after the child was made", box.QcowFs("mount", "child.vhdx", "m").ExpectError(), StringComparison.Ordinal);
        File.Delete($"{box.Path}/base.vhdx");
        Assert.Contains("it does not exist", box.QcowFs("mount", "child.vhdx", "m").ExpectError(), StringComparison.Ordinal);
    }

    /// <summary>libvhdi reads what we write, differencing disks too.</summary>
    [SkippableFact]
    public void Libvhdi_reads_what_we_write()
    {
        using Sandbox box = new();
        Tools.Require("vhdimount", "fio");
        // It asks the sector bitmap also for blocks that are zero by the table's word, so there are none in the child.
        string expected = MakeChain(box, discards: false);
        box.MakeDirectory("v");
        string parent = box.Hash(box.MountReadOnly("base.vhdx"));
        box.QcowFs("umount", "m").Expect();
        box.Run("vhdimount", "base.vhdx", "v").Expect();
        Assert.Equal(parent, box.Hash("v/vhdi1"));
        box.Run("umount", "v").Expect();
        // It looks for the parent by this key alone, and takes the last part of the path.
        AddAbsolutePath($"{box.Path}/child.vhdx", @"C:\disks\base.vhdx");
        box.Run("vhdimount", "child.vhdx", "v").Expect();
        Assert.Equal(expected, box.Hash("v/vhdi2"));
        box.Run("umount", "v").Expect();
    }

    [SkippableFact]
    public void Ntfs_survives_on_a_loop_device()
    {
        using Sandbox box = new();
        Tools.Require("mkfs.ntfs", "ntfs-3g", "losetup", "ntfsfix");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        box.QcowFs("create", "-f", "vhdx", "disk.vhdx", "256M").Expect();
        string raw = box.MountWritable("disk.vhdx");
        box.MakeTree("tree", 3);
        box.Shell("mkdir fs; head -c 30M /dev/urandom > tree/large").Expect();
        string loop = box.Run("losetup", "--find", "--show", "--direct-io=on", raw).Expect();
        box.Shell($"mkfs.ntfs -q -f {loop}; ntfs-3g {loop} fs; cp -r --no-preserve=all tree/. fs/; umount fs; losetup -d {loop}").Expect();
        box.UnmountAndCheck("disk.vhdx");
        raw = box.MountReadOnly("disk.vhdx");
        loop = box.Run("losetup", "--find", "--show", "--read-only", raw).Expect();
        box.Shell($"ntfs-3g -o ro {loop} fs; diff -r --no-dereference tree fs; umount fs; ntfsfix --no-action {loop}; losetup -d {loop}").Expect();
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void Qemu_and_we_lock_each_other_out()
    {
        using Sandbox box = new();
        string image = box.Make("vhdx", "64M");
        box.MountWritable(image);
        Assert.Contains("\"write\" lock", box.Run("qemu-io", "-f", "vhdx", "-c", "write 0 512", image).Errors, StringComparison.Ordinal);
        Assert.Contains("in use", box.QcowFs("check", "--repair", image).ExpectError(), StringComparison.Ordinal);
        box.UnmountAndCheck(image);
    }

    [SkippableFact]
    public void Create_resize_check_and_map_know_the_format()
    {
        using Sandbox box = new();
        box.QcowFs("create", "-f", "vhdx", "-o", "block_size=1M,log_size=2M", "disk.vhdx", "8M").Expect();
        Assert.Contains("a multiple of 1M", box.QcowFs("create", "-f", "vhdx", "-o", "log_size=5k", "x.vhdx", "8M").ExpectError(64), StringComparison.Ordinal);
        box.MountWritable("disk.vhdx");
        box.Shell("head -c 3M /dev/urandom | dd of=m/disk.vhdx.raw bs=1M seek=2 conv=notrunc,fsync status=none; fallocate -p -o 3M -l 1M m/disk.vhdx.raw").Expect();
        box.UnmountAndCheck("disk.vhdx");
        box.QcowFs("resize", "disk.vhdx", "20M").Expect();
        Assert.Contains("--shrink", box.QcowFs("resize", "disk.vhdx", "3M").ExpectError(), StringComparison.Ordinal);
        box.QcowFs("resize", "--shrink", "disk.vhdx", "3M").Expect();
        box.Check("disk.vhdx");
        JsonElement map = JsonDocument.Parse(box.QcowFs("map", "--json", "disk.vhdx").Expect()).RootElement;
        Assert.Equal(["zero", "data"], map.EnumerateArray().Select(e => e.GetProperty("kind").GetString()));
        Assert.Contains("no internal snapshots", box.QcowFs("snapshot", "create", "disk.vhdx", "s").ExpectError().Replace("cannot have internal", "no internal", StringComparison.Ordinal), StringComparison.Ordinal);
    }

    /// <summary>A base with data and a child with some of its own. Gives the hash of the child's disk.</summary>
    private static string MakeChain(Sandbox box, bool discards = true)
    {
        box.QcowFs("create", "-f", "vhdx", "base.vhdx", "48M").Expect();
        Fill(box, "base.vhdx", 1);
        box.QcowFs("create", "-f", "vhdx", "-b", "base.vhdx", "child.vhdx").Expect();
        return Fill(box, "child.vhdx", 2, discards);
    }

    private static string Fill(Sandbox box, string image, int seed, bool discards = true)
    {
        string raw = box.MountWritable(image);
        box.Run(
            "fio", "--name=fill", $"--filename={raw}", "--rw=randwrite", "--bsrange=512-64k", "--blockalign=512", "--size=48M", "--io_size=12M",
            "--direct=1", "--ioengine=libaio", "--iodepth=8", "--fsync=32", $"--randseed={seed}", "--allrandrepeat=1").Expect();
        if (discards) box.Run("fallocate", "-p", "-o", "10M", "-l", "5M", raw).Expect();
        string hash = box.Hash(raw);
        box.QcowFs("umount", "m").Expect();
        box.QcowFs("check", image).Expect();
        return hash;
    }

    private static void AddAbsolutePath(string path, string parent)
    {
        byte[] file = File.ReadAllBytes(path);
        VhdxReader reader = new(file);
        const int metadata = 2 << 20; // behind the header area and a log of 1 MiB
        const int entry = metadata + 32 + (5 * 32);
        byte[] item = ParentLocator.Make(reader.Linkage, [new("absolute_win32_path", parent), new("relative_path", reader.Locator["relative_path"])]);
        item.CopyTo(file, metadata + BinaryPrimitives.ReadInt32LittleEndian(file.AsSpan(entry + 16)));
        BinaryPrimitives.WriteInt32LittleEndian(file.AsSpan(entry + 20), item.Length);
        File.WriteAllBytes(path, file);
    }
}
