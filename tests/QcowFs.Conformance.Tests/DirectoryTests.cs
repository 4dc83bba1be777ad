// A directory of images as SOURCE.
using System.Diagnostics;
using System.Text.Json;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class DirectoryTests
{
    [SkippableFact]
    public void A_thousand_images_hold_no_descriptor_and_come_and_go()
    {
        using Sandbox box = new();
        Tools.Require("qemu-img", "find");
        box.Shell("mkdir d m; qemu-img create -q -f qcow2 one 64M; cd d; tee {1..1000}.qcow2 < ../one >/dev/null").Expect();
        box.QcowFs("mount", "-w", "d", "m").Expect();
        int server = Assert.Single(box.Servers());
        Assert.Equal("1000", box.Shell("ls m | wc -l").Expect());
        Assert.Equal("1000 67108864", box.Shell("find m -maxdepth 1 -name '*.raw' -printf '%s\\n' | sort | uniq -c | xargs").Expect());
        Assert.Equal("3000", box.Shell("find m/.qcowfs -type f | wc -l").Expect());
        Assert.Equal("0", OpenImages());
        box.Shell(
            """
            rm d/5.qcow2; ls m >/dev/null; ! cat m/5.qcow2.raw 2>/dev/null
            cp one d/new.qcow2; test -e m/new.qcow2.raw
            mv d/new.qcow2 d/moved.qcow2; test -e m/moved.qcow2.raw
            test "$(ls m | wc -l)" = 1000
            """).Expect();
        using Process holder = box.Start("bash", "-c", "exec 3<>m/7.qcow2.raw; echo open; read wait; echo -n abc >&3; read wait");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        Assert.Equal("1", OpenImages());
        box.Shell("rm -r d/*").Expect();
        Assert.Equal("", box.Run("ls", "m").Expect());
        holder.StandardInput.WriteLine();
        holder.StandardInput.WriteLine();
        holder.WaitForExit();
        JsonElement receipt = JsonDocument.Parse(box.QcowFs("umount", "--json", "m").Expect()).RootElement;
        JsonElement image = Assert.Single(receipt.GetProperty("images").EnumerateArray());
        Assert.Equal(("7.qcow2", 3L), (image.GetProperty("name").GetString(), image.GetProperty("written").GetInt64()));

        string OpenImages() => box.Shell($"ls -l /proc/{server}/fd | grep -c '\\.qcow2' || true").Expect();
    }

    [SkippableFact]
    public void A_hostile_image_among_good_ones_harms_nobody()
    {
        using Sandbox box = new();
        box.Shell(
            """
            mkdir d m; cd d
            qemu-img create -q -f qcow2 good.qcow2 64M
            qemu-io -f qcow2 -c 'write -P 7 0 1M' good.qcow2 >/dev/null
            printf 'QFI\373\0\0\0\3' > cut.qcow2
            cp good.qcow2 huge.qcow2; printf '\177\377\377\377\377\377\377\377' | dd of=huge.qcow2 bs=1 seek=24 conv=notrunc status=none
            cp good.qcow2 l1.qcow2; printf '\377\377\377\377' | dd of=l1.qcow2 bs=1 seek=36 conv=notrunc status=none
            qemu-img create -q -f qcow2 -u -b self.qcow2 -F qcow2 tmp.qcow2 64M; mv tmp.qcow2 self.qcow2
            qemu-img create -q -f qcow2 -u -b /etc/passwd -F raw thief.qcow2 64M
            qemu-img create -q -f qcow2 -u -b ../out.qcow2 -F qcow2 outside.qcow2 64M
            qemu-img create -q -f qcow2 ../out.qcow2 64M
            ln -s ../out.qcow2 link-out.qcow2; ln -s good.qcow2 link-in.qcow2; ln -s nowhere dangling.qcow2; mkfifo pipe.qcow2
            head -c 100000 /dev/urandom > noise
            """).Expect();
        box.QcowFs("mount", "-w", "d", "m").Expect();
        Assert.Equal(
            "cut.qcow2.raw good.qcow2.raw huge.qcow2.raw l1.qcow2.raw link-in.qcow2.raw outside.qcow2.raw self.qcow2.raw thief.qcow2.raw",
            box.Shell("ls m | xargs").Expect());
        foreach (string broken in new[] { "cut", "huge", "l1", "self", "thief", "outside" })
        {
            Assert.Equal("0 0", box.Run("stat", "-c", "%s %a", $"m/{broken}.qcow2.raw").Expect());
            Assert.Contains("Input/output error", box.Run("cat", $"m/{broken}.qcow2.raw").Errors, StringComparison.Ordinal);
            Assert.Equal("1", box.Shell($"wc -l < m/.qcowfs/{broken}.qcow2/error.txt").Expect());
            Assert.StartsWith($"{box.Path}/d/{broken}.qcow2: ", box.Run("cat", $"m/.qcowfs/{broken}.qcow2/error.txt").Expect(), StringComparison.Ordinal);
        }
        Assert.Equal("good.qcow2.raw", box.Shell("cd m; find . -name '*.raw' -size +0 ! -name 'link*' | xargs -n1 basename").Expect());
        box.Shell("printf hello | dd of=m/good.qcow2.raw bs=1 seek=5M conv=notrunc,fsync status=none").Expect();
        Assert.Equal("good.qcow2: 5 B written, 0 B discarded, check: clean; closed and durable", box.QcowFs("umount", "m").Expect());
        box.Check("d/good.qcow2");
    }

    [SkippableFact]
    public void An_ordinary_users_unreadable_image_is_broken_and_readable_again_when_it_may_be_read()
    {
        using Sandbox box = new();
        Tools.Require("fusermount3");
        box.MakeDirectory("u", forUser: true);
        box.ShellAsUser("cd u; mkdir d m; qemu-img create -q -f qcow2 d/a.qcow2 1M; qemu-img create -q -f qcow2 d/b.qcow2 1M; chmod 0 d/a.qcow2; $QCOWFS mount d m").Expect();
        Assert.Equal("a.qcow2.raw 0 0\nb.qcow2.raw 1048576 400", box.ShellAsUser("cd u/m; stat -c '%n %s %a' *").Expect());
        Assert.EndsWith("a.qcow2: permission denied; run as a user who has access to it", box.ShellAsUser("cat u/m/.qcowfs/a.qcow2/error.txt").Expect(), StringComparison.Ordinal);
        box.ShellAsUser("chmod 600 u/d/a.qcow2; until [ \"$(stat -c %s u/m/a.qcow2.raw)\" = 1048576 ]; do ls u/m >/dev/null; done").Expect();
        box.QcowFsAsUser("umount", "u/m").Expect();
    }

    [SkippableFact]
    public void Bases_are_read_only_and_layers_are_used_together()
    {
        using Sandbox box = new();
        box.Shell(
            """
            mkdir d m; cd d; qemu-img create -q -f qcow2 base.qcow2 64M; qemu-io -f qcow2 -c 'write -P 1 0 1M' base.qcow2 >/dev/null
            qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 one.qcow2; qemu-img create -q -f qcow2 -b one.qcow2 -F qcow2 two.qcow2
            sha256sum base.qcow2 one.qcow2 > ../before; cd ..; $QCOWFS mount -w d m
            """).Expect();
        Assert.Equal("base.qcow2.raw 400\none.qcow2.raw 400\ntwo.qcow2.raw 600", box.Shell("cd m; stat -c '%n %a' *").Expect());
        Assert.Contains("Read-only", box.Shell("echo x > m/one.qcow2.raw").Errors, StringComparison.Ordinal);
        box.Shell("exec 3<m/base.qcow2.raw; cat m/one.qcow2.raw >/dev/null; printf abc | dd of=m/two.qcow2.raw bs=1 seek=100 conv=notrunc status=none; cmp -n 100 m/two.qcow2.raw m/base.qcow2.raw").Expect();
        box.QcowFs("umount", "m").Expect();
        box.Shell("cd d; sha256sum --quiet -c ../before").Expect();
        box.Check("d/two.qcow2");
    }

    [SkippableFact]
    public void The_source_may_hold_the_mount_point_or_be_it()
    {
        using Sandbox box = new();
        box.Shell("mkdir -p d/m; qemu-img create -q -f qcow2 d/a.qcow2 1M; ln -s m/a.qcow2.raw d/nested; $QCOWFS mount d d/m").Expect();
        Assert.Equal("a.qcow2.raw", box.Run("ls", "d/m").Expect());
        box.Shell("qemu-img create -q -f qcow2 d/b.qcow2 1M; cat d/m/b.qcow2.raw >/dev/null").Expect();
        box.QcowFs("umount", "d/m").Expect();
        Assert.Equal("qcowfs: d: the directory is not empty; choose an empty one, or give --nonempty", box.QcowFs("mount", "d", "d").ExpectError());
        box.QcowFs("mount", "-w", "--nonempty", "d", "d").Expect();
        Assert.Equal("a.qcow2.raw b.qcow2.raw", box.Shell("ls d | xargs").Expect());
        box.Shell("printf abc | dd of=d/a.qcow2.raw conv=notrunc status=none; cat d/.qcowfs/b.qcow2/info.json >/dev/null").Expect();
        box.QcowFs("umount", "d").Expect();
        box.Check("d/a.qcow2");
        Assert.Equal(
            "qcowfs: file: is a regular file, which can show one image only; give a directory", box.Shell("touch file; $QCOWFS mount d file").ExpectError());
    }

    [SkippableFact]
    public void Names_that_are_not_UTF_8_work_for_a_directory_and_for_an_image()
    {
        using Sandbox box = new();
        try
        {
            box.Shell(
                """
                mkdir d m; name=$(printf 'x\377 y.qcow2'); qemu-img create -q -f qcow2 plain 1M; mv plain "d/$name"
                $QCOWFS mount -w d m
                printf abc | dd of="m/$name.raw" conv=notrunc status=none; test "$(head -c 3 "m/$name.raw")" = abc
                grep -q qcow2 "m/.qcowfs/$name/info.json"
                $QCOWFS umount m > receipt; grep -qF 'x\xff y.qcow2: 3 B written' receipt
                $QCOWFS mount "d/$name" m; test "$(head -c 3 "m/$name.raw")" = abc; $QCOWFS list | grep -qF 'x\xff y.qcow2'
                $QCOWFS umount m
                $QCOWFS info "d/$name" | grep -q qcow2
                dir=$(printf 'p\377'); mkdir "$dir"; $QCOWFS mount "d/$name" "$dir"; ls "$dir" >/dev/null; $QCOWFS umount "$dir"
                """).Expect();
        }
        finally
        {
            box.Shell("find . -xdev -name '*[^ -~]*' -exec rm -rf {} + || true"); // the runtime cannot name them
        }
    }

    [SkippableFact]
    public void A_dead_servers_directory_is_cleaned_up()
    {
        using Sandbox box = new();
        box.Shell("mkdir d m; qemu-img create -q -f qcow2 d/a.qcow2 1M; $QCOWFS mount -w d m; exec 3<>m/a.qcow2.raw; printf abc >&3; $QCOWFS sync m").Expect(); // a commit that is cut off may leave leaks
        int server = Assert.Single(box.Servers());
        box.Run("kill", "-KILL", server.ToString()).Expect();
        Sandbox.WaitForEnd(server);
        Assert.Equal("qcowfs: m: its server does not answer; run \"qcowfs umount m\"", box.QcowFs("sync", "m").ExpectError());
        Assert.StartsWith("qcowfs: m: its server had died; the stale mount is removed; ", box.QcowFs("umount", "m").ExpectError(), StringComparison.Ordinal);
        Assert.Empty(Directory.GetFiles(box.Path + "/run/qcowfs", "*.sock"));
        box.Check("d/a.qcow2");
    }

    [SkippableFact]
    public void A_whole_tree_is_copied_by_ordinary_tools()
    {
        using Sandbox box = new();
        Tools.Require("rsync", "find", "sfdisk");
        box.Shell(
            """
            mkdir d m to; for i in 1 2 3; do qemu-img create -q -f qcow2 d/$i.qcow2 16M; qemu-io -f qcow2 -c "write -P $i 3M 2M" d/$i.qcow2 >/dev/null; done
            qemu-img snapshot -c 'a b' d/2.qcow2; $QCOWFS mount -w d m
            printf 'label: gpt\n,4M\n' | sfdisk -q --no-tell-kernel m/1.qcow2.raw
            rsync -a --sparse m/ to/rsync/; cp -a m to/cp
            for copy in rsync cp; do
                diff -r m/ to/$copy -x stats.json -x info.json
                test "$(cd to/$copy; ls | xargs)" = '1.qcow2.p1.raw 1.qcow2.raw 2.qcow2.raw 2.qcow2@a%20b.raw 3.qcow2.raw'
            done
            test "$(find m -type f | wc -l)" = 14
            $QCOWFS umount m
            """).Expect();
    }
}
