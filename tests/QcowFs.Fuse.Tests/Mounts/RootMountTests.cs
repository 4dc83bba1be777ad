// A memory file through the real kernel, mounted by mount(2), over each transport.
using System.Diagnostics;

namespace QcowFs.Fuse.Tests.Mounts;

public abstract class RootMountTests : IDisposable
{
    private readonly FuseTransport _transport;
    private ServedMount? _mount;

    protected RootMountTests(FuseTransport transport)
    {
        ServedMount.Require();
        _transport = transport;
    }

    public void Dispose()
    {
        _mount?.Dispose();
        GC.SuppressFinalize(this);
    }

    [SkippableFact]
    public void The_mount_shows_the_file_as_it_was_told()
    {
        ServedMount mount = Serve("--source '/a b,c\\d' --noexec --noatime");
        Assert.Contains("ready direct=True", mount.FirstLine, StringComparison.Ordinal);
        Assert.Equal("1 67108864 600 0 0 131072 65536 -rw------- 1582979696", mount.Run("stat -c '%h %s %a %u %g %b %o %A %Y' $D").Succeeded().Trim());
        Assert.Equal("2020-02-29 12:34:56.123456700 1969-12-31 23:59:58.500000000", mount.Run("TZ=UTC stat -c '%y %z' $D").Succeeded().Replace(" +0000", "", StringComparison.Ordinal).Trim());
        Assert.Equal("65536 4096 1000 500 400 7 0 255", mount.Run("stat -f -c '%s %S %b %f %a %c %d %l' m").Succeeded().Trim());
        string line = mount.Run("grep ' /mnt/m ' /proc/self/mountinfo").Succeeded();
        Assert.Contains(" rw,nosuid,nodev,noexec,noatime - fuse.qcowfs /a\\040b,c\\134d rw,user_id=0,group_id=0,default_permissions", line, StringComparison.Ordinal);
    }

    [SkippableFact]
    public void Bytes_come_back_in_requests_of_one_MiB_with_aligned_payloads()
    {
        ServedMount mount = Serve();
        mount.Run("""
            dd if=/dev/urandom of=random bs=1M count=64 status=none
            dd if=random of=$D bs=1M oflag=direct conv=notrunc status=none
            dd if=$D of=back bs=1M iflag=direct status=none
            cmp random back && cmp random $D
            """).Succeeded();
        var statistics = mount.Statistics();
        Assert.Equal(1 << 20, statistics["LargestRead"]!.GetValue<int>());
        Assert.Equal(1 << 20, statistics["LargestWrite"]!.GetValue<int>());
        Assert.Equal(0, statistics["MisalignedBuffers"]!.GetValue<int>());
        Assert.Equal(64, statistics["Writes"]!.GetValue<int>());
    }

    [SkippableFact]
    public void Random_reads_and_writes_at_depth_verify()
        => Serve("--size-kib 32768").Run("""
            for bs in 512 4k 60k 256k; do
                fio --name=v --filename=$D --size=30M --rw=randwrite --bs=$bs --direct=1 --ioengine=io_uring --iodepth=32 --verify=crc32c \
                    --verify_fatal=1 --randseed=7 --output-format=terse >/dev/null || exit 1
            done
            """).Succeeded();

    [SkippableFact]
    public void Direct_writes_of_one_file_run_in_parallel_and_the_session_grows_for_them()
    {
        ServedMount mount = Serve("--rendezvous 6");
        Assert.Equal("expected", mount.Ask("expect-waits"));
        mount.Run("""
            for i in 0 1 2 3 4 5; do
                dd if=/dev/zero of=m/rendezvous bs=4096 count=1 seek=$i oflag=direct conv=notrunc status=none & pids="$pids $!"
            done
            for p in $pids; do wait $p || exit 1; done
            """).Succeeded();
        Assert.Equal(6, mount.Statistic("MostConcurrentWrites"));
        Assert.True(mount.Statistic("Threads") >= 6);
    }

