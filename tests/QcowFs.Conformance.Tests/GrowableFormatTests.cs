// mount --growable over formats and features: a disk's file changes its size as a file does, judged against a plain file and by QEMU.
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class GrowableFormatTests
{
    // Works on the file named first, and after each step has it at the size that the format rounds to: told so, or, of a plain file, made so.
    private const string Steps = """
        import ctypes, os, sys
        path, unit, plain = sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'model'
        f = os.open(path, os.O_RDWR)
        def settle(size):
            size = (size + unit - 1) // unit * unit
            if plain: os.ftruncate(f, size)
            assert os.fstat(f).st_size == size == os.stat(path).st_size, (os.fstat(f).st_size, size)
            return size
        end = os.fstat(f).st_size
        assert os.pwrite(f, b'a' * 3000, end - 1000) == 3000
        end = settle(end + 2000)
        assert os.pwrite(f, b'b' * 5000, end) == 5000
        end = settle(end + 5000)
        assert os.pwrite(f, b'c' * 70000, end + 300000) == 70000
        end = settle(end + 370000)
        for i in range(8):
            os.pwrite(f, bytes([i]) * 4096, end)
            end = settle(end + 4096)
        os.fsync(f)
        os.ftruncate(f, end + (5 << 20) + unit)
        end = settle(end + (5 << 20) + unit)
        os.truncate(path, end - (5 << 20) - 9216)
        end = settle(end - (5 << 20) - 9216)
        os.posix_fallocate(f, end - 100, 20000)
        end = settle(end + 19900)
        a = os.open(path, os.O_WRONLY | os.O_APPEND)
        assert os.write(a, b'appended' * 64) == 512
        end = settle(end + 512)
        if not plain:
            os.truncate(path, 0)
            os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert settle(end) == end
        os.fsync(f)
        """;

    [SkippableTheory]
    [InlineData("raw", 1)]
    [InlineData("qcow2", 512)]
    [InlineData("qcow2", 512, "--journal")]
    [InlineData("qcow2", 512, "--dedup")]
    [InlineData("add-cow", 1)]
    [InlineData("vhdx", 512)]
    public void A_disk_takes_the_size_that_a_file_would(string format, int unit, params string[] options)
    {
        using Sandbox box = new();
        string image = Make(box, format);
        box.QcowFs("mount", "-f", format, image, box.MakeDirectory("m")).Expect();
        box.Shell($"cp m/{image}.raw model; chmod 600 model").Expect();
        box.QcowFs("umount", "m").Expect();
        File.WriteAllText(box.Path + "/steps.py", Steps);

        box.QcowFs(["mount", "-w", "--growable", "-f", format, .. options, image, "m"]).Expect();
        string raw = $"m/{image}.raw";
        box.Shell($"python3 steps.py model {unit} model; python3 steps.py {raw} {unit} disk; cmp {raw} model").Expect();
        // Programs as people use them.
        box.Shell($$"""
            head -c 100000 /dev/urandom >text
            for file in model {{raw}}; do
                truncate -s 24M $file
                dd if=/dev/zero bs=1M seek=30 count=2 conv=notrunc status=none of=$file
                dd if=text bs=4k seek=8192 conv=notrunc status=none of=$file
                truncate -s +512k $file
                truncate -s %4096 $file
            done
            cmp {{raw}} model
            """).Expect();
        string receipt = box.QcowFs("umount", "m").Expect();
        Assert.EndsWith("closed and durable", receipt, StringComparison.Ordinal);
        Judge(box, image, format);

        // The last word: a file system that fills what was gained.
        box.QcowFs("mount", "-w", "--growable", "-f", format, image, "m").Expect();
        box.Shell($"truncate -s 40M {raw}; mkfs.ext4 -q -F -E nodiscard {raw}; e2fsck -fn {raw} >/dev/null 2>&1; cp --sparse=never {raw} model").Expect();
        box.QcowFs("umount", "m").Expect();
        Judge(box, image, format);
    }

    [SkippableFact]
    public void Snapshots_partitions_and_read_only_disks_keep_their_size()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "8M");
        box.MountWritable(image, "--growable");
        string raw = $"m/{image}.raw";
        box.Shell($"echo 'start=2048, size=4096, type=83' | sfdisk -q {raw}; dd if=/dev/urandom of={raw} bs=1M seek=6 count=2 conv=notrunc,fsync status=none").Expect();
        string before = box.Hash(raw);
        box.QcowFs("snapshot", "create", image, "one").Expect();
        box.Shell($$"""
            printf 'past' | dd of={{raw}} bs=1 seek=9000000 conv=notrunc,fsync status=none
            test $(stat -c %s {{raw}}) = 9000448
            test $(stat -c %s m/{{image}}@one.raw) = 8388608
            ! truncate -s 9M m/{{image}}@one.raw 2>error; grep -q 'Read-only\|denied' error
            test $(stat -c %s m/{{image}}.p1.raw) = 2097152
            ! truncate -s 3M m/{{image}}.p1.raw 2>error; grep -q 'not permitted' error
            ! dd if=/dev/zero of=m/{{image}}.p1.raw bs=512 seek=4096 count=1 conv=notrunc status=none 2>error; grep -q 'No space' error
            """).Expect();
        Assert.Equal(before, box.Hash($"m/{image}@one.raw"));
        box.Shell($"truncate -s 2000M {raw}; truncate -s 7M {raw}; truncate -s 1G {raw}; test $(stat -c %s {raw}) = 1073741824").Expect();
        Assert.Contains("File too large", box.Run("truncate", "-s", "1E", raw).Errors, StringComparison.Ordinal);
        box.QcowFs("umount", "m").Expect();
        box.Check(image);
        box.QcowFs("snapshot", "apply", image, "one").Expect();
        Assert.Equal(before, box.HashByQemu(image));

        box.MountWritable(image);
        Assert.Contains("Operation not permitted", box.Run("truncate", "-s", "9M", raw).Errors, StringComparison.Ordinal);
        box.QcowFs("umount", "m").Expect();
        box.MountReadOnly(image);
        Assert.Contains("Read-only file system", box.Run("truncate", "-s", "9M", raw).Errors, StringComparison.Ordinal);
        box.QcowFs("umount", "m").Expect();
        Assert.Equal("qcowfs: --growable: needs --writable; give -w too, or --overlay", box.QcowFs("mount", "--growable", image, "m").ExpectError(64));
    }

    [SkippableTheory]
    [InlineData("raw", "--overlay")]
    [InlineData("qcow2", "--overlay=over.qcow2")]
    public void An_overlay_grows_and_its_base_does_not(string format, string overlay)
    {
        using Sandbox box = new();
        string image = box.Make(format, "3M");
        box.Shell($"dd if=/dev/urandom of=data bs=64k count=48 status=none; qemu-img convert -f raw -O {format} data {image}").Expect();
        string before = box.Hash(image);
        box.MakeDirectory("m");
        box.QcowFs("mount", overlay, "--growable", "-f", format, image, "m").Expect();
        string raw = $"m/{image}.raw";
        box.Shell($$"""
            for file in data {{raw}}; do
                truncate -s 2M $file; truncate -s 600M $file # past what the overlay's table maps
                printf 'past' | dd of=$file bs=1 seek=629145596 conv=notrunc status=none
            done
            cmp {{raw}} data
            """).Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(before, box.Hash(image));
        if (overlay == "--overlay") return;
        box.Check("over.qcow2");
        box.Run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "over.qcow2", "data").Expect();
    }

    private static string Make(Sandbox box, string format)
    {
        if (format is "raw" or "qcow2")
        {
            string image = box.Make(format, "3M");
            box.Run("qemu-io", "-f", format, "-c", "write -P 7 0 1M", "-c", "write -P 8 2500k 572k", image).Expect();
            if (format == "qcow2") box.Run("qemu-img", "snapshot", "-c", "one", image).Expect();
            return image;
        }
        if (format == "vhdx")
        {
            box.QcowFs("create", "-f", "vhdx", "disk.vhdx", "3M").Expect();
            return "disk.vhdx";
        }
        box.Shell("dd if=/dev/urandom of=base.raw bs=64k count=48 status=none; truncate -s 4M base.raw").Expect();
        box.QcowFs("create", "-f", "add-cow", "-b", "base.raw", "-F", "raw", "-o", "image_file=data.raw", "disk.add-cow", "3M").Expect();
        return "disk.add-cow";
    }

    private static void Judge(Sandbox box, string image, string format)
    {
        box.QcowFs("check", "-f", format, image).Expect();
        long size = new FileInfo(box.Path + "/model").Length;
        Assert.Contains($"\"virtual-size\": {size},", box.QcowFs("info", "--json", "-f", format, image).Expect(), StringComparison.Ordinal);
        if (format == "add-cow")
        {
            box.QcowFs("mount", image, "m").Expect();
            box.Shell($"cmp m/{image}.raw model").Expect();
            box.QcowFs("umount", "m").Expect();
            return;
        }
        Assert.Contains($"({size} bytes)", box.Run("qemu-img", "info", "-f", format, image).Expect(), StringComparison.Ordinal);
        if (format != "raw") box.Run("qemu-img", "check", "-q", "-f", format, image).Expect();
        box.Run("qemu-img", "compare", "-f", format, "-F", "raw", image, "model").Expect();
    }
}
