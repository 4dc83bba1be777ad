// mount(8), umount(8) and fstab through the helpers that `make install` installs; who may use a mount.
using System.Diagnostics;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class HelperTests
{
    // The helpers as installed, in the sandbox's own view of /usr/sbin.
    private const string Install =
        """
        root=$(dirname "$(dirname "$QCOWFS")"); mkdir sbin-upper sbin-work bin
        ln -s "$QCOWFS" bin/qcowfs
        mount -t tmpfs none sbin-work; mkdir sbin-work/upper sbin-work/work
        for helper in mount.qcowfs umount.fuse.qcowfs; do
            sed "s|@bindir@|$PWD/bin|g" "$PACKAGING/$helper" > sbin-work/upper/$helper; chmod 755 sbin-work/upper/$helper
        done
        ln -s mount.qcowfs sbin-work/upper/mount.fuse.qcowfs
        mount -t overlay -o lowerdir=/usr/sbin,upperdir=$PWD/sbin-work/upper,workdir=$PWD/sbin-work/work none /usr/sbin
        touch fstab; mount --bind fstab /etc/fstab

        """;

    [SkippableFact]
    public void Fstab_mounts_and_plain_umount_waits_until_all_is_durable()
    {
        using Sandbox box = new();
        InstallHelpers(box);
        box.Shell(
            """
            mkdir d m n; qemu-img create -q -f qcow2 d/a.qcow2 64M; qemu-img create -q -f qcow2 one.qcow2 64M
            echo "$PWD/d $PWD/m qcowfs defaults,writable,nofail,x-systemd.automount 0 0" > fstab
            echo "$PWD/one.qcow2 $PWD/n fuse.qcowfs rw,writable,noexec,uid=daemon,mode=0640 0 0" >> fstab
            mount m; mount n
            test "$(stat -c '%U %a' n/one.qcow2.raw)" = 'daemon 640'
            grep ' n fuse.qcowfs\|/n fuse.qcowfs' /proc/mounts | grep -q noexec
            dd if=/dev/urandom of=m/a.qcow2.raw bs=1M count=8 conv=notrunc status=none
            sha256sum < m/a.qcow2.raw > before
            umount m
            qemu-img check -q d/a.qcow2; qemu-img convert -O raw d/a.qcow2 out; sha256sum < out | cmp - before
            mount -t qcowfs d m; umount m; mount -t fuse.qcowfs -o ro d m
            test "$(umount -v m | grep -c 'no image was used')" = 1
            umount n
            """).Expect();
        box.WaitForServersToEnd();
    }

    [SkippableFact]
    public void A_busy_mount_names_its_holder_and_not_umount_itself()
    {
        using Sandbox box = new();
        InstallHelpers(box);
        string image = box.Make("raw", "1M");
        string raw = box.MountWritable(image);
        using Process holder = box.Start("bash", "-c", $"exec 3<>{raw}; echo open; read wait");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        Outcome busy = box.Run("umount", "m");
        Assert.NotEqual(0, busy.ExitCode);
        Assert.Contains($"in use by bash (process {holder.Id}); end that first, or give --lazy", busy.Errors, StringComparison.Ordinal);
        holder.StandardInput.WriteLine();
        holder.WaitForExit();
        box.Run("umount", "m").Expect();
        box.WaitForServersToEnd();
    }

    [SkippableFact]
    public void Root_unmounts_a_users_mount_wherever_its_runtime_directory_is()
    {
        using Sandbox box = new();
        Tools.Require("fusermount3");
        box.MakeDirectory("u", forUser: true);
        box.ShellAsUser("mkdir u/m; $QCOWFS create -f qcow2 u/disk.qcow2 1M; $QCOWFS mount -w u/disk.qcow2 u/m; printf abc | dd of=u/m/disk.qcow2.raw conv=notrunc status=none").Expect();
        Assert.Contains("3 B written", box.Shell("unset XDG_RUNTIME_DIR; $QCOWFS umount u/m").Expect(), StringComparison.Ordinal);
        box.Check("u/disk.qcow2");
    }

    [SkippableFact]
    public void Others_are_let_in_when_they_are_to_be()
    {
        using Sandbox box = new();
        string image = box.Make("raw", "1M");
        box.MountReadOnly(image);
        Assert.Contains("Permission denied", box.RunAsUser("cat", $"m/{image}.raw").Errors, StringComparison.Ordinal);
        box.QcowFs("umount", "m").Expect();
        box.MountWritable(image, "--allow-other", "--uid=65534", "--gid=daemon", "--mode=0640");
        Assert.Equal("65534 1 640", box.Run("stat", "-c", "%u %g %a", $"m/{image}.raw").Expect());
        Assert.Equal("750", box.Run("stat", "-c", "%a", "m").Expect());
        box.ShellAsUser($"printf abc | dd of=m/{image}.raw conv=notrunc status=none; ls m/.qcowfs/{image} >/dev/null").Expect();
        Assert.Contains("Permission denied", box.Run("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "cat", $"m/{image}.raw").Errors, StringComparison.Ordinal);
        Assert.Equal("abc", box.Run("setpriv", "--reuid=1000", "--regid=1", "--clear-groups", "head", "-c", "3", $"m/{image}.raw").Expect());
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(
            "qcowfs: --uid: \"nosuchuser\" is neither a number nor a name that the system knows; see \"qcowfs mount --help\"",
            box.QcowFs("mount", "--uid=nosuchuser", "-f", "raw", image, "m").ExpectError(64));
        Tools.Require("fusermount3");
        Assert.Equal(
            "qcowfs: " + box.Path + "/u: allow_other is not allowed to ordinary users; put a line user_allow_other into /etc/fuse.conf, or mount as root",
            box.ShellAsUser($"cp {image} {box.MakeDirectory("u", forUser: true)}/x 2>/dev/null; mkdir u/m; qemu-img create -q -f raw u/y 1M; cd u; $QCOWFS mount --allow-other -f raw y m").ExpectError().Replace("/u/m:", "/u:", StringComparison.Ordinal));
    }

    private static void InstallHelpers(Sandbox box)
    {
        Tools.Require(File.ReadAllText("/proc/filesystems").Contains("overlay", StringComparison.Ordinal), "there is no overlay file system");
        box.Shell($"PACKAGING={Sandbox.Packaging}; {Install}").Expect();
    }
}
