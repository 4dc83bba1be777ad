// What stands in the way of mounting, in words and numbers.
using QcowFs.Native;

namespace QcowFs.Fuse.Tests.Mounts;

public sealed class MountFailureTests
{
    [SkippableTheory]
    [InlineData("", "/mnt/none", "MountPointMissing ENOENT /mnt/none: the mount point does not exist; create it")]
    [InlineData("", "/mnt/file/below", "MountPointMissing ENOTDIR /mnt/file/below: the mount point lies below something that is not a directory; choose another")]
    [InlineData("mkfifo /mnt/pipe", "/mnt/pipe", "MountPointUnusable EINVAL /mnt/pipe: the mount point is neither a directory nor a regular file; choose another")]
    [InlineData("umount /dev/fuse; mkdir /mnt/dev; touch /mnt/dev/null; mount --bind /dev/null /mnt/dev/null; mount --rbind /mnt/dev /dev", "/mnt/m", "DeviceMissing ENOENT /dev/fuse: the device does not exist; load the fuse module, or give the container /dev/fuse")]
    public void Mounting_fails_with_a_reason_and_advice(string prepare, string mountPoint, string expected)
    {
        ServedMount.Require();
        using ServedMount mount = ServedMount.Start(prepare: prepare, mountPoint: mountPoint);
        Assert.Equal("failed " + expected, mount.FirstLine);
    }

    [SkippableTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_mount_whose_server_has_died_is_named(bool asUser)
    {
        ServedMount.Require();
        const string prepare = """
            mkfifo /mnt/in; sleep 60 </dev/null >/mnt/in & holder=$!
            setsid $AS dotnet /mnt/server/QcowFs.Fuse.TestServer.dll /mnt/m </mnt/in >/mnt/out 2>&1 & first=$!
            until grep -q ready /mnt/out; do kill -0 $first; done
            kill -KILL $first; wait $first || true
            kill $holder
            """;
        string user = asUser ? "setpriv --reuid=65534 --regid=65534 --clear-groups" : "";
        using ServedMount mount = ServedMount.Start(asUser: asUser, prepare: $"AS='{user}'\n" + prepare);
        Assert.StartsWith("failed DeadMount", mount.FirstLine, StringComparison.Ordinal);
        Assert.EndsWith("/mnt/m: a mount whose server has died is in the way; unmount it first", mount.FirstLine, StringComparison.Ordinal);
    }

    [Fact]
    public void Unmounting_what_is_not_mounted_is_an_error()
    {
        string directory = Directory.CreateTempSubdirectory("qcowfs-fuse-").FullName;
        try
        {
            FuseMountException exception = Assert.Throws<FuseMountException>(() => FuseMount.Unmount(directory, lazy: false));
            Assert.True(exception.Failure is FuseMountFailure.NotMounted, exception.Message);
            exception = Assert.Throws<FuseMountException>(() => FuseMount.Unmount(directory + "/none", lazy: true));
            Assert.True(exception.Failure is FuseMountFailure.MountPointMissing or FuseMountFailure.NotMounted, exception.Message);
        }
        finally
        {
            Directory.Delete(directory);
        }
    }

    [Fact]
    public void Options_become_text()
    {
        var options = new FuseMountOptions { MountPoint = "/m", Source = "/a,b\\c d" };
        Assert.Equal("rw,nosuid,nodev,default_permissions,fsname=/a\\,b\\\\c d,subtype=qcowfs", MountOptionText.ForFusermount(options));
        Assert.Equal("fd=7,rootmode=40000,user_id=1,group_id=2,default_permissions", MountOptionText.ForKernel(options, 7, 0x41ED, 1, 2));
        Assert.Equal((nuint)6, MountOptionText.Flags(options));

        options = options with { AllowOther = true, ReadOnly = true, NoSuid = false, NoDev = false, NoExec = true, NoAccessTime = true, MaxRead = 65536 };
        Assert.Equal("ro,noexec,noatime,default_permissions,allow_other,max_read=65536,fsname=/a\\,b\\\\c d,subtype=qcowfs", MountOptionText.ForFusermount(options));
        Assert.Equal("fd=7,rootmode=100000,user_id=1,group_id=2,default_permissions,allow_other,max_read=65536", MountOptionText.ForKernel(options, 7, 0x81A4, 1, 2));
        Assert.Equal(Libc.MS_RDONLY | Libc.MS_NOEXEC | Libc.MS_NOATIME, MountOptionText.Flags(options));
    }
}
