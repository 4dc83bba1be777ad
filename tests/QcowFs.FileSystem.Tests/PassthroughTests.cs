// When the kernel serves a disk by itself, how long, and what is refused meanwhile.
using Microsoft.Win32.SafeHandles;
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class PassthroughTests : IDisposable
{
    private const int ReadWrite = 2;

    private readonly TempDirectory _directory = new();
    private readonly SafeFileHandle _file;
    private readonly Kernel _kernel = new();

    public PassthroughTests() => _file = File.OpenHandle(_directory["disk"], FileMode.Create, FileAccess.ReadWrite);

    public void Dispose()
    {
        _file.Dispose();
        _directory.Dispose();
    }

    [Fact]
    public void All_opens_of_a_read_only_disk_share_one_id_until_the_last_close()
    {
        Mount mount = Serve(readOnly: true, PassthroughRule.ReadOnly);
        FuseOpenResult first = Open(mount);
        Assert.Equal((FuseOpenFlags.Passthrough, 1), (first.Flags, first.BackingId));
        FuseOpenResult second = Open(mount);
        Assert.Equal((FuseOpenFlags.Passthrough, 1), (second.Flags, second.BackingId));
        mount.System.Release(mount.Raw, first.Handle);
        Assert.Equal(["open"], _kernel.Calls);
        Assert.Contains("\"data-path\": \"passthrough\"", mount.ReadText(".qcowfs/disk.qcow2/stats.json"), StringComparison.Ordinal);
        mount.System.Release(mount.Raw, second.Handle);
        Assert.Equal(["open", "close 1"], _kernel.Calls);
        Assert.Contains("\"data-path\": null", mount.ReadText(".qcowfs/disk.qcow2/stats.json"), StringComparison.Ordinal);
        Assert.Equal(2, Open(mount).BackingId);
        Assert.DoesNotContain("lend", mount.Disk.Calls);
    }

    [Theory]
    [InlineData(true, PassthroughRule.None, false)]
    [InlineData(true, PassthroughRule.ReadOnly, true)]
    [InlineData(true, PassthroughRule.Writable, true)]
    [InlineData(false, PassthroughRule.None, false)]
    [InlineData(false, PassthroughRule.ReadOnly, false)]
    [InlineData(false, PassthroughRule.Writable, true)]
    public void The_rule_decides(bool readOnly, PassthroughRule rule, bool isPassed)
    {
        Mount mount = Serve(readOnly, rule);
        Assert.Equal(isPassed, Open(mount).Flags == FuseOpenFlags.Passthrough);
        Assert.Equal(isPassed ? ["open"] : [], _kernel.Calls);
    }

    [Fact]
    public void A_disk_that_is_no_file_is_served_here()
    {
        Mount mount = Serve(readOnly: true, PassthroughRule.ReadOnly);
        mount.Disk.IdentityFile = null;
        Assert.Equal(FuseOpenFlags.KeepCache, Open(mount).Flags & FuseOpenFlags.KeepCache);
        Assert.Empty(_kernel.Calls);
        Assert.Empty(mount.Log);
    }

    [Theory]
    [InlineData(Errno.EPERM, "CAP_SYS_ADMIN")]
    [InlineData(Errno.ELOOP, "stacked file system")]
    [InlineData(Errno.EINVAL, "without passthrough")]
    public void What_the_kernel_refuses_is_served_here_and_told_once(Errno errno, string because)
    {
        Mount mount = Serve(readOnly: false, PassthroughRule.Writable);
        _kernel.Refuses = errno;
        for (int i = 0; i < 3; i++)
        {
            FuseOpenResult opened = Open(mount, ReadWrite);
            Assert.Equal((FuseOpenFlags.DirectIo | FuseOpenFlags.ParallelDirectWrites, 0), (opened.Flags, opened.BackingId));
            mount.System.Release(mount.Raw, opened.Handle);
        }
        Assert.Contains(because, Assert.Single(mount.Log), StringComparison.Ordinal);
        Assert.Equal(mount.Disk.Calls.Count(static c => c == "lend"), mount.Disk.Calls.Count(static c => c == "take back"));
    }

    [Fact]
    public void Without_the_kernels_offer_nothing_is_tried()
    {
        Mount mount = new(new MemoryDisk(1 << 20) { IdentityFile = _file }, passthrough: PassthroughRule.Writable);
        mount.System.Connected(null);
        Assert.Equal(FuseOpenFlags.DirectIo, Open(mount).Flags & FuseOpenFlags.DirectIo);
        Assert.Contains("Linux 6.9", Assert.Single(mount.Log), StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_stays_as_it_was_first_opened()
    {
        Mount mount = Serve(readOnly: false, PassthroughRule.Writable);
        mount.Image.Freeze();
        FuseOpenResult frozen = Open(mount);
        mount.Image.Thaw();
        FuseOpenResult thawed = Open(mount, ReadWrite);
        Assert.Equal(FuseOpenFlags.DirectIo, frozen.Flags & thawed.Flags & FuseOpenFlags.DirectIo);
        mount.System.Release(mount.Raw, frozen.Handle);
        mount.System.Release(mount.Raw, thawed.Handle);
        Assert.Equal(FuseOpenFlags.Passthrough, Open(mount).Flags);
    }

    [Fact]
    public void What_would_end_the_identity_is_refused_while_the_kernel_may_write()
    {
        Mount mount = Serve(readOnly: false, PassthroughRule.Writable);
        FuseOpenResult opened = Open(mount);
        Action[] refused =
        [
            () => mount.Image.Resize(new SizeChange(2 << 20, 0), mayShrink: false),
            () => mount.Image.EditSnapshot(SnapshotAction.Create, "one"),
            () => mount.Image.Check(),
            mount.Image.Freeze,
        ];
        foreach (Action edit in refused)
            Assert.Contains("passthrough", Assert.Throws<ImageBusyException>(edit).Problem, StringComparison.Ordinal);
        Assert.Equal(["open rw"], mount.Hold.Calls);
        mount.System.Release(mount.Raw, opened.Handle);
        mount.Passthrough.FindMapper = static _ => null;
        foreach (Action edit in refused) edit();
        Assert.Contains("resize 2097152", mount.Hold.Calls);
    }

    [Fact]
    public void What_the_kernel_wrote_is_made_durable_by_every_sync_and_at_the_last_close()
    {
        Mount mount = Serve(readOnly: false, PassthroughRule.Writable);
        FuseOpenResult opened = Open(mount);
        for (int i = 0; i < 2; i++) Assert.Equal(Errno.None, mount.System.Sync(mount.Raw, opened.Handle, dataOnly: false));
        Assert.Equal(["lend", "sync", "sync"], mount.Disk.Calls);
        mount.System.Release(mount.Raw, opened.Handle);
        Assert.Equal(["lend", "sync", "sync", "take back", "sync"], mount.Disk.Calls);
        ImageReceipt receipt = Assert.Single(mount.System.Close());
        Assert.True(receipt.WrittenByKernel);
        Assert.Equal("close", mount.Disk.Calls[5]);
    }

    [Fact]
    public void A_map_that_outlives_the_close_is_in_the_way_too()
    {
        Mount mount = Serve(readOnly: false, PassthroughRule.Writable);
        string? mapper = "bash (process 7)";
        mount.Passthrough.FindMapper = inode => inode == mount.Raw ? mapper : null;
        mount.System.Release(mount.Raw, Open(mount).Handle);
        Assert.Contains("bash (process 7)", Assert.Throws<ImageBusyException>(mount.Image.Freeze).Problem, StringComparison.Ordinal);
        mapper = null;
        mount.Image.Freeze();
    }

    [Fact]
    public void An_image_that_was_lent_once_stays_open_and_locked_as_long_as_the_mount()
    {
        Mount mount = new(new MemoryDisk(1 << 20) { IdentityFile = _file }, staysOpen: false, passthrough: PassthroughRule.Writable);
        mount.System.Connected(_kernel);
        mount.System.Release(mount.Raw, Open(mount).Handle);
        Assert.True(mount.Image.IsOpen);
        Assert.Equal(0, mount.Image.Opens);
        Assert.False(mount.Hold.IsDisposed);
        mount.System.Close();
        Assert.True(mount.Hold.IsDisposed);
        Assert.Contains("close", mount.Disk.Calls);
    }

    [Fact]
    public void A_release_that_is_late_is_waited_for()
    {
        Mount mount = new(new MemoryDisk(1 << 20) { IdentityFile = _file }, passthrough: PassthroughRule.Writable, releasePatience: TimeSpan.FromMinutes(1));
        mount.System.Connected(_kernel);
        FuseOpenResult opened = Open(mount);
        Thread release = new(() => mount.System.Release(mount.Raw, opened.Handle));
        release.Start();
        mount.Image.Resize(new SizeChange(2 << 20, 0), mayShrink: false);
        release.Join();
    }

    private Mount Serve(bool readOnly, PassthroughRule rule)
    {
        Mount mount = new(new MemoryDisk(1 << 20, readOnly) { IdentityFile = _file }, passthrough: rule);
        mount.System.Connected(_kernel);
        return mount;
    }

    private static FuseOpenResult Open(Mount mount, int flags = 0)
    {
        Assert.Equal(Errno.None, mount.System.Open(mount.Raw, flags, out FuseOpenResult result));
        return result;
    }

    private sealed class Kernel : IBackingFiles
    {
        private int _last;

        public List<string> Calls { get; } = [];

        public Errno Refuses { get; set; }

        public Errno TryOpen(SafeFileHandle file, out int id)
        {
            Calls.Add("open");
            id = Refuses == Errno.None ? ++_last : 0;
            return Refuses;
        }

        public void Close(int id) => Calls.Add($"close {id}");
    }
}
