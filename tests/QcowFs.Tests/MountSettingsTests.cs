// What mount options mean together.
using QcowFs.CommandLine;
using QcowFs.Commands;
using QcowFs.FileSystem;
using QcowFs.Images;
using QcowFs.Server;
using Xunit;

namespace QcowFs.Tests;

public sealed class MountSettingsTests
{
    [Fact]
    public void Defaults_are_those_of_the_contract()
    {
        MountSettings settings = Read();
        Assert.False(settings.IsWritable);
        Assert.Null(settings.Open.Format);
        Assert.Equal(ReferencePolicy.Directory, settings.Open.References);
        Assert.Equal(32L << 20, settings.Open.CacheSize);
        Assert.False(settings.Open.DirectIo);
        Assert.Equal(0x100u, settings.Tree.FileMode);
        Assert.False(settings.Tree.AlwaysDirect);
        Assert.Equal(0, settings.ThreadCount);
        Assert.False(settings.StaysInForeground || settings.OthersAllowed || settings.MayCoverFiles);
        Assert.Null(settings.LogFile);
    }

    [Fact]
    public void A_snapshot_is_read_only()
    {
        Assert.Equal("before", Read("--snapshot=before").Open.Snapshot);
        Assert.Equal(ExitCode.WrongUsage, Assert.Throws<CommandFailure>(() => Read("-w", "--snapshot=before")).ExitCode);
    }

    [Fact]
    public void Options_reach_their_place()
    {
        MountSettings settings = Read(
            "-w", "-f", "raw", "--allow-references=all", "--allow-other", "--uid=7", "--gid=8", "--mode=0640", "--cache-size=64M",
            "--cache=none", "--threads=3", "--transport=uring", "--direct-io=on", "--log=x.log", "--foreground", "--nonempty", "-o", "noexec,noatime");
        Assert.True(settings.IsWritable && settings.Open.Writable);
        Assert.Equal("raw", settings.Open.Format);
        Assert.Equal(ReferencePolicy.All, settings.Open.References);
        Assert.True(settings.OthersAllowed);
        Assert.Equal(7u, settings.Tree.Uid);
        Assert.Equal(8u, settings.Tree.Gid);
        Assert.Equal(0x1A0u, settings.Tree.FileMode);
        Assert.Equal(64L << 20, settings.Open.CacheSize);
        Assert.True(settings.Open.DirectIo);
        Assert.Equal((3, Fuse.FuseTransport.IoUring), (settings.ThreadCount, settings.TransportChoice));
        Assert.True(settings.Tree.AlwaysDirect);
        Assert.Equal("x.log", settings.LogFile);
        Assert.True(settings.StaysInForeground && settings.MayCoverFiles && settings.NoExec && settings.NoAccessTime);
    }

    [Theory]
    [InlineData(null, "-w")]
    [InlineData(64L << 20, "-w", "--stream")]
    [InlineData(10L << 20, "-w", "--stream=10M")]
    [InlineData(3L << 20, "-o", "writable,stream=3M")]
    public void Streaming_has_a_rate(long? rate, params string[] words) => Assert.Equal(rate, Read(words).Open.StreamRate);

    [Fact]
    public void An_overlay_is_writable_and_its_image_is_not()
    {
        MountSettings settings = Read("--overlay", "--snapshot=before");
        Assert.True(settings.IsWritable && settings.HasOverlay && !settings.Open.Writable);
        Assert.Null(settings.OverlayFile);
        Assert.Equal(0x180u, settings.Tree.FileMode);
        Assert.Equal("o.qcow2", Read("-o", "rw,overlay=o.qcow2").OverlayFile);
    }

    [Fact]
    public void Owners_are_given_by_name_too_and_parts_of_the_tree_left_out()
    {
        MountSettings settings = Read("-o", "uid=root,gid=daemon,no_partitions");
        Assert.Equal((0u, 1u), (settings.Tree.Uid, settings.Tree.Gid));
        Assert.False(settings.Tree.ShowsPartitions);
        Assert.True(settings.Tree.ShowsSnapshots);
        Assert.False(Read("--snapshot=one").Tree.ShowsSnapshots);
    }

    [Fact]
    public void A_journal_has_16_MiB_unless_stated()
    {
        Assert.Null(Read("-w").Open.Journal);
        Assert.Equal(16L << 20, Read("-w", "--journal").Open.Journal!.RingBytes);
        Assert.Equal(16L << 20, Read("-o", "writable,journal").Open.Journal!.RingBytes);
        Assert.Equal(2L << 20, Read("-w", "--journal=2M").Open.Journal!.RingBytes);
        Assert.True(Read("-w", "--journal", "--dedup").Open is { Journal: not null, Dedup: not null });
    }