    [SkippableFact]
    public void Requests_that_each_take_a_while_get_as_many_threads_as_there_are_at_a_time()
    {
        ServedMount mount = Serve("--delay-ms 4 --size-kib 1024");
        mount.Run("fio --name=x --filename=$D --size=1M --rw=randread --bs=4k --direct=1 --ioengine=io_uring --iodepth=12 --loops=8 --output-format=terse >/dev/null").Succeeded();
        Assert.True(mount.Statistic("MostConcurrentReads") >= 10, $"{mount.Statistic("MostConcurrentReads")} reads at a time");
    }

    /// <summary>Both come from the same processor.</summary>
    [SkippableTheory]
    [InlineData("os.fsync(f)")]
    [InlineData("ctypes.CDLL(None).fallocate64(f, 3, ctypes.c_long(0), ctypes.c_long(4096)) and 1/0")]
    public void A_request_that_waits_for_a_disk_holds_up_no_read(string call)
    {
        ServedMount mount = Serve("--rendezvous 2");
        // What the server does for the first time takes long, and it would take that for waiting.
        mount.Run("""
            taskset -c 0 python3 -c 'import os; os.fsync(os.open("m/disk", os.O_RDWR))'
            taskset -c 0 dd if=$D of=/dev/null bs=4096 count=4096 iflag=direct status=none
            """).Succeeded();
        using Process first = mount.Begin($"exec taskset -c 0 python3 -c 'import os, ctypes; f = os.open(\"m/rendezvous\", os.O_RDWR); {call}'");
        while (mount.Statistic("MostConcurrentWrites") == 0) Assert.False(first.HasExited);
        mount.Run("taskset -c 0 dd if=m/rendezvous of=read bs=4096 count=1 iflag=direct status=none").Succeeded();
        first.WaitForExit();
        Assert.Equal(0, first.ExitCode);
        Assert.Equal(2, mount.Statistic("MostConcurrentWrites"));
    }

    [SkippableFact]
    public void A_server_that_is_killed_at_work_leaves_nobody_waiting()
    {
        ServedMount mount = Serve();
        using Process load = BeginLoad(mount);
        mount.Kill();
        Assert.True(load.WaitForExit(TimeSpan.FromSeconds(60)), "fio waits for a dead server");
        Assert.NotEqual(0, load.ExitCode);
    }

    [SkippableFact]
    public void A_connection_that_is_aborted_at_work_ends()
    {
        ServedMount mount = Serve();
        using Process load = BeginLoad(mount);
        mount.Abort();
        Assert.StartsWith("ended Aborted", mount.AwaitEnd(), StringComparison.Ordinal);
        Assert.True(load.WaitForExit(TimeSpan.FromSeconds(60)), "fio waits for a dead connection");
    }

    [SkippableFact]
    public void A_mount_that_is_taken_away_at_work_serves_to_the_end()
    {
        ServedMount mount = Serve();
        using Process load = mount.Begin("exec dd if=/dev/zero of=$D bs=4096 count=16384 oflag=direct conv=notrunc,fsync status=none");
        while (mount.Statistic("Writes") == 0) Assert.False(load.HasExited);
        Assert.Equal("detached", mount.Ask("lazy"));
        load.WaitForExit();
        Assert.Equal(0, load.ExitCode);
        string end = mount.AwaitEnd();
        Assert.StartsWith("ended Unmounted", end, StringComparison.Ordinal);
        Assert.Contains("\"Writes\":16384,", end, StringComparison.Ordinal);
        Assert.Empty(mount.Complaints);
    }

