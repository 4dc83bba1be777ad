// Disks that take the size that their file is given.
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class GrowableTests : IDisposable
{
    private readonly Sandbox _box = new();

    public void Dispose() => _box.Dispose();

    [SkippableTheory]
    [InlineData("raw")]
    [InlineData("qcow2")]
    [InlineData("vhdx")]
    public void Writing_past_the_end_and_cutting_give_the_disk_another_size(string format)
    {
        string image = _box.Make(format, "4M");
        string raw = _box.MountWritable(image, "--growable");
        // A plain file is the model.
        _box.Shell($$"""
            python3 -c '
            import os
            def both(act):
                a, b = act(disk), act(model)
                assert a == b, (a, b)
            disk, model = os.open("{{raw}}", os.O_RDWR), os.open("model", os.O_RDWR | os.O_CREAT)
            os.ftruncate(model, 4 << 20)
            both(lambda f: os.pwrite(f, b"a" * 5000, 1 << 20))
            both(lambda f: os.pwrite(f, b"b" * 8192, 4 << 20))
            both(lambda f: os.fstat(f).st_size)
            both(lambda f: os.pwrite(f, b"c" * 4096, (5 << 20) + 4096))
            both(lambda f: os.pwrite(f, b"d" * 12288, (5 << 20) + 4096))
            both(lambda f: os.ftruncate(f, 8 << 20))
            both(lambda f: os.pwrite(f, b"e" * 512, (8 << 20) - 512))
            both(lambda f: os.posix_fallocate(f, 8 << 20, 1 << 20))
            both(lambda f: os.fstat(f).st_size)
            both(lambda f: os.ftruncate(f, (5 << 20) + 1024 * 1024 if "{{format}}" == "vhdx" else (4 << 20) + 4096))
            both(lambda f: os.fstat(f).st_size)
            both(lambda f: os.ftruncate(f, 6 << 20))
            os.truncate("{{raw}}", 7 << 20); os.truncate("model", 7 << 20)
            open("{{raw}}", "r+b").close()
            os.close(os.open("{{raw}}", os.O_RDWR | os.O_TRUNC))
            both(lambda f: os.fstat(f).st_size)
            '
            cmp {{raw}} model
            """).Expect();
        string expected = _box.Hash("model");
        Assert.Equal(expected, _box.Hash(raw));
        _box.UnmountAndCheck(image);
        Assert.Equal(expected, _box.HashByQemu(image));
    }

    [SkippableFact]
    public void Without_it_the_disk_keeps_its_size()
    {
        string image = _box.Make("qcow2", "1M");
        string raw = _box.MountWritable(image);
        _box.Shell($$"""
            python3 -c '
            import errno, os
            f = os.open("{{raw}}", os.O_RDWR)
            for act in (lambda: os.ftruncate(f, 2 << 20), lambda: os.pwrite(f, b"x", 1 << 20)):
                try:
                    act()
                    assert False
                except OSError as e:
                    assert e.errno in (errno.EPERM, errno.ENOSPC), e
            '
            """).Expect();
        _box.UnmountAndCheck(image);
    }

    [SkippableFact]
    public void What_an_image_cannot_have_is_refused_and_a_frozen_one_waits()
    {
        string image = _box.Make("qcow2", "1M");
        string raw = _box.MountWritable(image, "--growable");
        _box.Shell($$"""
            python3 -c '
            import errno, os
            f = os.open("{{raw}}", os.O_RDWR)
            for size in (1000, 1 << 62):
                try:
                    os.ftruncate(f, size)
                    assert False
                except OSError as e:
                    assert e.errno in (errno.EINVAL, errno.EFBIG), e
            '
            test $(stat -c %s {{raw}}) = 1048576
            $QCOWFS sync --freeze m
            ( python3 -c 'import os; os.pwrite(os.open("{{raw}}", os.O_RDWR), b"x" * 4096, 1 << 20)' ) & writer=$!
            sleep 0.3
            kill -0 $writer
            $QCOWFS sync --thaw m
            wait $writer
            test $(stat -c %s {{raw}}) = 1052672
            """).Expect();
        _box.UnmountAndCheck(image);
    }

    [SkippableFact]
    public void A_raw_disk_grows_in_the_kernel_and_is_cut_while_it_is_open()
    {
        _box.Make("raw", "1M");
        string raw = _box.MountWritable("disk.img", "--growable");
        _box.Shell($$"""
            exec 3<{{raw}}
            grep -q '"data-path": "passthrough"' m/.qcowfs/disk.img/stats.json
            printf 'past' | dd of={{raw}} bs=1 seek=1048576 conv=notrunc status=none
            test $(stat -c %s {{raw}}) = 1048580
            truncate -s 65536 {{raw}}
            test $(stat -c %s {{raw}}) = 65536
            test $(stat -c %s disk.img) = 65536
            ! truncate -s 4E {{raw}} 2>/dev/null
            truncate -s 2M {{raw}}
            cmp {{raw}} disk.img
            """).Expect();
        _box.QcowFs("umount", "m").Expect();
        Assert.Equal(2 << 20, new FileInfo($"{_box.Path}/disk.img").Length);
    }
}
