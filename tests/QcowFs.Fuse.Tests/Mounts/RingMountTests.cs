// What only FUSE over io_uring has: workers, placement, how rings are refused, and that they end.
using QcowFs.Testing.Host;

namespace QcowFs.Fuse.Tests.Mounts;

public sealed class RingMountTests : RootMountTests, IClassFixture<IoUringSwitch>
{
    public RingMountTests(IoUringSwitch kernel)
        : base(FuseTransport.IoUring)
        => kernel.Require();

    [SkippableFact]
    public void Requests_come_over_rings()
    {
        ServedMount mount = Serve();
        Assert.Equal("IoUring", mount.Statistics()["Transport"]!.GetValue<string>());
        Assert.Contains("OverIoUring", mount.FirstLine, StringComparison.Ordinal);
        Assert.Empty(mount.Complaints);
    }
}