    [SkippableFact]
    public void Passthrough_serves_a_host_file_without_a_request_and_ignores_our_size()
    {
        ServedMount mount = Serve("--backing /mnt/backing --passthrough 1", prepare: "truncate -s 1M /mnt/backing");
        Assert.Equal("None", mount.Statistics()["Passthrough"]!.GetValue<string>());
        mount.Run("""
            dd if=/dev/urandom of=random bs=64k count=16 status=none
            dd if=random of=$D bs=64k conv=notrunc,fsync status=none
            cmp random backing && cmp random $D
            dd if=$D of=/dev/null bs=4k iflag=direct status=none
            python3 -c '
            import mmap, os
            f = os.open("m/disk", os.O_RDWR)
            m = mmap.mmap(f, 1 << 20)
            m[4096:4100] = b"mapd"
            m.flush()
            assert os.pread(f, 4, 4096) == b"mapd"
            assert os.pwrite(f, b"past", 1 << 20) == 4
            '
            test $(stat -c %s backing) = $((1048576 + 4))
            """.ReplaceLineEndings("\n")).Succeeded();
        var statistics = mount.Statistics();
        Assert.Equal((0, 0), (statistics["Reads"]!.GetValue<int>(), statistics["Writes"]!.GetValue<int>()));
        Assert.Equal(1, statistics["Syncs"]!.GetValue<int>()); // fsync comes all the same; msync is the host file's own
    }

    [SkippableFact]
    public void The_kernel_refuses_to_open_one_node_both_ways()
    {
        ServedMount mount = Serve("--backing /mnt/backing --passthrough 2", prepare: "truncate -s 1M /mnt/backing");
        mount.Run("exec 3<$D; dd if=$D of=/dev/null bs=4k count=1 2>&1 | grep -q 'Input/output error'").Succeeded();
        mount.Run("dd if=/dev/zero of=/dev/null count=1 status=none; exec 3<$D; exec 3<&-; cat $D | cmp - backing").Succeeded();
    }

    [SkippableFact]
    public void A_server_without_privilege_is_told_EPERM()
    {
        ServedMount mount = Serve("--backing /mnt/backing --passthrough 1", asUser: true, prepare: "truncate -s 1M /mnt/backing; chmod 666 /mnt/backing");
        Assert.Equal("EPERM", mount.Statistics()["Passthrough"]!.GetValue<string>());
        mount.Run("cmp $D backing").Succeeded();
        Assert.True(mount.Statistic("Reads") > 0);
    }

    [SkippableFact]
    public void Durability_flags_reach_the_file_system()
    {
        ServedMount mount = Serve();
        mount.Run("dd if=/dev/zero of=$D bs=4096 count=3 conv=notrunc status=none").Succeeded();
        Assert.Equal((0, 0, 0), Durability());
        mount.Run("dd if=/dev/zero of=$D bs=4096 count=3 conv=notrunc oflag=dsync status=none").Succeeded();
        Assert.Equal((3, 0, 0), Durability());
        mount.Run("dd if=/dev/zero of=$D bs=4096 count=2 conv=notrunc oflag=sync,direct status=none").Succeeded();
        Assert.Equal((5, 0, 0), Durability());
        mount.Run("dd if=/dev/zero of=$D bs=4096 count=3 conv=notrunc,fsync status=none").Succeeded();
        Assert.Equal((5, 1, 0), Durability());
        mount.Run("dd if=/dev/zero of=$D bs=4096 count=3 conv=notrunc,fdatasync status=none").Succeeded();
        Assert.Equal((5, 1, 1), Durability());
        mount.Run("""python3 -c 'import os; f = os.open("m/disk", os.O_RDWR); os.pwritev(f, [b"x" * 512], 0, os.RWF_DSYNC)' """).Succeeded();
        Assert.Equal((6, 1, 1), Durability());

        (long Writes, long Syncs, long DataSyncs) Durability()
        {
            var statistics = mount.Statistics();
            return (statistics["DurableWrites"]!.GetValue<long>(), statistics["Syncs"]!.GetValue<long>(), statistics["DataSyncs"]!.GetValue<long>());
        }
    }

