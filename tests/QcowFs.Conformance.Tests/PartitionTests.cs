// Partitions as files, made and used by the tools that people make and use them with. sfdisk is told not to sync(2), which would wait
// for every file system of the machine; it syncs the file.
using System.Text.RegularExpressions;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class PartitionTests
{
    [SkippableTheory]
    [InlineData("gpt", ",10M\\n,20M\\n,30M\\n", "p1 10, p2 20, p3 30")]
    [InlineData("dos", ",10M\\n,20M,E\\n,8M\\n,9M\\n,7M\\n", "p1 10, p3 8, p4 9, p5 7")]
    public void The_files_are_what_sfdisk_made(string label, string script, string expected)
    {
        using Sandbox box = new();
        Tools.Require("sfdisk");
        string image = box.Make("qcow2", "128M");
        string raw = box.MountWritable(image);
        box.Shell($"printf 'label: {label}\\n{script}' | sfdisk -q --no-tell-kernel {raw}").Expect();
        Assert.Equal(expected, Files(box));
        if (label == "gpt")
        {
            // The first copy gone: the backup is used, and error.txt says so.
            box.Shell($"dd if=/dev/zero of={raw} bs=512 count=1 seek=1 conv=notrunc status=none").Expect();
            Assert.Equal(expected, Files(box));
            Assert.Contains("backup", box.Run("cat", $"m/.qcowfs/{image}/error.txt").Expect(), StringComparison.Ordinal);
        }
        RequireSameBytes(box, image, 512, box.Shell($"sfdisk -q -l -o Device,Start,Sectors,Type {raw} 2>/dev/null").Expect());
        box.UnmountAndCheck(image);
    }

    [SkippableTheory]
    [InlineData("gpt", ",10M\\n,20M\\n")]
    [InlineData("dos", ",10M\\n,,E\\n,20M\\n,5M\\n")]
    public void Sectors_of_4096_bytes_are_found_out(string label, string script)
    {
        using Sandbox box = new();
        Tools.Require("sfdisk", "losetup");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string image = box.Make("raw", "128M");
        string loop = box.Run("losetup", "--find", "--show", "--sector-size", "4096", image).Expect();
        string table = box.Shell($"printf 'label: {label}\\n{script}' | sfdisk -q --no-tell-kernel {loop}; sfdisk -q -l -o Device,Start,Sectors,Type {loop}; losetup -d {loop}").Expect();
        box.MountWritable(image);
        RequireSameBytes(box, image, 4096, table);
        box.QcowFs("umount", "m").Expect();
    }

    /// <summary>Each partition's file is the range of the disk that a table printed by sfdisk states, read and written.</summary>
    private static void RequireSameBytes(Sandbox box, string image, int sector, string table)
    {
        foreach (string line in table.Split('\n').Skip(1).Where(l => !l.Contains("Extended", StringComparison.Ordinal)))
        {
            string[] words = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            string number = Regex.Match(words[0], "(p|raw)(?<number>[0-9]+)$", RegexOptions.ExplicitCapture, TimeSpan.FromSeconds(1)).Groups["number"].Value;
            string file = $"m/{image}.p{number}.raw";
            box.Shell(
                $"head -c 3M /dev/urandom > data; dd if=data of={file} bs=1M seek=1 conv=notrunc status=none; "
                + $"dd if=m/{image}.raw bs={sector} skip={words[1]} count={words[2]} status=none | cmp - {file}; "
                + $"cmp -n 3145728 -i 1048576:0 {file} data").Expect();
        }
    }

    [SkippableFact]
    public void A_changed_table_changes_the_files_and_leaves_open_ones_alone()
    {
        using Sandbox box = new();
        Tools.Require("sfdisk", "parted");
        string image = box.Make("qcow2", "128M");
        string raw = box.MountWritable(image);
        box.Shell($"parted -s {raw} mklabel gpt mkpart a 1MiB 11MiB mkpart b 11MiB 21MiB").Expect();
        Assert.Equal("p1 10, p2 10", Files(box));
        box.Shell(
            $"""
            exec 3<>m/{image}.p2.raw
            parted -s {raw} rm 2 mkpart c 40MiB 70MiB
            test "$(stat -c %s m/{image}.p2.raw)" = 31457280
            printf kept >&3
            test "$(dd if={raw} bs=1M skip=11 count=1 status=none | head -c 4)" = kept
            sfdisk -q --no-tell-kernel --delete {raw} 1
            test ! -e m/{image}.p1.raw
            dd if=/dev/zero of={raw} bs=1M count=1 conv=notrunc status=none
            dd if=/dev/zero of={raw} bs=1M count=1 seek=127 conv=notrunc status=none
            """).Expect();
        Assert.Equal("", Files(box));
        Assert.Equal($"{image}.raw", box.Run("ls", "m").Expect());
        box.UnmountAndCheck(image);
    }

    [SkippableTheory]
    [InlineData("ext4", "-q -F", "e2fsck -fn")]
    [InlineData("xfs", "-q -f", "xfs_repair -n")]
    [InlineData("vfat", "", "fsck.vfat -n")] // made and checked; not every kernel mounts it
    public void File_systems_are_made_in_partitions_and_are_the_disks(string fileSystem, string options, string check)
    {
        using Sandbox box = new();
        Tools.Require("sfdisk", $"mkfs.{fileSystem}", check.Split(' ')[0], "losetup", "partx");
        Tools.Require(File.Exists("/dev/loop-control"), "there are no loop devices");
        string image = box.Make("qcow2", "1G");
        string raw = box.MountWritable(image);
        box.Shell($"printf 'label: gpt\\n,512M\\n,400M\\n' | sfdisk -q --no-tell-kernel {raw}; mkfs.{fileSystem} {options} m/{image}.p2.raw >/dev/null").Expect();
        string loop = box.Run("losetup", "--find", "--show", "--direct-io=on", $"m/{image}.p2.raw").Expect();
        box.MakeTree("tree", 16);
        string mounts = fileSystem == "vfat" ? "exit 0" : "true";
        box.Shell($"{mounts}; mkdir fs; mount {loop} fs; cp -a tree fs/; umount fs").Expect();
        box.Shell($"losetup -d {loop}; {check} m/{image}.p2.raw").Expect();
        // The whole disk through a loop device shows the same partition at the same place with the same content.
        loop = box.Run("losetup", "--find", "--show", raw).Expect();
        string place = box.Shell($"partx --show --noheadings --output START,SECTORS --nr 2 {loop} | xargs").Expect();
        string[] words = place.Split(' ');
        box.Shell($"dd if={loop} bs=512 skip={words[0]} count={words[1]} status=none | cmp - m/{image}.p2.raw; losetup -d {loop}").Expect();
        box.UnmountAndCheck(image);
    }

    [SkippableFact]
    public void Holes_discards_and_ends_are_those_of_the_range()
    {
        using Sandbox box = new();
        Tools.Require("sfdisk", "fallocate", "rsync");
        string image = box.Make("qcow2", "128M");
        string raw = box.MountWritable(image);
        box.Shell(
            $"""
            printf 'label: gpt\n,16M\n,16M\n' | sfdisk -q --no-tell-kernel {raw}
            p=m/{image}.p1.raw
            head -c 16M /dev/urandom > data
            cat data > $p
            cmp data $p
            cmp data <(dd if={raw} bs=1M skip=1 count=16 status=none)
            test "$(stat -c %s $p)" = 16777216
            ! printf x | dd of=$p bs=1 seek=16777216 conv=notrunc status=none 2>error; grep -q 'No space left' error
            ! truncate -s 1M $p 2>error; grep -q 'not permitted' error
            fallocate -p -o 1000000 -l 8000000 $p
            fallocate -p -o 1000000 -l 8000000 data
            cmp data $p
            # Holes are those that the disk has at the same place (qemu-img asks with SEEK_HOLE).
            qemu-img map -f raw --output=json $p | grep -q '"data": false'
            qemu-img convert -f raw -O raw $p copy; cmp copy data; test "$(stat -c %b copy)" -lt 26000
            mkdir to; rsync -a --sparse m/{image}.p1.raw to/; cmp to/{image}.p1.raw data
            # Beyond the range nothing was touched.
            cmp m/{image}.p2.raw <(head -c 16M /dev/zero)
            fallocate -p -o 0 -l 1G $p
            cmp $p <(head -c 16M /dev/zero)
            test "$(stat -c %b m/{image}.p2.raw)" -le 32768
            sync m/{image}.p2.raw
            """).Expect();
        box.UnmountAndCheck(image);
    }

    [SkippableFact]
    public void Fuse2fs_mounts_a_partition_for_an_ordinary_user()
    {
        using Sandbox box = new();
        Tools.Require("fusermount3", "sfdisk", "mkfs.ext4", "fuse2fs", "e2fsck");
        box.MakeDirectory("u", forUser: true);
        box.ShellAsUser(
            """
            cd u; mkdir m fs
            $QCOWFS create -f qcow2 disk.qcow2 1G; $QCOWFS mount -w disk.qcow2 m
            printf 'label: dos\n,100M\n,,E\n,300M\n' | sfdisk -q --no-tell-kernel m/disk.qcow2.raw
            part=m/disk.qcow2.p5.raw
            mkfs.ext4 -q -E root_owner $part
            fuse2fs $part fs -o fakeroot
            mkdir tree; for i in $(seq 60); do head -c $((i * 997)) /dev/urandom > tree/$i; done
            cp -r tree fs/; diff -r tree fs/tree
            fusermount3 -u fs
            """).Expect();
        // fuse2fs writes back after fusermount3 has returned.
        while (box.ShellAsUser("$QCOWFS umount u/m").ExitCode != 0) Assert.NotEmpty(box.Servers());
        box.Check("u/disk.qcow2");
        box.ShellAsUser("cd u; $QCOWFS mount disk.qcow2 m; e2fsck -fn m/disk.qcow2.p5.raw; debugfs -R 'dump tree/60 out' m/disk.qcow2.p5.raw; cmp out tree/60; $QCOWFS umount m").Expect();
    }

    [SkippableFact]
    public void Fio_verifies_a_partition_while_others_write_beside_it()
    {
        using Sandbox box = new();
        Tools.Require("fio", "sfdisk");
        string image = box.Make("qcow2", "256M");
        string raw = box.MountWritable(image);
        box.Shell($"printf 'label: gpt\\n,64M\\n,64M\\n' | sfdisk -q --no-tell-kernel {raw}").Expect();
        // The first partition by its file, the second through the whole disk, at once; each reads what it wrote the other way.
        box.Shell(
            $"""
            verify="--rw=randwrite --bs=4k-64k --size=60M --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 --randseed=7 --allow_mounted_write=1"
            fio --minimal $verify --name=a --filename=m/{image}.p1.raw > /dev/null & first=$!
            fio --minimal $verify --name=b --filename={raw} --offset=65M > /dev/null
            wait $first
            cmp <(dd if={raw} bs=1M skip=1 count=64 status=none) m/{image}.p1.raw
            cmp <(dd if={raw} bs=1M skip=65 count=64 status=none) m/{image}.p2.raw
            """).Expect();
        box.UnmountAndCheck(image);
    }

    [SkippableFact]
    public void Without_partitions_there_are_none()
    {
        using Sandbox box = new();
        Tools.Require("sfdisk");
        string image = box.Make("raw", "64M");
        box.Shell($"printf 'label: gpt\\n,10M\\n' | sfdisk -q --no-tell-kernel {image}").Expect();
        box.MountReadOnly(image, "--no-partitions");
        Assert.Equal($"{image}.raw", box.Run("ls", "m").Expect());
        box.QcowFs("umount", "m").Expect();
        box.MountReadOnly(image);
        Assert.Equal("400 10485760", box.Run("stat", "-c", "%a %s", $"m/{image}.p1.raw").Expect());
        box.QcowFs("umount", "m").Expect();
    }

    /// <summary>"p1 10, p2 20": numbers and sizes in MiB.</summary>
    private static string Files(Sandbox box) => box.Shell(
        "cd m; for p in *.p[0-9]*.raw; do [ -e \"$p\" ] || continue; n=${p%.raw}; echo \"${n##*.} $(($(stat -c %s \"$p\") / 1048576))\"; done").Expect().Replace("\n", ", ", StringComparison.Ordinal);
}
