// The raw file as real programs meet it, compared with a plain file that gets the same operations.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class DiskFileTests
{
    private const long Size = 64 << 20;

    [SkippableTheory]
    [MemberData(nameof(Disks.Formats), MemberType = typeof(Disks))]
    public void It_keeps_its_size_whatever_programs_try(string format)
    {
        using Sandbox box = new();
        string image = box.Make(format, "64M");
        string raw = box.MountWritable(image);
        // O_TRUNC, as the shell, cp and dd use it.
        box.Shell($"printf abc > {raw}; head -c 5000 /dev/urandom > small; cp small {raw}; cmp -n 5000 small {raw}").Expect();
        box.Shell($"dd if=small of={raw} bs=1k status=none; cmp -n 5000 small {raw}").Expect();
        Assert.Equal($"{Size}", box.Run("stat", "-c", "%s", raw).Expect());
        // ftruncate, truncate.
        box.Run("truncate", "-s", $"{Size}", raw).Expect();
        Assert.Contains("Operation not permitted", box.Run("truncate", "-s", "1M", raw).Errors, StringComparison.Ordinal);
        Assert.Contains("Operation not permitted", box.Run("xfs_io", "-c", "truncate 0", raw).Errors, StringComparison.Ordinal);
        Assert.Contains("Operation not permitted", box.Run("xfs_io", "-c", $"truncate {Size + 1}", raw).Errors, StringComparison.Ordinal);
        // A write over the end is cut, at the end there is no space; appending is at the end.
        Assert.Contains("wrote 100/4096 bytes", box.Run("xfs_io", "-c", $"pwrite -O {Size - 100} 4096", raw).Output, StringComparison.Ordinal);
        Assert.Contains("No space left on device", box.Run("xfs_io", "-c", $"pwrite {Size} 1", raw).Errors, StringComparison.Ordinal);
        Assert.Contains("No space left on device", box.Shell($"echo x >> {raw}").Errors, StringComparison.Ordinal);
        Assert.Equal("100", box.Shell($"tail -c 100 {raw} | tr -dc '\\315' | wc -c").Expect());
        Assert.Contains("read 0/10 bytes", box.Run("xfs_io", "-r", "-c", $"pread {Size} 10", raw).Output, StringComparison.Ordinal);
        Assert.Contains("read 5/10 bytes", box.Run("xfs_io", "-r", "-c", $"pread {Size - 5} 10", raw).Output, StringComparison.Ordinal);
        Assert.Equal($"{Size}", box.Run("stat", "-c", "%s", raw).Expect());
        box.UnmountAndCheck(image);
    }

    [SkippableFact]
    public void A_writable_disk_is_not_mapped_shared_and_its_mode_is_stated_at_mount_time()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        string raw = box.MountWritable(image, "--mode=0640");
        Assert.Contains("No such device", box.Run("xfs_io", "-c", "mmap -rw 0 4096", raw).Errors, StringComparison.Ordinal);
        Assert.Equal("640", box.Run("stat", "-c", "%a", raw).Expect());
        Assert.Contains("Operation not permitted", box.Run("chmod", "600", raw).Errors, StringComparison.Ordinal);
        box.Run("touch", raw).Expect();
        box.Run("chmod", "640", raw).Expect();
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableTheory]
    [InlineData("raw", "4096")]
    [InlineData("qcow2", "65536")]
    public void Statfs_gives_the_block_of_the_mapping(string format, string blockSize)
    {
        using Sandbox box = new();
        string image = box.Make(format, "64M");
        string raw = box.MountReadOnly(image);
        Assert.Equal(blockSize, box.Run("stat", "-f", "-c", "%s", raw).Expect());
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableTheory]
    [InlineData("raw", null)]
    [InlineData("qcow2", null)]
    [InlineData("qcow2", "cluster_size=4k")]
    [InlineData("qcow2", "extended_l2=on,cluster_size=128k")]
    [InlineData("qcow2", "compat=0.10")]
    public void Random_operations_agree_with_a_plain_file(string format, string? options)
    {
        using Sandbox box = new();
        Tools.Require("xfs_io");
        string image = box.Make(format, "64M", options);
        string raw = box.MountWritable(image);
        ulong seed = Seeds.Between(1, 1).Single();
        Random random = new(unchecked((int)seed));
        box.Run("truncate", "-s", $"{Size}", "model").Expect();
        List<string> commands = [];
        for (int i = 0; i < 400; i++)
        {
            long offset = random.NextInt64(Size - 1);
            long length = 1 + random.NextInt64(Math.Min(random.Next(3) == 0 ? 3 << 20 : 70_000, Size - offset));
            if (random.Next(3) == 0)
            {
                offset &= ~65535L;
                length = Math.Min((length + 65535) & ~65535L, Size - offset);
            }
            commands.Add(random.Next(4) switch
            {
                0 => $"fpunch {offset} {length}",
                1 => $"fzero -k {offset} {length}",
                2 => $"pwrite -q -S 0 {offset} {length}",
                _ => $"pwrite -q -b 1m -S {1 + random.Next(255)} {offset} {length}",
            });
        }
        string[] words = [.. commands.SelectMany(c => new[] { "-c", c })];
        box.Run("xfs_io", [.. words, "-c", "fsync", "model"]).Expect();
        box.Run("xfs_io", [.. words, "-c", "fsync", raw]).Expect();
        Assert.True(box.Run("cmp", "model", raw).ExitCode == 0, $"seed {seed}");
        string hash = box.Hash("model");
        box.UnmountAndCheck(image);
        Assert.True(hash == box.HashByQemu(image), $"seed {seed}");
    }

    [SkippableTheory]
    [MemberData(nameof(Disks.Formats), MemberType = typeof(Disks))]
    public void A_hole_punched_at_any_byte_reads_as_zeros_to_the_byte(string format)
    {
        using Sandbox box = new();
        Tools.Require("xfs_io");
        string image = box.Make(format, "64M");
        string raw = box.MountWritable(image);
        string[] script = ["-c", "pwrite -q -b 1m -S 0x5a 0 8m", "-c", "fpunch 1000001 333333", "-c", "fpunch 3m 65537", "-c", "fzero 5000003 7"];
        box.Run("xfs_io", [.. script, raw]).Expect();
        box.Run("truncate", "-s", $"{Size}", "model").Expect();
        box.Run("xfs_io", [.. script, "model"]).Expect();
        box.Run("cmp", "model", raw).Expect();
        Assert.Contains("Operation not supported", box.Run("xfs_io", "-c", "fcollapse 0 65536", raw).Errors, StringComparison.Ordinal);
        Assert.Contains("Operation not supported", box.Run("xfs_io", "-c", "finsert 0 65536", raw).Errors, StringComparison.Ordinal);
        box.Run("fallocate", "-o", "16M", "-l", "1M", raw).Expect();
        Assert.Contains("No space left on device", box.Run("fallocate", "-o", "63M", "-l", "2M", raw).Errors, StringComparison.Ordinal);
        box.Run("cmp", "model", raw).Expect();
        box.UnmountAndCheck(image);
    }

    [SkippableTheory]
    [MemberData(nameof(Disks.Formats), MemberType = typeof(Disks))]
    public void Holes_are_found_copied_and_given_back(string format)
    {
        using Sandbox box = new();
        Tools.Require("xfs_io");
        string image = box.Make(format, "64M", format == "vhdx" ? "block_size=1M" : null);
        if (format == "raw") box.Shell($"truncate -s 0 {image}; truncate -s 64M {image}").Expect(); // qemu-img allocates the first block
        string raw = box.MountWritable(image);
        box.Run("xfs_io", "-c", "pwrite -q -b 1m -S 1 8m 4m", "-c", "pwrite -q -b 1m -S 2 40m 8m", "-c", "fsync", raw).Expect();
        Assert.Equal(
            "HOLE 0\nDATA 8388608\nHOLE 12582912\nDATA 41943040\nHOLE 50331648",
            string.Join('\n', box.Run("xfs_io", "-r", "-c", "seek -a -r 0", raw).Expect().Split('\n').Skip(1)
                .Select(l => string.Join(' ', l.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries)))));
        long before = box.Kilobytes(raw);
        Assert.InRange(before, 12 << 10, 24 << 10); // host space is reserved ahead
        box.Run("cp", "--sparse=auto", raw, "copy").Expect();
        Assert.InRange(box.Kilobytes("copy"), 12 << 10, 13 << 10);
        box.Run("cmp", raw, "copy").Expect();
        box.Run("xfs_io", "-c", "fpunch 40m 8m", "-c", "fsync", raw).Expect();
        Assert.Contains("Whence", box.Run("xfs_io", "-r", "-c", "seek -d 12m", raw).Expect(), StringComparison.Ordinal);
        Assert.Contains("EOF", box.Run("xfs_io", "-r", "-c", "seek -d 12m", raw).Expect(), StringComparison.Ordinal);
        box.UnmountAndCheck(image);
        Assert.InRange(box.Kilobytes(image), 4 << 10, 7 << 10); // a VHDX has a log of 1 MiB
    }

    [SkippableTheory]
    [InlineData("-o", "compat=0.10")]
    [InlineData("-o", "cluster_size=512")]
    [InlineData("-o", "cluster_size=2M")]
    [InlineData("-o", "extended_l2=on")]
    [InlineData("-c")]
    [InlineData("-c", "-o", "compression_type=zstd")]
    [InlineData("-o", "data_file=disk.data,data_file_raw=on")]
    public void Images_of_QEMU_read_the_same(params string[] how)
    {
        using Sandbox box = new();
        Tools.Require("mkfs.ext4", "qemu-img");
        box.MakeTree("tree", 5);
        box.Shell("truncate -s 64M source; mkfs.ext4 -q -d tree source").Expect();
        box.Run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", .. how, "source", "disk.qcow2"]).Expect();
        string raw = box.MountReadOnly("disk.qcow2");
        box.Run("cmp", "source", raw).Expect();
        box.QcowFs("umount", "m").Expect();
        // A writable layer over it, shorter than its backing file.
        box.Run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2", "48M").Expect();
        raw = box.MountWritable("over.qcow2");
        box.Run("truncate", "-s", "48M", "source").Expect();
        box.Run("cmp", "source", raw).Expect();
        box.Shell($"xfs_io -c 'pwrite -q -S 9 1000 5000000' -c 'fpunch 20m 123456' {raw}; xfs_io -c 'pwrite -q -S 9 1000 5000000' -c 'fpunch 20m 123456' source; cmp source {raw}").Expect();
        box.UnmountAndCheck("over.qcow2");
        Assert.Equal(box.Hash("source"), box.HashByQemu("over.qcow2"));
    }

    [SkippableFact]
    public void Read_only_means_that_no_byte_changes_whatever_is_tried()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M", "lazy_refcounts=on");
        box.Run("qemu-io", "-f", "qcow2", "-c", "write 0 4M", image).Expect();
        // A crashed writer's image: recovery stays in memory.
        box.Shell($"qemu-io -f qcow2 -c 'write 8M 1M' -c 'flush' -c 'sigraise 9' {image} || true").Expect();
        string before = box.Hash(image);
        string times = box.Run("stat", "-c", "%y %z %b", image).Expect();
        string raw = box.MountReadOnly(image);
        box.Shell($"cat {raw} > /dev/null; ! truncate -s 1 {raw} 2>/dev/null; ! fallocate -p -l 4096 {raw} 2>/dev/null; ! echo x 2>/dev/null > {raw}").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(before, box.Hash(image));
        Assert.Equal(times, box.Run("stat", "-c", "%y %z %b", image).Expect());
    }
}