    [SkippableFact]
    public void Truncation_on_open_comes_as_a_size_without_a_handle()
    {
        ServedMount mount = Serve();
        mount.Run("dd if=/dev/zero of=$D bs=4096 count=1 status=none && test $(stat -c %s $D) = 67108864").Succeeded();
        Assert.Equal(1, mount.Statistic("TruncationsWithoutHandle"));
        Assert.NotEqual(0, mount.Run("python3 -c 'import os; os.ftruncate(os.open(\"m/disk\", os.O_RDWR), 5)'").ExitCode);
        Assert.Equal(1, mount.Statistic("TruncationsWithoutHandle"));
    }

    [SkippableFact]
    public void A_thousand_names_are_listed_with_attributes_and_every_reference_is_given_back()
    {
        ServedMount mount = Serve("--files 1000");
        string[] lines = mount.Run("ls -l m | tail -n +2").Succeeded().Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.Equal(1003, lines.Length);
        Assert.Contains(lines, line => line.EndsWith("f0999", StringComparison.Ordinal));
        mount.Run("for i in $(seq 0 99); do stat m/f00$(printf %02d $i) >/dev/null || exit 1; done; ls -l m >/dev/null").Succeeded();
        Assert.True(mount.Statistic("DirectoryReadsPlus") > 0);
        Assert.True(mount.Statistic("References") >= 1000);
        // Dropping the caches makes the kernel forget; the requests come when it gets to it.
        var watch = Stopwatch.StartNew();
        while (mount.Statistic("References") != 0 && watch.Elapsed < ServedMount.HangLimit) mount.Run("echo 2 >/proc/sys/vm/drop_caches", asRoot: true).Succeeded();
        Assert.Equal(0, mount.Statistic("References"));
        Assert.True(mount.Statistic("Forgotten") >= 1000);
    }

    [SkippableFact]
    public void An_exception_and_a_broken_contract_are_EIO_and_the_mount_goes_on()
    {
        ServedMount mount = Serve();
        Assert.Contains("Input/output error", mount.Run("cat m/fault").Error, StringComparison.Ordinal);
        // Written before the answer, and read by another thread of ours.
        Assert.True(SpinWait.SpinUntil(() => mount.Complaints.Contains("this file cannot be read", StringComparison.Ordinal), ServedMount.HangLimit), mount.Complaints);
        // Were ENOSYS of fsync let through, the kernel would report success from the second one on.
        for (int i = 0; i < 2; i++)
            Assert.Contains("Input/output error", mount.Run("python3 -c 'import os; os.fsync(os.open(\"m/fault\", os.O_RDONLY))'").Error, StringComparison.Ordinal);
        Assert.Contains("Input/output error", mount.Run("dd if=/dev/zero of=m/fault bs=4096 count=1 conv=notrunc").Error, StringComparison.Ordinal);
        mount.Run("cmp -n 65536 $D /dev/zero").Succeeded();
        Assert.Equal(4, mount.Statistic("Faults"));
    }

    [SkippableFact]
    public void Holes_are_punched_and_sought()
    {
        ServedMount mount = Serve();
        mount.Run("""
            tr '\0' x </dev/zero | dd of=$D bs=64k count=4 iflag=fullblock conv=notrunc status=none
            fallocate -p -o 4096 -l 8192 $D
            cmp -i 4096:0 -n 8192 $D /dev/zero
            test "$(dd if=$D bs=1 skip=4095 count=1 status=none)$(dd if=$D bs=1 skip=12288 count=1 status=none)" = xx
            python3 -c 'import os; f = os.open("m/disk", os.O_RDONLY); assert os.lseek(f, 5, os.SEEK_DATA) == 5; assert os.lseek(f, 5, os.SEEK_HOLE) == 67108864'
            """).Succeeded();
        Assert.NotEqual(0, mount.Run("fallocate -o 0 -l 4096 $D").ExitCode);
    }

