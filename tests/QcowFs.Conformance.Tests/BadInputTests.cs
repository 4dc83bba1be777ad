// Bad input of issue and contract: each ends in one line, word for word, the right exit code, and an image that was not touched.
using System.Diagnostics;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class BadInputTests
{
    private const string Damaged = "the image is damaged; restore it from a copy";

    [SkippableTheory]
    [InlineData("", "format: the file is empty; if it is a raw disk, state that with -f raw")]
    [InlineData("QFI\u00fb", "header at byte 0: the file ends at byte 4, expected 72 bytes or more; the image is truncated; restore it from a copy")]
    [InlineData("KDMV rest", "format at byte 0: the file looks like a VMDK image, which cannot be opened; convert it with qemu-img convert")]
    [InlineData("just some text", "format: no image format was recognised; if it is a raw disk, state that with -f raw")]
    public void A_file_that_is_no_image(string content, string message)
    {
        using Sandbox box = new();
        File.WriteAllBytes(box.Path + "/x.qcow2", [.. content.Select(c => (byte)c)]);
        Refuses(box, "x.qcow2", message);
    }

    [SkippableTheory]
    [InlineData(7, "09", "header at byte 4: version is 9, expected 2 or 3; open it with the software that made it")]
    [InlineData(23, "3f", "header at byte 20: cluster_bits is 63, expected 9 to 21; " + Damaged)]
    [InlineData(36, "7fffffff", "header at byte 36: l1_size is 2147483647, expected at most 4194304 (32 MiB); " + Damaged)]
    [InlineData(99, "07", "header at byte 96: refcount_order is 7, expected 0 to 6; " + Damaged)]
    [InlineData(79, "20", "header at byte 72: the image needs features that are not known here: bit 5; open it with the software that made it")]
    public void A_header_beyond_a_limit(int offset, string bytes, string message)
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.Patch(image, offset, Convert.FromHexString(bytes));
        Refuses(box, image, message);
    }

    [SkippableFact]
    public void A_corrupt_image_is_read_and_not_written()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.Patch(image, 79, [2]);
        string before = box.Hash(image);
        string raw = box.MountReadOnly(image);
        box.Run("cmp", "-n", "67108864", raw, "/dev/zero").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.StartsWith($"qcowfs: {image}: header at byte 72: the image is marked corrupt and can only be read; ", box.QcowFs("mount", "-w", image, "m").ExpectError(), StringComparison.Ordinal);
        Assert.Equal(before, box.Hash(image));
    }

    [SkippableFact]
    public void A_truncated_image_gives_EIO_where_data_is_gone_and_goes_on_elsewhere()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.Run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", "-c", "write -P 8 32M 4M", image).Expect();
        long length = new FileInfo(box.Path + "/" + image).Length;
        box.Run("truncate", "-s", (length - (2 << 20)).ToString(), image).Expect();
        string raw = box.MountReadOnly(image);
        Assert.Contains("Input/output error", box.Run("dd", $"if={raw}", "of=/dev/null", "bs=1M", "skip=34", "count=1").Errors, StringComparison.Ordinal);
        box.Shell($"cmp -n 4194304 {raw} <(head -c 4194304 /dev/zero | tr '\\0' '\\7')").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.StartsWith("corruption: ", box.QcowFs("check", image).Expect(2), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void A_chain_that_never_ends()
    {
        using Sandbox box = new();
        box.Shell(
            """
            qemu-img create -q -f qcow2 a.qcow2 1M; qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
            qemu-img rebase -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2
            """).Expect();
        Refuses(
            box, "b.qcow2",
            "backing file: \"b.qcow2\" is already part of the chain, which would never end; rebase the image with qemu-img rebase -u", "a.qcow2");
    }

    [SkippableFact]
    public void A_chain_of_1000_images()
    {
        using Sandbox box = new();
        box.Shell("qemu-img create -q -f qcow2 -u -b c0000.qcow2 -F qcow2 template 1M").Expect();
        byte[] template = File.ReadAllBytes(box.Path + "/template");
        int name = template.AsSpan().IndexOf("c0000.qcow2"u8);
        for (int i = 1000; i > 0; i--)
        {
            System.Text.Encoding.ASCII.GetBytes($"c{i - 1:0000}", template.AsSpan(name));
            File.WriteAllBytes($"{box.Path}/c{i:0000}.qcow2", template);
        }
        box.Shell("qemu-img create -q -f qcow2 c0000.qcow2 1M").Expect();
        box.MakeDirectory("m");
        string error = box.QcowFs("mount", "c1000.qcow2", "m").ExpectError();
        Assert.Contains("the chain has more than ", error, StringComparison.Ordinal);
    }

    [SkippableTheory]
    [InlineData("gone.qcow2", "it does not exist; put it back, or rebase the image with qemu-img rebase")]
    [InlineData("../base.qcow2", "it lies outside the image's directory \"sub/\"; use --allow-references=all if you trust the image")]
    [InlineData("link", "it lies outside the image's directory \"sub/\"; use --allow-references=all if you trust the image")]
    [InlineData("nbd://host/x", "it names a protocol, which is never followed; rebase the image onto a local file with qemu-img rebase -u")]
    [InlineData("json:{}", "it is a json: description, which is never followed; rebase the image onto a local file with qemu-img rebase -u")]
    public void A_backing_file_that_cannot_be_had(string backing, string message)
    {
        using Sandbox box = new();
        box.MakeDirectory("sub");
        box.Shell(
            $"""
            qemu-img create -q -f qcow2 base.qcow2 1M; ln -s ../base.qcow2 sub/link
            qemu-img create -q -f qcow2 -u -b '{backing}' -F qcow2 sub/over.qcow2 1M
            """).Expect();
        Refuses(box, "sub/over.qcow2", $"backing file: \"{backing}\": {message}");
    }

    [SkippableFact]
    public void A_policy_of_the_user_decides_about_backing_files()
    {
        using Sandbox box = new();
        box.MakeDirectory("sub");
        box.MakeDirectory("m");
        box.Shell("qemu-img create -q -f qcow2 base.qcow2 1M; qemu-img create -q -f qcow2 -b ../base.qcow2 -F qcow2 sub/over.qcow2").Expect();
        box.QcowFs("mount", "--allow-references=all", "sub/over.qcow2", "m").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Contains("references are not allowed", box.QcowFs("mount", "--allow-references=none", "sub/over.qcow2", "m").ExpectError(), StringComparison.Ordinal);
        Assert.Contains("refused: it lies outside", box.QcowFs("inspect", "sub/over.qcow2").Expect(), StringComparison.Ordinal);
        Assert.Contains(": allowed", box.QcowFs("inspect", "--allow-references=all", "sub/over.qcow2").Expect(), StringComparison.Ordinal);
        Assert.Equal("1048576", box.Shell("$QCOWFS info --json sub/over.qcow2 | grep virtual-size | tr -dc 0-9").Expect());
    }

    [SkippableFact]
    public void Mount_points()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "1M");
        box.Shell("mkdir full; touch full/x; mkfifo fifo").Expect();
        Check("gone", "no such mount point; create an empty directory there first");
        Check("full", "the directory is not empty; choose an empty one, or give --nonempty");
        Check("fifo", "neither a directory nor a regular file; choose another mount point");
        Check("full/x/y", "not a directory; choose another mount point");
        box.QcowFs("mount", "--nonempty", image, "full").Expect();
        Assert.Equal($".qcowfs\n{image}.raw", box.Run("ls", "-A", "full").Expect());
        Check("full", $"{box.Path}/{image} is mounted there already; run \"qcowfs umount full\" first");
        box.QcowFs("umount", "full").Expect();

        void Check(string mountPoint, string message) =>
            Assert.Equal($"qcowfs: {mountPoint}: {message}", box.QcowFs("mount", image, mountPoint).ExpectError());
    }

    [SkippableFact]
    public void What_is_no_file()
    {
        using Sandbox box = new();
        box.Shell("mkdir m d; mkfifo fifo").Expect();
        Check("gone.qcow2", "no such file or directory; check the path");
        Check("fifo", "neither a regular file nor a block device; give an image file");

        void Check(string source, string message) =>
            Assert.Equal($"qcowfs: {source}: {message}", box.QcowFs("mount", source, "m").ExpectError());
    }

    [SkippableFact]
    public void Umount_of_what_is_not_ours()
    {
        using Sandbox box = new();
        box.Shell("mkdir d t; mount -t tmpfs none t").Expect();
        Assert.Equal("qcowfs: gone: no such file or directory; see \"qcowfs list\"", box.QcowFs("umount", "gone").ExpectError());
        Assert.Equal("qcowfs: d: nothing is mounted there; see \"qcowfs list\"", box.QcowFs("umount", "d").ExpectError());
        Assert.Equal("qcowfs: t: the mount there is tmpfs, not ours; run \"umount t\"", box.QcowFs("umount", "t").ExpectError());
        box.Run("umount", "t").Expect();
    }

    [SkippableFact]
    public void Permissions()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "1M");
        box.MakeDirectory("m", forUser: true);
        box.Run("chmod", "600", image).Expect();
        const string refused = "permission denied; run as a user who has access to it";
        Assert.Equal($"qcowfs: {image}: {refused}", box.QcowFsAsUser("mount", image, "m").ExpectError());
        box.Run("chmod", "644", image).Expect();
        Assert.Equal($"qcowfs: {image}: {refused}", box.QcowFsAsUser("mount", "-w", image, "m").ExpectError());
        box.QcowFsAsUser("mount", image, "m").Expect();
        box.QcowFsAsUser("umount", "m").Expect();
    }

    [SkippableFact]
    public void An_image_in_use_is_refused_and_its_holder_named()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "1M");
        box.MountWritable(image);
        box.MakeDirectory("n");
        string us = $"qcowfs (process {Assert.Single(box.Servers())})";
        Assert.Equal(
            $"qcowfs: {image}: the file is in use by {us}; stop it or unmount it first", box.QcowFs("mount", "-w", image, "n").ExpectError());
        string forWriting = $"qcowfs: {image}: the file is in use for writing by {us}; stop it or unmount it first";
        Assert.Equal(forWriting, box.QcowFs("mount", image, "n").ExpectError());
        Assert.Equal(forWriting, box.QcowFs("map", image).ExpectError());
        Assert.Equal(
            $"qcowfs: {image}: the file is in use by {us}; stop it or unmount it first", box.QcowFs("check", "--repair", image).ExpectError());
        Assert.Contains("Failed to get", box.Run("qemu-io", "-c", "read 0 1", image).Errors, StringComparison.Ordinal);
        Assert.Contains("Failed to get", box.Run("qemu-img", "check", image).Errors, StringComparison.Ordinal);
        Assert.Contains($"open in:          {us}, for writing", box.QcowFs("info", image).Expect(), StringComparison.Ordinal);
        box.UnmountAndCheck(image);
        using Process qemu = box.Start("qemu-io", image);
        qemu.StandardInput.WriteLine("read 0 1");
        Assert.Contains("read 1/1 bytes", qemu.StandardOutput.ReadLine()!.Replace("qemu-io> ", "", StringComparison.Ordinal), StringComparison.Ordinal);
        Assert.Equal(
            $"qcowfs: {image}: the file is in use by qemu-io (process {qemu.Id}); stop it or unmount it first",
            box.QcowFs("mount", "-w", image, "n").ExpectError());
        qemu.StandardInput.WriteLine("quit");
        qemu.WaitForExit();
    }

    [SkippableTheory]
    [InlineData("gone.qcow2", 1)]
    [InlineData("noise", 1)]
    public void A_check_that_cannot_be_made_ends_with_1(string image, int exitCode)
    {
        using Sandbox box = new();
        File.WriteAllText(box.Path + "/noise", "noise");
        Outcome outcome = box.QcowFs("check", image);
        Assert.StartsWith($"qcowfs: {image}: ", outcome.ExpectError(exitCode), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void Check_tells_leaks_by_its_exit_code()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        Assert.Equal($"{image}: clean\n0 of 1024 clusters allocated (0.0 %)", box.QcowFs("check", image).Expect());
        box.Run("qemu-io", "-f", "qcow2", "-c", "write 0 128k", image).Expect();
        // One more cluster in the file, counted and not used.
        box.Run("truncate", "-s", "512k", image).Expect();
        byte[] bytes = File.ReadAllBytes(box.Path + "/" + image);
        long block = System.Buffers.Binary.BinaryPrimitives.ReadInt64BigEndian(bytes.AsSpan(0x10000));
        box.Patch(image, (int)block + (2 * 7), [0, 1]);
        Assert.Equal(3, box.Run("qemu-img", "check", image).ExitCode);
        Assert.Contains($"{image}: 1 leaked", box.QcowFs("check", image).Expect(3), StringComparison.Ordinal);
        using System.Text.Json.JsonDocument json = System.Text.Json.JsonDocument.Parse(box.QcowFs("check", "--json", image).Expect(3));
        Assert.Equal(1, json.RootElement.GetProperty("leaks").GetInt64());
        Assert.Equal("leak", json.RootElement.GetProperty("findings")[0].GetProperty("severity").GetString());
        File.WriteAllBytes(box.Path + "/raw.img", new byte[1024]);
        box.QcowFs("check", "-f", "raw", "raw.img").Expect();
    }

    /// <summary>Mounting fails with this line, read-only and writable, and the file stays as it was.</summary>
    private static void Refuses(Sandbox box, string image, string message, string? blamed = null)
    {
        if (!Directory.Exists(box.Path + "/m")) box.MakeDirectory("m");
        string before = box.Hash(image);
        foreach (string[] options in new string[][] { [], ["-w"] })
            Assert.Equal($"qcowfs: {blamed ?? image}: {message}", box.QcowFs(["mount", .. options, image, "m"]).ExpectError());
        Assert.Equal(before, box.Hash(image));
        box.WaitForServersToEnd();
    }
}
