// The kernel's list of mounts, and what errors look like.
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Server;
using QcowFs.Storage;
using Xunit;

namespace QcowFs.Tests;

public sealed class MountTableTests
{
    [Fact]
    public void A_line_of_mountinfo_is_taken_apart()
    {
        Assert.True(MountTable.TryParse(
            @"63 43 0:39 / /tmp/a\040b\134c rw,nosuid,nodev,relatime shared:7 - fuse.qcowfs /img/x\040y.qcow2 ro,user_id=1000,group_id=1000",
            out MountEntry? entry));
        Assert.Equal("63", entry.Id);
        Assert.Equal("0:39", entry.Device);
        Assert.Equal(@"/tmp/a b\c", entry.MountPoint);
        Assert.Equal("/img/x y.qcow2", entry.Source);
        Assert.True(entry.IsOurs);
        Assert.Equal(1000u, entry.UserId);
        Assert.Equal("mount-39.sock", RuntimeDirectory.SocketName(entry.Device));
    }

    [Theory]
    [InlineData("")]
    [InlineData("63 43 0:39 / /tmp rw - fuse")]
    [InlineData("63 43 0:39 / - fuse.qcowfs x rw")]
    public void What_is_not_a_line_is_left_out(string line) => Assert.False(MountTable.TryParse(line, out _));

    [Fact]
    public void Every_mount_of_this_machine_is_understood()
    {
        Assert.Equal(File.ReadAllLines("/proc/self/mountinfo").Length, MountTable.Read().Count);
    }

    [Fact]
    public void Faults_are_one_line_that_says_what_to_do()
    {
        Check("a.img: no such file or directory; check the path", new StorageException(Errno.ENOENT, "open", "a.img"));
        Check("a.img: permission denied; run as a user who has access to it", new StorageException(Errno.EACCES, "open", "a.img"));
        Check("a.img: is a directory; give an image file", new StorageException(Errno.EISDIR, "open", "a.img"));
        Check("a.img: write at byte 512 failed: no space left on device; free space on the host", new StorageException(Errno.ENOSPC, "write", "a.img", 512, 10));
        Check("a.img: sync failed: input/output error; see the host's log (dmesg)", new StorageException(Errno.EIO, "sync", "a.img"));
        Check("a.img: header at byte 4: bad; do", new ImageFormatException("a.img", "header", 4, "bad", "do"));
        Check("internal error: InvalidOperationException: a b; please report it", new InvalidOperationException("a\nb"));

        static void Check(string line, Exception fault) => Assert.Equal(line, ErrorLine.For(fault));
    }
}
