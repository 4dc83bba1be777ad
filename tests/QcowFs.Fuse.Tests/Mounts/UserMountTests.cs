// The same as an ordinary user, mounted by fusermount3.
using QcowFs.Testing.Host;

namespace QcowFs.Fuse.Tests.Mounts;

public abstract class UserMountTests : IDisposable
{
    private readonly FuseTransport _transport;
    private ServedMount? _mount;

    protected UserMountTests(FuseTransport transport)
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
    public void An_ordinary_user_mounts_writes_reads_and_unmounts()
    {
        ServedMount mount = Serve();
        Assert.Contains("ready direct=False", mount.FirstLine, StringComparison.Ordinal);
        mount.Run("""
            set -e
            test "$(id -u)" = 65534
            test "$(stat -c '%u %g %a' $D)" = '65534 65534 600'
            tr '\0' z </dev/zero | dd of=$D bs=1M count=4 iflag=fullblock oflag=direct conv=notrunc status=none
            test "$(dd if=$D bs=1M skip=3 count=1 iflag=direct status=none | tail -c 2)" = zz
            grep ' /mnt/m ' /proc/self/mountinfo | grep -q 'user_id=65534,group_id=65534,default_permissions'
            """).Succeeded();
        Assert.Equal((1 << 20, 0), (mount.Statistic("LargestWrite"), mount.Statistic("MisalignedBuffers")));
        Assert.Equal(_transport == FuseTransport.Device, mount.Statistic("Devices") > 1);
        mount.Tell("unmount");
        Assert.StartsWith("ended Unmounted", mount.AwaitEnd(), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void Commas_and_backslashes_in_the_source_survive_the_mount_program()
    {
        ServedMount mount = Serve("--source '/a,allow_other,b\\c' --noexec --noatime --read-only");
        string line = mount.Run("grep ' /mnt/m ' /proc/self/mountinfo").Succeeded();
        Assert.Contains(" ro,nosuid,nodev,noexec,noatime - fuse.qcowfs /a,allow_other,b\\134c ro,user_id=65534,group_id=65534,default_permissions\n", line, StringComparison.Ordinal);
    }

    [SkippableFact]
    public void Root_cannot_enter_without_allow_other_and_can_with_it()
    {
        ServedMount mount = Serve();
        Assert.Contains("Permission denied", mount.Run("cat $D", asRoot: true).Error, StringComparison.Ordinal);
        mount.Dispose();
        _mount = ServedMount.Start($"--transport {_transport} --allow-other", asUser: true, prepare: "echo user_allow_other >/mnt/conf; mount --bind /mnt/conf /etc/fuse.conf");
        Assert.StartsWith("ready", _mount.FirstLine, StringComparison.Ordinal);
        _mount.Run("head -c 10 $D | cmp -n 10 - /dev/zero", asRoot: true).Succeeded();
    }

    [SkippableFact]
    public void Without_user_allow_other_the_error_says_what_to_do()
        => AssertFails(
            "AllowOtherForbidden None /mnt/m: allow_other is not allowed to ordinary users; put a line user_allow_other into /etc/fuse.conf, or mount as root",
            "--allow-other", prepare: "echo >/mnt/conf; mount --bind /mnt/conf /etc/fuse.conf");

    [SkippableFact]
    public void A_file_can_be_covered_by_its_owner()
    {
        _mount = ServedMount.Start($"--transport {_transport}", asUser: true, mountPoint: "/mnt/file");
        Assert.Contains("ready direct=False", _mount.FirstLine, StringComparison.Ordinal);
        _mount.Run("test $(stat -c %s file) = 67108864 && head -c 10 file | cmp -n 10 - /dev/zero").Succeeded();
        _mount.Tell("unmount");
        Assert.StartsWith("ended Unmounted", _mount.AwaitEnd(), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void A_mount_point_of_another_user_is_refused()
        => AssertFails(
            "NotPermitted None /mnt/m: an ordinary user needs write access to the mount point; choose a directory of your own",
            prepare: "chown root:root /mnt/m");

    [SkippableFact]
    public void Too_many_mounts_are_refused()
        => AssertFails(
            "TooManyMounts None /mnt/m: you have as many FUSE mounts as are allowed; unmount one, or raise mount_max in /etc/fuse.conf",
            prepare: "echo 'mount_max = 0' >/mnt/conf; mount --bind /mnt/conf /etc/fuse.conf");

    [SkippableFact]
    public void A_device_that_the_user_cannot_open_is_named()
        => AssertFails(
            "DeviceForbidden None /mnt/m: /dev/fuse cannot be opened; check that it exists and has mode 0666",
            prepare: "chmod 600 /mnt/fuse");

    [SkippableFact]
    public void A_mount_program_that_cannot_be_run_is_named()
        => AssertFails(
            "MountProgramMissing EACCES /mnt/m: fusermount3 cannot be started; reinstall the package fuse3, or mount as root",
            prepare: "touch /mnt/none; mount --bind /mnt/none $(readlink -f $(command -v fusermount3))");

    [SkippableFact]
    public void A_busy_mount_is_not_unmounted()
    {
        ServedMount mount = Serve();
        using var holder = mount.Begin($"exec setpriv --reuid={ServedMount.OrdinaryUser} --regid={ServedMount.OrdinaryUser} --clear-groups bash -c 'exec 3<{ServedMount.MountPoint}/disk; echo open; read line'");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        Assert.Equal("failed Busy EBUSY /mnt/m: the mount is in use; close what is open there, or unmount lazily", mount.Ask("unmount"));
        Assert.Equal("detached", mount.Ask("lazy"));
        Assert.NotEqual(0, mount.Run("grep ' /mnt/m ' /proc/self/mountinfo").ExitCode);
        holder.StandardInput.WriteLine();
        Assert.StartsWith("ended Unmounted", mount.AwaitEnd(), StringComparison.Ordinal);
    }

    private ServedMount Serve(string arguments = "", string prepare = "")
    {
        _mount = ServedMount.Start($"--transport {_transport} {arguments}", asUser: true, prepare);
        Assert.StartsWith("ready", _mount.FirstLine, StringComparison.Ordinal);
        return _mount;
    }

    private void AssertFails(string expected, string arguments = "", string prepare = "")
    {
        _mount = ServedMount.Start(arguments, asUser: true, prepare);
        Assert.Equal("failed " + expected, _mount.FirstLine);
    }
}

public sealed class UserDeviceMountTests() : UserMountTests(FuseTransport.Device);

public sealed class UserRingMountTests : UserMountTests, IClassFixture<IoUringSwitch>
{
    public UserRingMountTests(IoUringSwitch kernel)
        : base(FuseTransport.IoUring)
        => kernel.Require();
}
