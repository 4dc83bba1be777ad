// Internal snapshots by the program, on images of QEMU and judged by QEMU.
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class SnapshotTests
{
    [SkippableFact]
    public void A_snapshot_of_QEMU_is_listed_and_read()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.Run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", "-c", "write -z 4M 1M", image).Expect();
        box.Run("qemu-img", "snapshot", "-c", "first", image).Expect();
        box.Run("qemu-io", "-f", "qcow2", "-c", "write -P 8 1M 4M", "-c", "write -P 9 60M 1M", image).Expect();
        box.Run("qemu-img", "snapshot", "-c", "second", image).Expect();
        box.Run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64M", image).Expect();
        string before = box.Hash(image);

        string[] lines = box.QcowFs("snapshot", "list", image).Expect().Split('\n');
        Assert.Equal(3, lines.Length);
        Assert.Matches("^1 +[0-9-]+ [0-9:]+ +64 MiB +0 B +first$", lines[1]);
        Assert.Contains("\"name\": \"second\"", box.QcowFs("snapshot", "list", "--json", image).Expect(), StringComparison.Ordinal);
        box.MakeDirectory("m");
        foreach ((string asked, string name) in (ReadOnlySpan<(string, string)>)[("first", "first"), ("2", "second")])
        {
            box.QcowFs("mount", $"--snapshot={asked}", image, "m").Expect();
            box.Run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", $"snapshot.name={name}", image, "expected").Expect();
            box.Run("cmp", $"m/{image}.raw", "expected").Expect();
            box.QcowFs("umount", "m").Expect();
        }
        Assert.Equal(before, box.Hash(image));
    }

    [SkippableFact]
    public void Snapshots_of_ours_are_QEMUs_too()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.Run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", image).Expect();
        string first = box.HashByQemu(image);
        Assert.Equal("", box.QcowFs("snapshot", "create", image, "first").Expect());
        box.Check(image);
        string raw = box.MountWritable(image);
        box.Run("dd", "if=/dev/urandom", $"of={raw}", "bs=1M", "count=8", "seek=2", "conv=notrunc", "status=none").Expect();
        box.UnmountAndCheck(image);
        string second = box.HashByQemu(image);
        box.QcowFs("snapshot", "create", image, "second").Expect();
        box.QcowFs("resize", image, "+64M").Expect();
        box.Check(image);
        Assert.Contains("second", box.Run("qemu-img", "snapshot", "-l", image).Expect(), StringComparison.Ordinal);
        box.QcowFs("snapshot", "apply", image, "first").Expect();
        box.Check(image);
        Assert.Equal(first, box.HashByQemu(image));
        box.Run("qemu-img", "snapshot", "-a", "second", image).Expect();
        box.Check(image);
        Assert.Equal(second, box.HashByQemu(image));
        box.QcowFs("snapshot", "delete", image, "1").Expect();
        box.Run("qemu-img", "snapshot", "-d", "second", image).Expect();
        box.Check(image);
        Assert.Equal(second, box.HashByQemu(image));
        Assert.Equal("", box.QcowFs("snapshot", "list", image).Expect());
    }

    [SkippableFact]
    public void What_cannot_be_is_refused_in_one_line()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.MakeDirectory("m");
        Assert.Equal(
            $"qcowfs: {image}: snapshot table: there is no snapshot \"none\"; see qcowfs snapshot list",
            box.QcowFs("mount", "--snapshot=none", image, "m").ExpectError());
        Assert.Equal(
            "qcowfs: --snapshot: contradicts --writable; mount it read-only, or make it the active disk with qcowfs snapshot apply",
            box.QcowFs("mount", "-w", "--snapshot=none", image, "m").ExpectError(64));
        Assert.StartsWith("qcowfs: ACTION: \"burn\" is not one of its values; ",
            box.QcowFs("snapshot", "burn", image).ExpectError(64), StringComparison.Ordinal);
        box.Run("qemu-img", "snapshot", "-c", "twice", image).Expect();
        box.Run("qemu-img", "snapshot", "-c", "twice", image).Expect();
        Assert.Contains("2 snapshots have the name \"twice\"; give the id of one: \"1\", \"2\"",
            box.QcowFs("mount", "--snapshot=twice", image, "m").ExpectError(), StringComparison.Ordinal);
        string raw = box.Make("raw", "1M");
        Assert.Equal("", box.QcowFs("snapshot", "list", raw, "-f", "raw").Expect());
        Assert.Equal($"qcowfs: {raw}: snapshot: a raw image cannot have snapshots; use a qcow2 image",
            box.QcowFs("snapshot", "create", "-f", "raw", raw, "one").ExpectError());
        Assert.Equal("qcowfs: NAME: missing; see \"qcowfs snapshot --help\"", box.QcowFs("snapshot", "create", image).ExpectError(64));
        Assert.StartsWith("qcowfs: x: one argument too many; ", box.QcowFs("snapshot", "list", image, "x").ExpectError(64), StringComparison.Ordinal);
        Assert.Equal("qcowfs: --json: is for list only; leave it out", box.QcowFs("snapshot", "delete", "--json", image, "1").ExpectError(64));
        Assert.Equal($"qcowfs: {image}: snapshot table: there is already a snapshot \"twice\"; choose another name, or delete that one first",
            box.QcowFs("snapshot", "create", image, "twice").ExpectError());
        box.QcowFs("mount", image, "m").Expect();
        Assert.StartsWith($"qcowfs: {image}: ", box.QcowFs("snapshot", "delete", image, "1").ExpectError(), StringComparison.Ordinal);
        box.QcowFs("umount", "m").Expect();
    }
}