    [SkippableFact]
    public void Names_cannot_be_changed_and_the_errors_are_those_of_such_a_directory()
    {
        ServedMount mount = Serve();
        Assert.Contains("Operation not permitted", mount.Run("touch m/new").Error, StringComparison.Ordinal);
        Assert.Contains("Operation not permitted", mount.Run("rm m/disk").Error, StringComparison.Ordinal);
        Assert.Contains("Operation not permitted", mount.Run("mv m/disk m/other").Error, StringComparison.Ordinal);
        Assert.Contains("Operation not permitted", mount.Run("mkdir m/new").Error, StringComparison.Ordinal);
        Assert.Contains("Inappropriate ioctl", mount.Run("python3 -c 'import fcntl; fcntl.ioctl(open(\"m/disk\"), 0x1260)'").Error, StringComparison.Ordinal);
        Assert.Equal(0, mount.Statistic("Faults"));
    }

    [SkippableFact]
    public void Requests_allocate_nothing_through_a_real_mount()
    {
        const int blocks = 16384;
        ServedMount mount = Serve();
        WriteAndRead();
        // What asking costs is taken off; what is left is the requests' own.
        long first = mount.Statistic("Allocated");
        long asking = mount.Statistic("Allocated") - first;
        long before = mount.Statistic("Allocated");
        WriteAndRead();
        long spent = mount.Statistic("Allocated") - before - asking;
        Assert.True(spent < blocks, $"{spent} bytes were allocated for {2 * blocks} requests");
        Assert.Equal(2 * blocks, mount.Statistic("Writes"));

        void WriteAndRead() => mount.Run($"""
            dd if=/dev/zero of=$D bs=4096 count={blocks} oflag=direct conv=notrunc status=none
            dd if=$D of=/dev/null bs=4096 count={blocks} iflag=direct status=none
            """).Succeeded();
    }

    [SkippableFact]
    public void Cached_pages_stay_until_they_are_invalidated()
    {
        ServedMount mount = Serve("--cached --size-kib 1024");
        Assert.Equal("ENOENT", mount.Ask("invalidate"));
        mount.Run("cat $D | cmp -n 1048576 - /dev/zero").Succeeded();
        long reads = mount.Statistic("Reads");
        mount.Run("cat $D >/dev/null").Succeeded();
        Assert.Equal(reads, mount.Statistic("Reads"));
        Assert.Equal("None", mount.Ask("invalidate"));
        mount.Run("cat $D >/dev/null").Succeeded();
        Assert.True(mount.Statistic("Reads") > reads);

        long lookups = mount.Statistic("Lookups");
        mount.Run("stat $D").Succeeded();
        Assert.Equal(lookups, mount.Statistic("Lookups"));
        Assert.Equal("None", mount.Ask("expire"));
        mount.Run("stat $D").Succeeded();
        Assert.Equal(lookups + 1, mount.Statistic("Lookups"));
    }

