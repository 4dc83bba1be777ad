// Overlays over mounted images, and their commit, as people and QEMU see them.
using System.Globalization;
using System.Text.Json;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class OverlayTests
{
    private const string Size = "64M";

    [SkippableTheory]
    [MemberData(nameof(Disks.Formats), MemberType = typeof(Disks))]
    public void A_temporary_overlay_is_gone_with_the_mount(string format)
    {
        using Sandbox box = new();
        string image = MakeFilled(box, format);
        string before = box.Hash(image);
        string raw = box.MountReadOnly(image, "--overlay");
        Assert.Equal("600", box.Run("stat", "-c", "%a", raw).Expect());
        Change(box, raw);
        Assert.Equal($"{image}\nm\nrun\nrun-user", box.Shell("ls | grep -v -e fuse -e expected").Expect());
        Assert.Equal(
            $"{image}: 2.5 MiB written, 1 MiB discarded, in a temporary overlay that is gone; the image is as it was", box.QcowFs("umount", "m").Expect());
        Assert.Equal(before, box.Hash(image));
        Assert.Contains("in a temporary overlay that is gone", File.ReadAllText(box.Path + "/run/qcowfs/qcowfs.log"), StringComparison.Ordinal);
    }

    [SkippableTheory]
    [MemberData(nameof(Disks.Formats), MemberType = typeof(Disks))]
    public void A_kept_overlay_is_what_qemu_opens_and_is_resumed_and_committed(string format)
    {
        using Sandbox box = new();
        string image = MakeFilled(box, format);
        string before = box.Hash(image);
        string raw = box.MountReadOnly(image, "--overlay=o.qcow2");
        Change(box, raw);
        using (JsonDocument receipt = JsonDocument.Parse(box.QcowFs("umount", "--json", "m").Expect()))
        {
            JsonElement entry = Assert.Single(receipt.RootElement.GetProperty("images").EnumerateArray());
            Assert.Equal("clean", entry.GetProperty("check").GetString());
            Assert.Equal($"{box.Path}/o.qcow2", entry.GetProperty("overlay").GetString());
        }

        Assert.Equal(before, box.Hash(image));
        box.Check("o.qcow2");
        Assert.Equal(box.Hash("expected"), box.HashByQemu("o.qcow2"));

        // Resumed, from elsewhere and by other words for the same files; QEMU wrote to it in between.
        box.Run("qemu-io", "-c", "write -P 9 5M 64k", "o.qcow2").Expect();
        box.Shell("dd if=/dev/zero bs=64k count=1 status=none | tr '\\0' '\\11' | dd of=expected bs=64k seek=80 conv=notrunc status=none").Expect();
        box.Shell($"mkdir elsewhere; cd elsewhere; $QCOWFS mount --overlay=../o.qcow2 {Stated(format)} {box.Path}/./{image} ../m").Expect();
        box.Run("cmp", raw, "expected").Expect();
        box.QcowFs("umount", "m").Expect();

        Assert.Equal("", box.QcowFs("commit", "o.qcow2").Errors);
        Assert.Equal(box.Hash("expected"), box.HashByQemu(image));
        Assert.Equal(box.Hash("expected"), box.HashByQemu("o.qcow2"));
        box.Check(image);
        box.Check("o.qcow2");
        Assert.True(new FileInfo(box.Path + "/o.qcow2").Length < 1 << 20, "the overlay still holds data");
        box.MountReadOnly(image, "--overlay=o.qcow2");
        box.Run("cmp", raw, "expected").Expect();
        box.QcowFs("umount", "m").Expect();
    }

    /// <summary>The formats whose images QEMU, or nobody else, makes otherwise.</summary>
    [SkippableTheory]
    [InlineData("disk.vhdx", "qemu-img create -q -f vhdx disk.vhdx 64M; qemu-io -c 'write -P 1 0 8M' disk.vhdx >/dev/null")]
    [InlineData("disk.add-cow", "truncate -s 64M base.raw; qemu-io -f raw -c 'write -P 1 0 8M' base.raw >/dev/null; $QCOWFS create -f add-cow -b base.raw -F raw -o image_file=img.raw disk.add-cow")]
    public void Over_other_formats(string image, string make)
    {
        using Sandbox box = new();
        Tools.Require("qemu-img", "qemu-io");
        box.Shell(make + "; mkdir m").Expect();
        string before = box.Shell("sha256sum disk.* *.raw 2>/dev/null || true").Expect();
        box.QcowFs("mount", "--overlay", image, "m").Expect();
        box.Shell($"dd if=/dev/urandom of=m/{image}.raw bs=1M seek=3 count=4 conv=notrunc status=none").Expect();
        box.QcowFs("umount", "m").Expect();
        box.QcowFs("mount", "--overlay=o.qcow2", image, "m").Expect();
        box.Shell($"dd if=/dev/urandom of=m/{image}.raw bs=1M seek=3 count=4 conv=notrunc status=none; fallocate -p -o 1M -l 1M m/{image}.raw; cp m/{image}.raw expected").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(before, box.Shell("sha256sum disk.* *.raw 2>/dev/null || true").Expect());
        box.QcowFs("commit", "o.qcow2").Expect();
        foreach (string[] options in new string[][] { [], ["--overlay=o.qcow2"] })
        {
            box.QcowFs(["mount", .. options, image, "m"]).Expect();
            box.Run("cmp", $"m/{image}.raw", "expected").Expect();
            box.QcowFs("umount", "m").Expect();
        }

        box.QcowFs("check", image).Expect();
        box.QcowFs("check", "o.qcow2").Expect(); // QEMU opens no image over an add-cow
    }

    [SkippableFact]
    public void An_image_on_a_read_only_file_system()
    {
        using Sandbox box = new();
        box.MakeDirectory("medium");
        box.MakeDirectory("m");
        box.Shell($"cd medium; qemu-img create -q -f qcow2 disk.qcow2 {Size}; qemu-io -c 'write -P 5 1M 8M' disk.qcow2 >/dev/null").Expect();
        string before = box.Hash("medium/disk.qcow2");
        box.Shell("mount --bind medium medium; mount -o remount,bind,ro medium").Expect();
        foreach (string option in new[] { "--overlay", "--overlay=kept.qcow2" })
        {
            box.QcowFs("mount", option, "medium/disk.qcow2", "m").Expect();
            box.Shell("mkfs.ext4 -qF m/disk.qcow2.raw; e2fsck -fn m/disk.qcow2.raw").Expect();
            box.QcowFs("umount", "m").Expect();
        }

        box.Run("qemu-img", "check", "-q", "kept.qcow2").Expect();
        Assert.Contains($"backing file: {box.Path}/medium/disk.qcow2\n", box.Run("qemu-img", "info", "kept.qcow2").Expect(), StringComparison.Ordinal);
        Assert.Equal(before, box.Hash("medium/disk.qcow2"));
        Assert.Equal(
            "qcowfs: medium/o.qcow2: overlay: it lies on a read-only file system; give a file elsewhere, or --overlay for a temporary one",
            box.QcowFs("mount", "--overlay=medium/o.qcow2", "medium/disk.qcow2", "m").ExpectError());
    }

    [SkippableFact]
    public void A_base_that_changed_is_refused_with_advice()
    {
        using Sandbox box = new();
        string image = MakeFilled(box, "qcow2");
        box.MountReadOnly(image, "--overlay=o.qcow2");
        box.QcowFs("umount", "m").Expect();
        string overlay = box.Hash("o.qcow2");
        box.Shell($"cp -p {image} kept").Expect();
        string time = box.Run("stat", "-c", "%.9Y", image).Expect();

        box.Run("touch", image).Expect();
        Assert.Equal($"qcowfs: o.qcow2: overlay: the base \"{image}\" was modified since the overlay was made over it; if it was only touched, "
            + $"give it its time back: touch -d @{time} \"{image}\"", Refusal());
        box.Run("touch", "-d", "@" + time, image).Expect();
        box.MountReadOnly(image, "--overlay=o.qcow2");
        box.QcowFs("umount", "m").Expect();

        box.Shell($"qemu-io -c 'write -P 7 2M 64k' {image} >/dev/null; touch -r kept {image}").Expect();
        string swapped = $"qcowfs: o.qcow2: overlay: the content of the base \"{image}\", or of a file below it, changed since the overlay was made over it; "
            + "put the base back as it was, or use a new overlay";
        if (new FileInfo($"{box.Path}/{image}").Length == new FileInfo(box.Path + "/kept").Length) Assert.Equal(swapped, Refusal());

        box.Shell($"cp -p kept {image}; qemu-img resize -q {image} +1M; touch -r kept {image}").Expect();
        Assert.Equal(swapped, Refusal());
        box.Shell($"qemu-img create -q -f qcow2 {image} {Size}; qemu-io -c 'write 0 3M' {image} >/dev/null; touch -r kept {image}").Expect();
        Assert.Contains(" bytes and had ", Refusal(), StringComparison.Ordinal);
        Assert.Contains(" bytes and had ", box.QcowFs("commit", "o.qcow2").ExpectError(), StringComparison.Ordinal);
        box.Shell($"cp -p kept {image}").Expect();
        Assert.Equal(overlay, box.Hash("o.qcow2"));
        box.MountReadOnly(image, "--overlay=o.qcow2");
        box.QcowFs("umount", "m").Expect();

        string Refusal() => box.QcowFs("mount", "--overlay=o.qcow2", image, "m").ExpectError();
    }

    [SkippableFact]
    public void What_is_no_overlay_of_this_base_is_refused_and_stays()
    {
        using Sandbox box = new();
        string image = MakeFilled(box, "qcow2");
        box.MountReadOnly(image, "--overlay=o.qcow2");
        box.QcowFs("umount", "m").Expect();
        box.Shell($"cp -p {image} other.qcow2; qemu-img create -q -f qcow2 -F qcow2 -b {image} foreign.qcow2; echo text > text; mkdir directory").Expect();
        (string Option, string Image, string Line)[] cases =
        [
            ("--overlay=o.qcow2", "other.qcow2", $"o.qcow2: overlay: it lies over \"{image}\", not over \"other.qcow2\"; mount its own base, or if that was moved, tell it so with qemu-img rebase -u"),
            ("--overlay=foreign.qcow2", image, "foreign.qcow2: overlay: the image exists and is no overlay that qcowfs made; choose a name that is free"),
            ("--overlay=text", image, "text: overlay: the file exists and is not a qcow2 image; choose a name that is free"),
            ("--overlay=directory", image, "directory: is a directory; give an image file"),
            ($"--overlay={image}", image, $"{image}: overlay: it is the image itself; give another file, or mount the image with -w"),
            ("--overlay=none/o.qcow2", image, "none/o.qcow2: no such file or directory; check the path"),
        ];
        string hashes = box.Shell("sha256sum *.qcow2 text").Expect();
        foreach ((string option, string source, string line) in cases)
            Assert.Equal("qcowfs: " + line, box.QcowFs("mount", option, source, "m").ExpectError());
        Assert.Equal(hashes, box.Shell("sha256sum *.qcow2 text").Expect());
        Assert.Equal(
            "qcowfs: --overlay: contradicts --writable; give one of them: the image is written, or it stays as it is",
            box.QcowFs("mount", "-w", "--overlay", image, "m").ExpectError(64));
    }

    [SkippableFact]
    public void Base_and_overlay_are_locked()
    {
        using Sandbox box = new();
        string image = MakeFilled(box, "qcow2");
        box.MountReadOnly(image, "--overlay=o.qcow2");
        box.MakeDirectory("n");
        Assert.Contains("is in use", box.QcowFs("mount", "-w", image, "n").ExpectError(), StringComparison.Ordinal);
        Assert.Contains("is in use", box.QcowFs("mount", "--overlay=o.qcow2", image, "n").ExpectError(), StringComparison.Ordinal);
        Assert.Contains("is in use", box.QcowFs("commit", "o.qcow2").ExpectError(), StringComparison.Ordinal);
        Assert.Contains("lock", box.Run("qemu-io", "-c", "write 0 1k", image).Errors, StringComparison.Ordinal);
        // Readers and further overlays are welcome.
        box.QcowFs("mount", "--overlay=p.qcow2", image, "n").Expect();
        box.QcowFs("umount", "n").Expect();
        box.QcowFs("mount", image, "n").Expect();
        box.QcowFs("umount", "n").Expect();
        box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void No_space_for_the_overlay_loses_nothing()
    {
        using Sandbox box = new();
        string image = MakeFilled(box, "qcow2");
        box.Shell("mkdir m small; mount -t tmpfs -o size=128k none small").Expect();
        Assert.Matches(
            "^qcowfs: small/o.qcow2: write at byte [0-9]+ failed: no space left on device; free space on the host$",
            box.QcowFs("mount", "--overlay=small/o.qcow2", image, "m").ExpectError());
        Assert.Empty(Directory.GetFiles(box.Path + "/small"));
        box.Shell("mount -o remount,size=4M small").Expect();
        string raw = box.MountReadOnly(image, "--overlay=small/o.qcow2");
        Assert.Contains("No space left", box.Shell($"dd if=/dev/urandom of={raw} bs=1M count=8 conv=notrunc,fsync").Errors, StringComparison.Ordinal);
        box.Run("sha256sum", raw).Expect();
        box.Shell("mount -o remount,size=64M small").Expect();
        box.Shell($"dd if=/dev/zero bs=1M count=8 status=none | tr '\\0' '\\3' > new; dd if=new of={raw} bs=1M conv=notrunc,fsync status=none; cmp -n 8388608 new {raw}").Expect();
        box.QcowFs("umount", "m").Expect();
        box.Run("qemu-img", "check", "-q", "small/o.qcow2").Expect();
    }

    /// <summary>A server that is killed leaves a kept overlay that goes on, and nothing of a temporary one.</summary>
    [SkippableFact]
    public void A_killed_server()
    {
        using Sandbox box = new();
        string image = MakeFilled(box, "raw");
        string before = box.Hash(image);
        foreach (string option in new[] { "--overlay=o.qcow2", "--overlay" })
        {
            string raw = box.MountReadOnly(image, option);
            box.Shell($"dd if=expected of={raw} bs=1M count=8 conv=notrunc,fsync status=none").Expect();
            int server = Assert.Single(box.Servers());
            box.Run("kill", "-9", server.ToString(CultureInfo.InvariantCulture)).Expect();
            Sandbox.WaitForEnd(server);
            Assert.Contains("died", box.QcowFs("umount", "m").ExpectError(), StringComparison.Ordinal);
        }

        string resumed = box.MountReadOnly(image, "--overlay=o.qcow2");
        box.Run("cmp", "-n", (8 << 20).ToString(CultureInfo.InvariantCulture), resumed, "expected").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(before, box.Hash(image));
        Assert.Empty(Directory.GetFiles(box.Path, ".qcowfs-overlay*"));
    }

    [SkippableFact]
    public void Commit_into_a_smaller_base_in_a_directory_below_makes_it_grow()
    {
        using Sandbox box = new();
        Tools.Require("qemu-img", "qemu-io");
        box.Shell("mkdir below; qemu-img create -q -f qcow2 below/base.qcow2 8M; qemu-io -c 'write -P 1 0 8M' below/base.qcow2 >/dev/null; "
            + "qemu-img create -q -f qcow2 -F qcow2 -b below/base.qcow2 o.qcow2 16M; "
            + "qemu-io -c 'write -P 2 7M 2M' -c 'write -z 1M 1M' -c 'write -P 3 16776704 512' o.qcow2 >/dev/null").Expect();
        string expected = box.HashByQemu("o.qcow2");
        Assert.Equal(
            "qcowfs: o.qcow2: backing file: \"below/base.qcow2\": references are not allowed; use --allow-references=all if you trust the image",
            box.QcowFs("commit", "--allow-references=none", "o.qcow2").ExpectError());
        string said = box.QcowFs("commit", "o.qcow2").Expect();
        Assert.StartsWith("o.qcow2: 2.06 MiB written to below/base.qcow2, which grew to 16 MiB, 1 MiB made zero; the overlay is empty", said, StringComparison.Ordinal);
        Assert.Equal(expected, box.HashByQemu("o.qcow2"));
        Assert.Equal(expected, box.HashByQemu("below/base.qcow2"));
        box.Check("o.qcow2");
        box.Check("below/base.qcow2");
    }

    /// <summary>An image with data, and a file "expected" like its disk.</summary>
    private static string MakeFilled(Sandbox box, string format)
    {
        Tools.Require("qemu-io");
        string image = box.Make(format, Size);
        box.Shell($"qemu-io -f {format} -c 'write -P 1 0 1M' -c 'write -P 2 4M 8M' -c 'write -P 3 63M 1M' {image} >/dev/null; "
            + $"qemu-img convert -f {format} -O raw {image} expected").Expect();
        return image;
    }

    private static string Stated(string format) => format == "raw" ? "-f raw" : "";

    /// <summary>The same changes to the mounted disk and to the file "expected".</summary>
    private static void Change(Sandbox box, string raw)
    {
        box.Shell($"dd if=/dev/urandom of=new bs=512k count=5 status=none; "
            + $"for file in {raw} expected; do dd if=new of=$file bs=1000 seek=4100 conv=notrunc status=none; fallocate -p -o 10M -l 1M $file; done; "
            + $"rm new; cmp {raw} expected").Expect();
    }
}
