// What only FUSE over io_uring has: few system calls, and how it is refused.
using QcowFs.Testing.Host;

namespace QcowFs.Fuse.Tests.Mounts;

public sealed class RingMountTests : RootMountTests, IClassFixture<IoUringSwitch>
{
    private const int Blocks = 4096;

    public RingMountTests(IoUringSwitch kernel)
        : base(FuseTransport.IoUring)
        => kernel.Require();

    [SkippableFact]
    public void Requests_come_over_rings()
    {
        ServedMount mount = Serve();
        Assert.Contains("OverIoUring", mount.FirstLine, StringComparison.Ordinal);
        Assert.InRange(mount.TransfersOf(() => Read(mount, depth: 1)), 0, Blocks / 16);
        Assert.Equal("IoUring", Transport(mount));
        Assert.Empty(mount.Complaints);
    }

    /// <summary>One by one, each request takes the call that answers it and waits for the next; of several, one call takes all that have
    /// come.</summary>
    [SkippableTheory]
    [InlineData(1, 1.1)]
    [InlineData(32, 0.6)]
    public void A_request_takes_one_system_call_and_many_share_them(int depth, double most)
    {
        ServedMount mount = Serve();
        Read(mount, depth); // until it is quick
        Assert.InRange(mount.EntersOf(() => Read(mount, depth)) / (double)Blocks, 0, most);
    }

    /// <summary>The kernel goes on over the device; whoever had sent requests meanwhile sees nothing of it.</summary>
    [SkippableFact]
    public void Entries_that_the_kernel_refuses_lead_back_to_the_device()
    {
        ServedMount mount = Serve("--ring-cut 4096");
        Read(mount, depth: 8);
        Assert.Equal("Device", Transport(mount));
        mount.AwaitComplaints("no io_uring: invalid argument");
        Assert.True(mount.Statistic("Devices") > 1);
        mount.Tell("unmount");
        Assert.StartsWith("ended Unmounted", mount.AwaitEnd(), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void A_fixed_number_of_threads_serves_what_may_wait()
    {
        var statistics = Serve("--threads 3").Statistics();
        Assert.Equal(3 + 1 + Environment.ProcessorCount, statistics["Threads"]!.GetValue<int>()); // workers, the device's and the rings'
    }

    private static string Transport(ServedMount mount) => mount.Statistics()["Transport"]!.GetValue<string>();

    private static void Read(ServedMount mount, int depth) => mount.Run(
        $"fio --name=x --filename=$D --size={Blocks * 4}k --rw=read --bs=4k --direct=1 --ioengine=libaio --iodepth={depth} --iodepth_batch={depth} --iodepth_batch_complete_min={(depth + 1) / 2} --output-format=terse >/dev/null").Succeeded();
}

/// <summary>Where rings cannot be had.</summary>
public sealed class RingRefusalTests : IDisposable
{
    private ServedMount? _mount;

    public RingRefusalTests() => ServedMount.Require();

    public void Dispose() => _mount?.Dispose();

    [SkippableTheory]
    [InlineData("IoUring", "no io_uring: out of memory")]
    [InlineData("Automatic", "no io_uring: out of memory")]
    public void A_user_who_may_lock_no_memory_is_served_over_the_device(string transport, string complaint)
    {
        using var kernel = new IoUringSwitch();
        kernel.Require();
        AssertDevice(ServedMount.Start($"--transport {transport}", asUser: true, prepare: "ulimit -l 0"), complaint);
    }

    [SkippableTheory]
    [InlineData("IoUring", "no io_uring: the kernel does not offer it; it is there since Linux 6.14, and on where /sys/module/fuse/parameters/enable_uring is Y")]
    [InlineData("Automatic", "")]
    public void A_kernel_that_does_not_offer_it_serves_over_the_device(string transport, string complaint)
    {
        using var kernel = IoUringSwitch.Off();
        AssertDevice(ServedMount.Start($"--transport {transport}"), complaint);
    }

    private void AssertDevice(ServedMount mount, string complaint)
    {
        _mount = mount;
        mount.Run("head -c 10 $D | cmp -n 10 - /dev/zero").Succeeded();
        Assert.Equal("Device", mount.Statistics()["Transport"]!.GetValue<string>());
        mount.AwaitComplaints(complaint);
    }
}