    [Theory]
    [InlineData(PassthroughRule.ReadOnly, false)]
    [InlineData(PassthroughRule.ReadOnly, true, "--reflink-view")]
    [InlineData(PassthroughRule.ReadOnly, false, "-w")]
    [InlineData(PassthroughRule.Growing, false, "-w", "--growable")]
    [InlineData(PassthroughRule.ReadOnly, false, "--overlay", "--growable")]
    [InlineData(PassthroughRule.Writable, false, "-w", "--growable", "--passthrough")]
    [InlineData(PassthroughRule.Writable, false, "-w", "--passthrough")]
    [InlineData(PassthroughRule.Writable, true, "-o", "writable,passthrough,reflink_view")]
    [InlineData(PassthroughRule.None, false, "--cache=none")]
    [InlineData(PassthroughRule.None, true, "--direct-io=on", "--reflink-view")]
    public void The_kernel_serves_what_it_may(PassthroughRule rule, bool views, params string[] words)
    {
        MountSettings settings = Read(words);
        Assert.Equal((rule, views), (settings.PassthroughRule, settings.MakesViews));
    }

    [Fact]
    public void Writable_files_are_0600() => Assert.Equal(0x180u, Read("-o", "writable").Tree.FileMode);

    [Theory]
    [InlineData("-o ro: contradicts --writable; give one of them", "-w", "-o", "ro")]
    [InlineData("--stream: needs --writable; give -w too", "--stream")]
    [InlineData("--growable: needs --writable; give -w too, or --overlay", "--growable")]
    [InlineData("--passthrough: needs --writable; give -w too; what is read-only needs no option for it", "--passthrough")]
    [InlineData("--passthrough: is not possible with --cache=none; leave one of them out: the kernel would use the page cache", "-w", "--passthrough", "--cache=none")]
    [InlineData("--stream: 1024 bytes a second are too few; give at least 64k", "-w", "--stream=1k")]
    [InlineData("--stream: \"much\" is not a size; give a number of bytes, or one with k, M, G or T", "-w", "--stream=much")]
    [InlineData("--direct-io: off is not possible with --writable; leave it out: cached pages would go stale", "-w", "--direct-io=off")]
    [InlineData("--overlay: contradicts --writable; give one of them: the image is written, or it stays as it is", "-w", "--overlay")]
    [InlineData("--overlay: names no file; give --overlay=FILE, or --overlay for a temporary one", "--overlay=")]
    [InlineData("-o ro: contradicts --overlay; give one of them", "-o", "ro,overlay")]
    [InlineData("--snapshot: contradicts --overlay=FILE; give --overlay without a file", "--overlay=x", "--snapshot=s")]
    [InlineData("--direct-io: off is not possible with --overlay; leave it out: cached pages would go stale", "--overlay", "--direct-io=off")]
    [InlineData("--format: \"vmdk\" is not one of its values; use raw, qcow2, add-cow, vhdx", "-f", "vmdk")]
    [InlineData("--allow-references: \"some\" is not one of its values; use none, dir, all", "--allow-references=some")]
    [InlineData("--cache: \"yes\" is not one of its values; use host, none", "--cache=yes")]
    [InlineData("--cache-size: \"12Q\" is not a size; give a number of bytes, or one with k, M, G or T", "--cache-size=12Q")]
    [InlineData("--cache-size: 4096 bytes are too few; give at least 1M", "--cache-size=4k")]
    [InlineData("--journal: a journal is for writing; add -w, or leave it out: mounts without -w read through a journal that is there", "--journal")]
    [InlineData("--journal: 4096 bytes are not a journal's size; give 1M to 64M", "-w", "--journal=4k")]
    [InlineData("--journal: 1073741824 bytes are not a journal's size; give 1M to 64M", "-w", "--journal=1G")]
    [InlineData("--journal: \"x\" is not a size; give a number of bytes, or one with k, M, G or T", "-w", "--journal=x")]
    [InlineData("--threads: \"0\" is not a number from 1 to 256; see \"qcowfs mount --help\"", "--threads=0")]
    [InlineData("--transport: \"ring\" is not one of its values; use auto, device, uring", "--transport=ring")]
    [InlineData("--threads: \"x\" is not a number from 1 to 256; see \"qcowfs mount --help\"", "--threads=x")]
    [InlineData("--mode: \"0888\" is not an octal mode up to 0777; give one such as 0640", "--mode=0888")]
    [InlineData("--mode: \"1777\" is not an octal mode up to 0777; give one such as 0640", "--mode=1777")]
    [InlineData("--uid: \"no such user\" is neither a number nor a name that the system knows; see \"qcowfs mount --help\"", "--uid=no such user")]
    [InlineData("--gid: \"4294967295\" is neither a number nor a name that the system knows; see \"qcowfs mount --help\"", "--gid=4294967295")]
    public void Wrong_usage(string message, params string[] words)
    {
        CommandFailure failure = Assert.Throws<CommandFailure>(() => Read(words));
        Assert.Equal(message, failure.Message);
        Assert.Equal(64, failure.ExitCode);
    }

    private static MountSettings Read(params string[] words) =>
        MountSettings.From(LineParser.Parse(MountCommand.Table, [.. words, "disk.img", "/mnt"]));
}