    [SkippableFact]
    public void A_regular_file_is_covered_and_is_the_disk()
    {
        _mount = ServedMount.Start($"--transport {_transport}", mountPoint: "/mnt/file");
        Assert.Contains("ready direct=True", _mount.FirstLine, StringComparison.Ordinal);
        _mount.Run("test $(stat -c %s file) = 67108864 && tr '\\0' y </dev/zero | dd of=file bs=1M count=1 iflag=fullblock oflag=direct conv=notrunc status=none && test $(head -c 3 file) = yyy").Succeeded();
        _mount.Tell("unmount");
        Assert.StartsWith("ended Unmounted", _mount.AwaitEnd(), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void A_busy_mount_is_not_unmounted_and_a_lazy_unmount_waits_for_the_last_close()
    {
        ServedMount mount = Serve();
        using Process holder = mount.Begin("exec 3<$D; echo open; read line; head -c 1 <&3 | wc -c");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        Assert.Equal("failed Busy EBUSY /mnt/m: the mount is in use; close what is open there, or unmount lazily", mount.Ask("unmount"));
        Assert.Equal("detached", mount.Ask("lazy"));
        Assert.NotEqual(0, mount.Run("grep ' /mnt/m ' /proc/self/mountinfo").ExitCode);
        holder.StandardInput.WriteLine();
        Assert.Equal("1", holder.StandardOutput.ReadLine());
        Assert.StartsWith("ended Unmounted", mount.AwaitEnd(), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void An_abort_is_told_from_an_unmount()
    {
        ServedMount mount = Serve();
        mount.Abort();
        Assert.StartsWith("ended Aborted", mount.AwaitEnd(), StringComparison.Ordinal);
        Assert.Empty(mount.Complaints);
    }

    [SkippableFact]
    public void A_read_only_mount_refuses_changes_in_the_kernel()
    {
        ServedMount mount = Serve("--read-only");
        Assert.Contains("Read-only file system", mount.Run("dd if=/dev/zero of=$D bs=512 count=1 conv=notrunc").Error, StringComparison.Ordinal);
        mount.Run("cmp -n 4096 $D /dev/zero").Succeeded();
        Assert.Equal(0, mount.Statistic("Writes"));
    }

    [SkippableFact]
    public void A_smaller_payload_makes_smaller_requests()
    {
        ServedMount mount = Serve("--payload 65536");
        mount.Run("dd if=/dev/zero of=$D bs=1M count=4 oflag=direct conv=notrunc status=none; dd if=$D of=/dev/null bs=1M count=4 iflag=direct status=none").Succeeded();
        var statistics = mount.Statistics();
        Assert.Equal((65536, 65536), (statistics["LargestRead"]!.GetValue<int>(), statistics["LargestWrite"]!.GetValue<int>()));
    }

    /// <summary>Reads and writes at depth, endlessly.</summary>
    private static Process BeginLoad(ServedMount mount)
    {
        Process load = mount.Begin("exec fio --name=x --filename=$D --size=64M --rw=randrw --bs=4k --direct=1 --ioengine=io_uring --iodepth=16 --numjobs=2 --time_based --runtime=1h --output-format=terse >fio.out");
        while (mount.Statistic("Writes") == 0) Assert.False(load.HasExited);
        return load;
    }

    private protected ServedMount Serve(string arguments = "", string prepare = "", bool asUser = false)
    {
        _mount = ServedMount.Start($"--transport {_transport} {arguments}", asUser, prepare);
        Assert.StartsWith("ready", _mount.FirstLine, StringComparison.Ordinal);
        return _mount;
    }
}

public sealed class DeviceMountTests() : RootMountTests(FuseTransport.Device)
{
    [SkippableFact]
    public void A_request_takes_two_system_calls()
    {
        ServedMount mount = Serve();
        Assert.InRange(mount.TransfersOf(() => mount.Run("dd if=$D of=/dev/null bs=4096 count=4096 iflag=direct status=none").Succeeded()), 8192, 8192 + 64);
    }

    [SkippableFact]
    public void One_descriptor_can_be_shared_by_all_threads()
    {
        ServedMount mount = Serve("--shared --threads 4");
        mount.Run("fio --name=x --filename=$D --size=64M --rw=randrw --bs=4k --direct=1 --ioengine=io_uring --iodepth=16 --io_size=32M --verify=crc32c --output-format=terse >/dev/null").Succeeded();
        var statistics = mount.Statistics();
        Assert.Equal((4, 1), (statistics["Threads"]!.GetValue<int>(), statistics["Devices"]!.GetValue<int>()));
    }

    [SkippableFact]
    public void Each_thread_has_a_descriptor_of_its_own_where_the_device_can_be_opened()
    {
        var statistics = Serve("--threads 4").Statistics();
        Assert.Equal((4, 4), (statistics["Threads"]!.GetValue<int>(), statistics["Devices"]!.GetValue<int>()));
    }
}
