// Disks that the kernel serves by itself out of the host file that they are: the same bytes, the same promises, and no request.
using System.Text.Json;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class PassthroughTests : IDisposable
{
    private readonly Sandbox _box = new();

    public void Dispose() => _box.Dispose();

    [SkippableFact]
    public void A_read_only_raw_disk_is_read_mapped_and_shared_without_a_request()
    {
        MakeRandom("disk.img", "4M");
        string raw = _box.MountReadOnly("disk.img");
        string expected = _box.HashByQemu("disk.img");
        Assert.Equal(expected, _box.Hash(raw));
        _box.Shell($$"""
            stamp=$(stat -c '%Y %Z %s' disk.img)
            exec 3<{{raw}} 4<{{raw}}
            dd if={{raw}} bs=4k iflag=direct status=none | sha256sum | grep -q {{expected}}
            python3 -c '
            import mmap, os
            f = os.open("{{raw}}", os.O_RDONLY)
            m = mmap.mmap(f, 0, prot=mmap.PROT_READ)
            assert m[:] == open("disk.img", "rb").read()
            try:
                os.open("{{raw}}", os.O_RDWR)
                assert False
            except OSError as e:
                assert e.errno in (13, 30), e
            '
            grep -q '"data-path": "passthrough"' m/.qcowfs/disk.img/stats.json
            test "$(stat -c '%Y %Z %s' disk.img)" = "$stamp"
            """).Expect();
        AssertRequests(reads: 0, writes: 0);
        Assert.Equal(JsonValueKind.Null, Statistics().GetProperty("data-path").ValueKind); // nothing is open
        _box.QcowFs("umount", "m").Expect();
        Assert.Equal(expected, _box.Hash("disk.img"));
    }

    [SkippableFact]
    public void A_disk_over_its_own_image_file_is_passed_through_too()
    {
        MakeRandom("disk.img", "1M");
        string expected = _box.Hash("disk.img");
        _box.QcowFs("mount", "-f", "raw", "disk.img", "disk.img").Expect();
        Assert.Equal(expected, _box.Hash("disk.img"));
        Assert.Contains("fuse.qcowfs", _box.Run("findmnt", "-n", "-o", "FSTYPE", $"{_box.Path}/disk.img").Expect(), StringComparison.Ordinal);
        _box.QcowFs("umount", "disk.img").Expect();
        Assert.Equal(expected, _box.Hash("disk.img"));
    }

    [SkippableTheory]
    [InlineData("--direct-io=on")]
    [InlineData("--cache=none")]
    [InlineData("-w")]
    [InlineData("--overlay")]
    public void Where_it_is_not_wanted_the_server_answers(string option)
    {
        MakeRandom("disk.img", "1M");
        string expected = _box.Hash("disk.img");
        string raw = _box.MountReadOnly("disk.img", option);
        _box.Shell($"exec 3<{raw}; grep -q '\"data-path\": \"server\"' m/.qcowfs/disk.img/stats.json").Expect();
        Assert.Equal(expected, _box.Hash(raw));
        Assert.NotEqual(0, Operations().GetProperty("read").GetInt64());
        _box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void A_writable_disk_is_the_file_and_grows_past_its_end()
    {
        MakeRandom("disk.img", "1M");
        string raw = _box.MountWritable("disk.img", "--passthrough");
        _box.Shell($$"""
            head -c 65536 /dev/urandom >patch
            dd if=patch of={{raw}} bs=4k seek=3 conv=notrunc,fsync status=none
            cmp -n 65536 -i 0:12288 patch disk.img
            python3 -c '
            import mmap, os
            f = os.open("{{raw}}", os.O_RDWR)
            g = os.open("{{raw}}", os.O_RDONLY)
            m = mmap.mmap(f, 4096)
            m[10:14] = b"mapd"
            m.flush()
            assert os.pread(g, 4, 10) == b"mapd"
            assert os.pwrite(f, b"past", 1 << 20) == 4
            assert os.fstat(g).st_size == (1 << 20) + 4
            assert os.stat("{{raw}}").st_size == (1 << 20) + 4
            try:
                os.ftruncate(f, 5)
                assert False
            except OSError as e:
                assert e.errno == 1, e
            '
            fallocate --punch-hole --offset 262144 --length 65536 {{raw}}
            cmp -n 65536 -i 262144:0 disk.img /dev/zero
            test $(stat -c %s {{raw}}) = 1048580
            cmp {{raw}} disk.img
            printf 'again' | dd of={{raw}} bs=1 seek=1048580 conv=notrunc status=none
            test $(stat -c %s {{raw}}) = 1048585
            cmp {{raw}} disk.img
            """).Expect();
        AssertRequests(reads: 0, writes: 0);
        Assert.NotEqual(0, Operations().GetProperty("sync").GetInt64());
        string receipt = _box.QcowFs("umount", "m").Expect();
        Assert.Equal("disk.img: written by the kernel (passthrough), 64 KiB discarded; closed and durable", receipt);
        Assert.Equal(1048585, new FileInfo($"{_box.Path}/disk.img").Length);
    }

    [SkippableFact]
    public void Partitions_beside_the_disk_see_each_write_at_once()
    {
        _box.Make("raw", "8M");
        _box.Shell("echo 'start=2048, size=4096, type=83' | sfdisk -q disk.img").Expect();
        string raw = _box.MountWritable("disk.img", "--passthrough");
        const string partition = "m/disk.img.p1.raw";
        _box.Shell($$"""
            exec 5<>{{raw}}
            python3 -c '
            import os
            disk = os.open("{{raw}}", os.O_RDWR)
            part = os.open("{{partition}}", os.O_RDWR)
            start = 2048 * 512
            for i in range(50):
                os.pwrite(disk, bytes([i]) * 4096, start + i * 512)
                assert os.pread(part, 4096, i * 512) == bytes([i]) * 4096, i
                os.pwrite(part, bytes([255 - i]) * 1000, i * 700)
                assert os.pread(disk, 1000, start + i * 700) == bytes([255 - i]) * 1000, i
            '
            cmp -n 2097152 -i 1048576:0 disk.img {{partition}}
            printf 'start=2048, size=4096, type=83\nstart=8192, size=2048, type=83\n' | sfdisk -q --no-reread --no-tell-kernel {{raw}}
            """).Expect();
        _box.Shell("ls m | grep -q p2.raw && test $(stat -c %s m/disk.img.p2.raw) = 1048576").Expect();
        _box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void A_loop_device_with_ext4_on_it_keeps_its_files()
    {
        Testing.Tools.Require("mkfs.ext4");
        _box.Make("raw", "32M");
        string raw = _box.MountWritable("disk.img", "--passthrough");
        _box.MakeDirectory("fs");
        _box.Shell($"""
            mkfs.ext4 -q {raw}
            loop=$(losetup --find --show --direct-io=on {raw})
            mount $loop fs
            head -c 3000000 /dev/urandom >fs/file
            cp fs/file copy
            sync -f fs/file
            umount fs
            losetup -d $loop
            """).Expect();
        _box.QcowFs("umount", "m").Expect();
        raw = _box.MountReadOnly("disk.img");
        _box.Shell($"e2fsck -fn disk.img >/dev/null 2>&1; mount -o loop,ro {raw} fs; cmp fs/file copy; umount fs").Expect();
        AssertRequests(reads: 0, writes: 0);
        _box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void What_would_end_the_identity_is_refused_while_the_disk_is_open()
    {
        _box.Make("raw", "1M");
        string raw = _box.MountWritable("disk.img", "--passthrough");
        const string because = "its disk is open, and the kernel writes to it directly (passthrough); close what is open first";
        using (System.Diagnostics.Process reader = _box.Start("sh", "-c", $"exec 3<{raw}; echo open; read line"))
        {
            Assert.Equal("open", reader.StandardOutput.ReadLine());
            Assert.Equal($"qcowfs: disk.img: {because}", _box.QcowFs("resize", "disk.img", "2M").ExpectError());
            Assert.Equal($"qcowfs: disk.img: {because}", _box.QcowFs("check", "disk.img").ExpectError());
            Assert.Equal($"qcowfs: m: {because}", _box.QcowFs("sync", "--freeze", "m").ExpectError());
            _box.QcowFs("sync", "m").Expect();
            reader.StandardInput.Close();
            reader.WaitForExit();
        }
        _box.QcowFs("resize", "disk.img", "2M").Expect();
        Assert.Equal("2097152", _box.Run("stat", "-c", "%s", raw).Expect());
        // Frozen, a disk is opened the other way, and stays so until it is closed.
        _box.QcowFs("sync", "--freeze", "m").Expect();
        _box.Shell($"""
            exec 3<{raw}
            grep -q '"data-path": "server"' m/.qcowfs/disk.img/stats.json
            $QCOWFS sync --thaw m
            dd if=/dev/zero of={raw} bs=4k count=1 conv=notrunc status=none
            grep -q '"data-path": "server"' m/.qcowfs/disk.img/stats.json
            """).Expect();
        _box.Shell($"""exec 3<{raw}; grep -q '"data-path": "passthrough"' m/.qcowfs/disk.img/stats.json""").Expect();
        _box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void A_map_that_outlives_its_file_keeps_mount_lock_and_identity()
    {
        _box.MakeDirectory("images");
        _box.Shell("truncate -s 1M images/disk.img").Expect();
        _box.MakeDirectory("m");
        _box.QcowFs("mount", "-w", "--passthrough", "-f", "raw", "images", "m").Expect();
        const string script = """
            import ctypes, os, sys
            libc = ctypes.CDLL(None)
            libc.mmap.restype = ctypes.c_void_p
            f = os.open("m/disk.img.raw", os.O_RDWR)
            m = libc.mmap(None, 4096, 3, 1, f, 0)
            os.close(f)
            print("mapped", flush=True)
            sys.stdin.readline()
            ctypes.memmove(ctypes.c_void_p(m), b"late", 4)
            """;
        using (System.Diagnostics.Process mapper = _box.Start("python3", "-c", script))
        {
            Assert.Equal("mapped", mapper.StandardOutput.ReadLine());
            _box.Shell("while [ $(sed -n 's/.*\"opens\": \\([0-9]*\\),/\\1/p' m/.qcowfs/disk.img/stats.json) != 0 ]; do sleep 0.1; done").Expect();
            Assert.Contains("has its disk mapped", _box.QcowFs("sync", "--freeze", "m").ExpectError(), StringComparison.Ordinal);
            Assert.Contains("has its disk mapped", _box.QcowFs("resize", "images/disk.img", "2M").ExpectError(), StringComparison.Ordinal);
            Assert.Contains("in use by python3", _box.QcowFs("umount", "m").ExpectError(), StringComparison.Ordinal);
            Assert.NotEqual(0, _box.Run("qemu-io", "-f", "raw", "-c", "write 0 512", "images/disk.img").ExitCode); // locked
            mapper.StandardInput.WriteLine();
            mapper.WaitForExit();
        }
        _box.QcowFs("umount", "m").Expect();
        Assert.Equal("late", _box.Run("head", "-c", "4", "images/disk.img").Expect());
    }

    [SkippableFact]
    public void A_complete_add_cow_image_is_passed_through_and_keeps_its_size()
    {
        MakeRandom("base.img", "1M");
        _box.QcowFs("create", "-f", "add-cow", "-b", "base.img", "-F", "raw", "-o", "image_file=data.raw", "disk.add-cow").Expect();
        string raw = _box.MountWritable("disk.add-cow", "--passthrough");
        _box.Shell($"""exec 3<{raw}; grep -q '"data-path": "server"' m/.qcowfs/disk.add-cow/stats.json; cat {raw} >copy; dd if=copy of={raw} bs=64k conv=notrunc,fsync status=none""").Expect();
        _box.Shell($"""
            exec 3<>{raw}
            grep -q '"data-path": "passthrough"' m/.qcowfs/disk.add-cow/stats.json
            dd if=/dev/urandom of={raw} bs=4k seek=7 count=2 conv=notrunc,fsync status=none
            printf 'past' | dd of={raw} bs=1 seek=1048576 conv=notrunc status=none
            sha256sum <{raw} >/dev/null
            head -c 1048576 {raw} | sha256sum >sum
            """).Expect();
        _box.QcowFs("umount", "m").Expect();
        _box.QcowFs("check", "disk.add-cow").Expect();
        raw = _box.MountReadOnly("disk.add-cow");
        _box.Shell($"""test $(stat -c %s {raw}) = 1048576; exec 3<{raw}; grep -q '"data-path": "passthrough"' m/.qcowfs/disk.add-cow/stats.json; sha256sum <{raw} | cmp - sum""").Expect();
        AssertRequests(reads: 0, writes: 0, "disk.add-cow");
        _box.QcowFs("umount", "m").Expect();
        Assert.Contains("4 bytes had been written past the end of the disk", Log(), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void A_raw_data_file_of_a_qcow2_image_is_passed_through_where_it_is_all_there()
    {
        _box.Run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on,preallocation=metadata", "disk.qcow2", "4M").Expect();
        _box.Shell("qemu-io -f qcow2 -c 'write -P 7 0 1M' disk.qcow2 >/dev/null").Expect();
        string raw = _box.MountReadOnly("disk.qcow2");
        Assert.Equal(_box.HashByQemu("disk.qcow2"), _box.Hash(raw));
        AssertRequests(reads: 0, writes: 0, "disk.qcow2");
        _box.QcowFs("umount", "m").Expect();
        raw = _box.MountWritable("disk.qcow2", "--passthrough");
        // Discarded while the kernel writes, a cluster stays what it is: the kernel would write where no map points.
        _box.Shell($"""
            exec 3<>{raw}
            grep -q '"data-path": "passthrough"' m/.qcowfs/disk.qcow2/stats.json
            fallocate --punch-hole --offset 0 --length 262144 {raw}
            printf 'after' | dd of={raw} bs=1 seek=70000 conv=notrunc,fsync status=none
            head -c 4194304 {raw} | sha256sum | cut -d' ' -f1 >sum
            """).Expect();
        _box.UnmountAndCheck("disk.qcow2");
        Assert.Equal(File.ReadAllText($"{_box.Path}/sum").Trim(), _box.HashByQemu("disk.qcow2"));
        raw = _box.MountReadOnly("disk.qcow2");
        Assert.Equal(File.ReadAllText($"{_box.Path}/sum").Trim(), _box.Hash(raw));
        _box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void Every_open_ends_as_it_began_while_many_come_and_go()
    {
        MakeRandom("disk.img", "1M");
        string raw = _box.MountReadOnly("disk.img");
        _box.Shell($"""
            pids=
            for w in 1 2 3 4; do
                ( for i in $(seq 60); do head -c 4096 {raw} | cmp -n 4096 - disk.img || exit 1; done ) & pids="$pids $!"
            done
            for p in $pids; do wait $p; done
            """).Expect();
        AssertRequests(reads: 0, writes: 0);
        _box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void An_ordinary_user_is_served_as_before_and_the_log_says_why_once()
    {
        MakeRandom("disk.img", "1M");
        _box.Shell("chmod 666 disk.img; mkdir -m 777 u").Expect();
        string expected = _box.Hash("disk.img");
        _box.QcowFsAsUser("mount", "-f", "raw", "disk.img", "u").Expect();
        Assert.StartsWith(expected, _box.RunAsUser("sha256sum", "u/disk.img.raw").Expect(), StringComparison.Ordinal);
        Assert.StartsWith(expected, _box.RunAsUser("sha256sum", "u/disk.img.raw").Expect(), StringComparison.Ordinal);
        _box.QcowFsAsUser("umount", "u").Expect();
        string log = File.ReadAllText(_box.Path + "/run-user/qcowfs/qcowfs.log");
        Assert.Single(log.Split('\n'), line => line.Contains("CAP_SYS_ADMIN", StringComparison.Ordinal));
    }

    [SkippableFact]
    public void A_stacked_file_system_and_a_block_device_are_served_as_before()
    {
        MakeRandom("disk.img", "1M");
        string expected = _box.Hash("disk.img");
        // A mount of ours is a stacked file system to the kernel: the disk of a disk.
        _box.MakeDirectory("inner");
        _box.QcowFs("mount", "-f", "raw", "disk.img", "inner").Expect();
        string raw = "m/disk.img.raw.raw";
        _box.MakeDirectory("m");
        _box.QcowFs("mount", "-f", "raw", "inner/disk.img.raw", "m").Expect();
        Assert.Equal(expected, _box.Hash(raw));
        _box.QcowFs("umount", "m").Expect();
        _box.QcowFs("umount", "inner").Expect();
        Assert.Contains("is on a stacked file system", Log(), StringComparison.Ordinal);
        _box.Shell("loop=$(losetup --find --show --read-only disk.img); echo $loop >device; $QCOWFS mount -f raw $loop m").Expect();
        string device = File.ReadAllText(_box.Path + "/device").Trim();
        Assert.Equal(expected, _box.Hash($"m/{Path.GetFileName(device)}.raw"));
        _box.QcowFs("umount", "m").Expect();
        _box.Run("losetup", "-d", device).Expect();
    }

    [SkippableFact]
    public void After_a_power_cut_what_was_acknowledged_is_there()
    {
        Testing.Tools.Require("mkfs.xfs", "xfs_io");
        _box.MakeDirectory("host");
        _box.MakeDirectory("m");
        const string disk = "m/disk.qcow2.raw";
        _box.Shell("""
            truncate -s 320M xfs; mkfs.xfs -q xfs; mount -o loop xfs host; cd host
            qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on,preallocation=metadata disk.qcow2 8M; sync -f .
            """).Expect();
        // What is on the device after a forced shutdown is what a power cut would leave: nothing that was not synced.
        string[] durable =
        [
            "dd if=/dev/null of=$D bs=1 count=0 conv=notrunc,fsync status=none; xfs_io -x -c shutdown host; exec 3<&-",
            "exec 3<&-; $QCOWFS umount m; xfs_io -x -c shutdown host",
        ];
        foreach (string act in durable)
        {
            _box.QcowFs("mount", "-w", "--passthrough", "host/disk.qcow2", "m").Expect();
            _box.Shell($"""
                D={disk}; exec 3<$D
                grep -q '"data-path": "passthrough"' m/.qcowfs/disk.qcow2/stats.json
                head -c 1000000 /dev/urandom >patch; dd if=patch of=$D bs=4k seek=100 conv=notrunc status=none
                {act}
                """).Expect();
            _box.Shell("mountpoint -q m && $QCOWFS umount m || true; umount host; mount -o loop xfs host; cmp -n 1000000 -i 0:409600 patch host/data.raw").Expect();
        }
        _box.Shell("umount host").Expect();
    }

    private void MakeRandom(string name, string size) => _box.Shell($"head -c {size} /dev/urandom >{name}").Expect();

    private string Log() => File.ReadAllText(_box.Path + "/run/qcowfs/qcowfs.log");

    private JsonElement Statistics(string image = "disk.img")
    {
        using JsonDocument json = JsonDocument.Parse(_box.Run("cat", $"m/.qcowfs/{image}/stats.json").Expect());
        return json.RootElement.Clone();
    }

    private JsonElement Operations(string image = "disk.img") => Statistics(image).GetProperty("operations");

    private void AssertRequests(long reads, long writes, string image = "disk.img")
    {
        JsonElement operations = Operations(image);
        Assert.Equal((reads, writes), (operations.GetProperty("read").GetInt64(), operations.GetProperty("write").GetInt64()));
    }
}
