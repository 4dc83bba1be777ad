// Names of snapshots' files.
using System.Text;
using QcowFs.Images;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class SnapshotNamesTests
{
    private readonly List<string> _warnings = [];

    [Theory]
    [InlineData("before", "i@before.raw")]
    [InlineData("a/b", "i@a%2Fb.raw")]
    [InlineData("50% @home", "i@50%25%20%40home.raw")]
    [InlineData("tab\tnl\nnul\0del\u007F", "i@tab%09nl%0Anul%00del%7F.raw")]
    [InlineData("\u00e9\u20ac\U0001F600", "i@\u00e9\u20ac\U0001F600.raw")]
    [InlineData("..", "i@...raw")]
    [InlineData("", "i@id-1.raw")]
    public void Each_byte_is_kept_or_escaped(string name, string file) => Assert.Equal([file], Names(Snapshot("1", name)));

    [Fact]
    public void Bytes_that_are_not_UTF_8_are_escaped_one_by_one()
    {
        SnapshotFacts odd = Snapshot("1", "\uFFFD") with { RawName = new byte[] { (byte)'a', 0xFF, 0xC3, 0xA9, 0xE2, 0x82 } };
        Assert.Equal(["i@a%FF\u00e9%E2%82.raw"], Names(odd));
    }

    [Fact]
    public void Names_that_are_taken_or_too_long_give_way_to_ids()
    {
        Assert.Equal(
            ["i@id-1.raw", "i@id-2.raw", "i@other.raw"], Names(Snapshot("1", "same"), Snapshot("2", "same"), Snapshot("3", "other")));
        string longest = new('x', 255 - "i@.raw".Length);
        Assert.Equal([$"i@{longest}.raw"], Names(Snapshot("1", longest)));
        Assert.Equal(["i@id-1.raw"], Names(Snapshot("1", longest + "x")));
        Assert.Equal(["i@id-1.raw"], Names(Snapshot("1", new string('/', 90)))); // three bytes each
        Assert.Empty(_warnings);
        Assert.Empty(Names(Snapshot(longest, "")));
        Assert.Single(_warnings);
    }

    [Fact]
    public void What_finds_the_snapshot_finds_no_other()
    {
        // The name of one is the id of the other: by id alone.
        SnapshotFacts[] hostile = [Snapshot("1", ""), Snapshot("2", "1")];
        Assert.Equal([("1", true), ("1", false)], SnapshotNames.Of("i"u8, hostile, _warnings.Add).Select(n => (n.Key, n.KeyIsId)));
        // Two ids alike, and no name that would do.
        Assert.Equal(["i@named.raw"], Names(Snapshot("7", ""), Snapshot("7", "named")));
        Assert.Contains("\"7\"", Assert.Single(_warnings), StringComparison.Ordinal);
        // Different bytes, the same text.
        SnapshotFacts a = Snapshot("1", "\uFFFD") with { RawName = new byte[] { 0xFE } };
        SnapshotFacts b = Snapshot("2", "\uFFFD") with { RawName = new byte[] { 0xFF } };
        Assert.Equal(["i@%FE.raw", "i@%FF.raw"], Names(a, b));
        Assert.All(SnapshotNames.Of("i"u8, [a, b], _warnings.Add), n => Assert.True(n.KeyIsId));
    }

    private List<string> Names(params SnapshotFacts[] snapshots) =>
        [.. SnapshotNames.Of("i"u8, snapshots, _warnings.Add).Select(n => Encoding.UTF8.GetString(n.FileName))];

    private static SnapshotFacts Snapshot(string id, string name) => new(id, name, 0, 0, 0, 0, null, 1 << 20);
}
