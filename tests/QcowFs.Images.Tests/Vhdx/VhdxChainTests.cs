// Differencing disks: random chains against a plain model and an independent reader; parents that are found, and parents that are not
// the right ones.
using QcowFs.Images.Vhdx;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Vhdx;

public sealed class VhdxChainTests : IDisposable
{
    private const int Size = (7 << 20) + (256 << 10);

    private readonly TempDirectory _temp = new();
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);
    private readonly ImageCreator _creator = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    [Theory]
    [InlineData("logical_sector_size=512", "block_size=1M", 1)]
    [InlineData("logical_sector_size=4096", "block_size=1M", 2)]
    [InlineData("logical_sector_size=512", "block_size=2M", 3)]
    [InlineData("logical_sector_size=4096", "block_size=8M", 4)]
    public void Random_chains_read_as_a_plain_model(string baseOptions, string childOptions, ulong first)
    {
        foreach (ulong seed in Seeds.Between(first, first))
        {
            Random random = new(unchecked((int)seed));
            byte[] model = new byte[Size];
            Create("0.vhdx", null, Size, baseOptions, "block_size=1M");
            for (int depth = 0; depth < 4; depth++)
            {
                if (depth > 0)
                    Create($"{depth}.vhdx", $"{depth - 1}.vhdx", -1, childOptions);
                using (IDiskImage image = _opener.Open(_temp[$"{depth}.vhdx"], new OpenOptions { Writable = true, CacheSize = 1 << 20 }))
                {
                    for (int i = 0; i < 40; i++)
                        Change(image, model, random);
                    byte[] live = new byte[Size];
                    image.Read(0, live);
                    Assert.True(live.AsSpan().SequenceEqual(model), $"seed {seed}, depth {depth}: {live.AsSpan().CommonPrefixLength(model)}");
                    image.Close();
                }

                VhdxReader? witness = null;
                for (int i = 0; i <= depth; i++)
                {
                    witness = new VhdxReader(File.ReadAllBytes(_temp[$"{i}.vhdx"]), witness);
                    Assert.Equal(0, _opener.Check(_temp[$"{i}.vhdx"]).ExitCode);
                }

                Assert.True(witness!.ReadAll().AsSpan().SequenceEqual(model), $"seed {seed}, depth {depth}: the independent reader reads other bytes");
            }
        }
    }

    /// <summary>A child whose log was not closed is replayed with its parents below it, in memory too.</summary>
    [Fact]
    public void A_dirty_child_over_a_dirty_parent_is_replayed_in_memory()
    {
        Create("base.vhdx", null, Size);
        byte[] model = new byte[Size];
        Abandon("base.vhdx", 0);
        Create("child.vhdx", "base.vhdx", -1);
        Abandon("child.vhdx", 100_000);
        string[] before = [Hash("base.vhdx"), Hash("child.vhdx")];
        using (IDiskImage image = _opener.Open(_temp["child.vhdx"], new OpenOptions()))
        {
            byte[] read = new byte[Size];
            image.Read(0, read);
            Assert.True(read.AsSpan().SequenceEqual(model));
            Assert.Contains("replayed in memory", image.Info.Recovery, StringComparison.Ordinal);
            Assert.Contains("replayed in memory", image.Info.Backing!.Recovery, StringComparison.Ordinal);
        }

        Assert.Equal(before, new[] { Hash("base.vhdx"), Hash("child.vhdx") });

        void Abandon(string name, int offset)
        {
            using IDiskImage image = _opener.Open(_temp[name], new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero });
            byte[] bytes = Pattern.Bytes(6, offset, 3000);
            bytes.CopyTo(model, offset);
            image.Write(offset, bytes);
            image.Sync();
        }
    }

    [Fact]
    public void A_parent_that_was_written_behind_the_childs_back_is_refused()
    {
        Chain();
        Write("base.vhdx");
        string problem = Refusal();
        Assert.Contains("parent locator: the parent \"base.vhdx\" has the data write GUID", problem, StringComparison.Ordinal);
        Assert.EndsWith("it was written to after the child was made, or is another disk; restore the parent as it was then; with this one the disk would hold wrong data", problem, StringComparison.Ordinal);
        Assert.Contains("was written to after the child was made", Assert.Single(_opener.Inspect(_temp["child.vhdx"], null, ReferencePolicy.Directory)).Problem!, StringComparison.Ordinal);
        Assert.Throws<ImageFormatException>(() => _opener.ReadChainInfo(_temp["child.vhdx"], null, ReferencePolicy.Directory));
        CheckReport report = _opener.Check(_temp["child.vhdx"]);
        Assert.Equal((2, "parent"), (report.ExitCode, Assert.Single(report.Findings).Kind));
        Assert.Contains("was written to after the child was made", report.Findings[0].Message, StringComparison.Ordinal);
    }

    /// <summary>Opening a chain, for writing too, must not change the parent; nor does opening the parent for writing without a write.</summary>
    [Fact]
    public void A_parent_that_was_only_opened_is_still_the_parent()
    {
        Chain();
        string before = Hash("base.vhdx");
        Write("child.vhdx");
        using (IDiskImage image = _opener.Open(_temp["base.vhdx"], new OpenOptions { Writable = true }))
            image.Close();
        Assert.Equal(before, Hash("base.vhdx"));
        _opener.Open(_temp["child.vhdx"], new OpenOptions()).Dispose();
    }

    [Fact]
    public void A_second_linkage_is_accepted_too()
    {
        Chain();
        Write("base.vhdx");
        Guid now = new VhdxReader(File.ReadAllBytes(_temp["base.vhdx"])).DataWriteGuid;
        Relocate("child.vhdx", old => [new(ParentLocator.SecondLinkageKey, now.ToString("B")), .. old]);
        _opener.Open(_temp["child.vhdx"], new OpenOptions()).Dispose();
    }

    [Fact]
    public void A_missing_parent_is_told_by_its_name()
    {
        Chain();
        File.Move(_temp["base.vhdx"], _temp["elsewhere.vhdx"]);
        Assert.Contains("backing file: \".\\x5cbase.vhdx\": it does not exist; put it back", Refusal(), StringComparison.Ordinal);
        CheckReport report = _opener.Check(_temp["child.vhdx"]);
        Assert.Equal((1, "parent-missing"), (report.ExitCode, Assert.Single(report.Findings).Kind));
    }

    /// <summary>Paths of Windows lead to the file of that name beside the child.</summary>
    [Theory]
    [InlineData(ParentLocator.RelativePathKey, @"..\gone\base.vhdx")]
    [InlineData(ParentLocator.AbsolutePathKey, @"\\?\C:\Hyper-V\Virtual Hard Disks\base.vhdx")]
    [InlineData(ParentLocator.AbsolutePathKey, @"C:\base.vhdx")]
    [InlineData(ParentLocator.VolumePathKey, @"\\?\Volume{5f3e6d21-0000-0000-0000-100000000000}\disks\base.vhdx")]
    public void Paths_of_windows_lead_beside_the_child(string key, string path)
    {
        Chain();
        Relocate("child.vhdx", _ => [new(key, path)]);
        using IDiskImage image = _opener.Open(_temp["child.vhdx"], new OpenOptions());
        Assert.Equal(path, image.Info.BackingName);
        byte[] read = new byte[100];
        image.Read(0, read);
        Assert.Equal(Pattern.Bytes(4, 0, 100), read);
    }

    /// <summary>The first path that leads to a file counts, and each goes through the gate.</summary>
    [Fact]
    public void A_path_out_of_the_directory_is_refused_by_the_policy()
    {
        Directory.CreateDirectory(_temp["sub"]);
        Create("base.vhdx", null, Size);
        Write("base.vhdx");
        Create("sub/child.vhdx", "../base.vhdx", -1);
        Assert.Contains("it lies outside the image's directory", Refusal("sub/child.vhdx"), StringComparison.Ordinal);
        _opener.Open(_temp["sub/child.vhdx"], new OpenOptions { References = ReferencePolicy.All }).Dispose();
        Assert.Contains("references are not allowed", Assert.Throws<ImageFormatException>(
            () => _opener.Open(_temp["sub/child.vhdx"], new OpenOptions { References = ReferencePolicy.None })).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Children_take_their_parents_size_identity_and_sectors()
    {
        Create("base.vhdx", null, Size, "logical_sector_size=4096");
        Create("child.vhdx", _temp["base.vhdx"], -1);
        VhdxReader child = new(File.ReadAllBytes(_temp["child.vhdx"]));
        Assert.Equal((Size, @".\base.vhdx"), (child.Length, child.Locator["relative_path"]));
        ImageFileFacts facts = _opener.ReadInfo(_temp["child.vhdx"]);
        Assert.Equal(_opener.ReadInfo(_temp["base.vhdx"]).FormatSpecific.First(f => f.Key == "disk-id"), facts.FormatSpecific.First(f => f.Key == "disk-id"));
        Assert.Contains(facts.FormatSpecific, f => f is { Key: "logical-sector-size", Value: 4096L });
        Assert.StartsWith("SIZE: a disk with a parent has its parent's size", Wrong("base.vhdx", 1 << 20), StringComparison.Ordinal);
        Assert.StartsWith("subformat: a disk with a parent cannot be fixed", Wrong("base.vhdx", -1, "subformat=fixed"), StringComparison.Ordinal);
        Assert.StartsWith("logical_sector_size: the parent has sectors of 4096 bytes", Wrong("base.vhdx", -1, "logical_sector_size=512"), StringComparison.Ordinal);
        _creator.Create(new ImageRequest { Path = _temp["raw"], Format = "qcow2", Size = Size });
        Assert.StartsWith("--backing: the parent of a VHDX image must be a VHDX image", Wrong("raw", -1), StringComparison.Ordinal);

        string Wrong(string parent, long size, params string[] options) =>
            Assert.Throws<ImageOptionException>(() => Create("wrong.vhdx", parent, size, options)).Message;
    }

    private void Chain()
    {
        Create("base.vhdx", null, Size);
        Write("base.vhdx");
        Create("child.vhdx", "base.vhdx", -1);
    }

    private void Create(string name, string? parent, long size, params string[] options) => _creator.Create(new ImageRequest
    {
        Path = _temp[name],
        Format = "vhdx",
        Size = size,
        BackingName = parent,
        Options = [.. options.Select(o => new KeyValuePair<string, string>(o.Split('=')[0], o.Split('=')[1]))],
    });

    private void Write(string name)
    {
        using IDiskImage image = _opener.Open(_temp[name], new OpenOptions { Writable = true });
        image.Write(0, Pattern.Bytes(4, 0, 5000));
        image.Close();
    }

    private string Refusal(string name = "child.vhdx") =>
        Assert.Throws<ImageFormatException>(() => _opener.Open(_temp[name], new OpenOptions())).Message;

    private string Hash(string name) => Convert.ToHexString(System.Security.Cryptography.SHA256.HashData(File.ReadAllBytes(_temp[name])));

    /// <summary>Gives a child other keys in its parent locator, which is the last item of its metadata.</summary>
    private void Relocate(string name, Func<IReadOnlyList<KeyValuePair<string, string>>, IReadOnlyList<KeyValuePair<string, string>>> change)
    {
        VhdxReader reader = new(File.ReadAllBytes(_temp[name]));
        VhdxFile file = new(File.ReadAllBytes(_temp[name]));
        List<KeyValuePair<string, string>> old = [.. reader.Locator.Where(pair => pair.Key != ParentLocator.LinkageKey)];
        byte[] item = ParentLocator.Make(reader.Linkage, change(old));
        item.CopyTo(file.Bytes, file.Item(VhdxGuids.ParentLocator));
        file.Set(file.ItemEntry(VhdxGuids.ParentLocator) + 20, 4, (ulong)item.Length);
        File.WriteAllBytes(_temp[name], file.Bytes);
    }

    private static void Change(IDiskImage image, byte[] model, Random random)
    {
        int length = random.Next(4) == 0 ? random.Next(1, 300_000) : random.Next(1, 6000);
        int offset = random.Next(0, Size - length);
        if (random.Next(2) == 0)
            (offset, length) = (offset & ~4095, Math.Max(4096, length & ~4095));
        switch (random.Next(8))
        {
            case 0:
                (offset, length) = ((offset >> 21) << 21, Math.Min(2 << 20, Size - ((offset >> 21) << 21)));
                model.AsSpan(offset, length).Clear();
                image.Discard(offset, length);
                break;
            case 1:
                model.AsSpan(offset, length).Clear();
                image.WriteZeroes(offset, length);
                break;
            case 2:
                image.Sync();
                break;
            default:
                byte[] bytes = new byte[length];
                random.NextBytes(bytes);
                bytes.CopyTo(model, offset);
                image.Write(offset, bytes);
                break;
        }
    }
}
