// The parent locator: every rule of its bytes, what counts as a GUID and as a path, and chains as long as they may be.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Images.Vhdx;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Vhdx;

public sealed class VhdxLocatorTests
{
    private static readonly Guid Linkage = new("83ed05cd-9ac8-4d61-a1b2-0c1f2e3d4c5b");

    public static TheoryData<string> Spellings =>
    [
        "{83ed05cd-9ac8-4d61-a1b2-0c1f2e3d4c5b}", // as Windows writes it
        "{83ED05CD-9AC8-4D61-A1B2-0C1F2E3D4C5B}",
        "83ed05cd-9ac8-4d61-a1b2-0c1f2e3d4c5b", // as some tools do
    ];

    [Theory]
    [MemberData(nameof(Spellings))]
    public void A_linkage_is_a_GUID_however_it_is_spelt(string text) =>
        Assert.Equal(Linkage, Parse(Make((ParentLocator.LinkageKey, text), (ParentLocator.RelativePathKey, "p"))).Linkage);

    [Theory]
    [InlineData("")] // a value needs a length
    [InlineData("{83ed05cd-9ac8-4d61-a1b2-0c1f2e3d4c5}")]
    [InlineData("{83ed05cd-9ac8-4d61-a1b2-0c1f2e3d4c5b")]
    [InlineData("{gggggggg-9ac8-4d61-a1b2-0c1f2e3d4c5b}")]
    [InlineData("{83ed05cd-9ac8-4d61-a1b2-0c1f2e3d4c5b}\0")]
    [InlineData("parent")]
    public void What_is_no_GUID_is_refused(string text)
    {
        string problem = Refusal(Make((ParentLocator.LinkageKey, text), (ParentLocator.RelativePathKey, "p")));
        Assert.True(problem.Contains("which is no GUID", StringComparison.Ordinal) || text.Length == 0, problem);
        Assert.DoesNotContain('\0', problem);
        Assert.Contains("parent_linkage2", Refusal(Make((ParentLocator.LinkageKey, Linkage.ToString("B")), (ParentLocator.SecondLinkageKey, "x"), (ParentLocator.RelativePathKey, "p"))), StringComparison.Ordinal);
    }

    [Fact]
    public void Keys_are_there_once_and_the_needed_ones_are_there()
    {
        (string, string) linkage = (ParentLocator.LinkageKey, Linkage.ToString("B"));
        Assert.EndsWith("the key \"relative_path\" is there twice; restore the file from a copy", Refusal(Make(linkage, (ParentLocator.RelativePathKey, "a"), (ParentLocator.RelativePathKey, "b"))), StringComparison.Ordinal);
        Assert.Contains("the key parent_linkage is missing", Refusal(Make((ParentLocator.RelativePathKey, "a"))), StringComparison.Ordinal);
        Assert.Contains("it states no path", Refusal(Make(linkage)), StringComparison.Ordinal);
        Assert.Contains("it states no path", Refusal(Make(linkage, ("RELATIVE_PATH", "a"))), StringComparison.Ordinal);

        // What is not known is left alone, and paths are tried in the format's order whatever theirs is.
        ParentLocator locator = Parse(Make(
            (ParentLocator.AbsolutePathKey, @"\\?\C:\x\abs.vhdx"), ("future", "1"), (ParentLocator.VolumePathKey, @"\\?\Volume{1}\vol.vhdx"), linkage, (ParentLocator.RelativePathKey, @"..\rel.vhdx")));
        Assert.Equal(["../rel.vhdx", "rel.vhdx", "vol.vhdx", "abs.vhdx"], ParentPath.Candidates(locator).Select(c => c.HostName));
        Assert.Null(locator.SecondLinkage);
    }

    [Theory]
    [InlineData(0, 1, "it is not of the type for VHDX parents")]
    [InlineData(18, 0xFFFF, "its 65535 entries do not fit into")]
    [InlineData(18, 40, "its 40 entries do not fit into")]
    [InlineData(20, 0, "bytes of text at offset 0 do not lie in")]
    [InlineData(20, -1, "bytes of text at offset 4294967295 do not lie in")]
    [InlineData(24, 1 << 20, "bytes of text at offset 1048576 do not lie in")]
    [InlineData(28, 0, "0 bytes of text")]
    [InlineData(28, 27, "27 bytes of text")] // half a character
    [InlineData(30, 0xFFFE, "65534 bytes of text")]
    public void Every_text_lies_in_the_item(int at, int value, string problem)
    {
        byte[] item = Make((ParentLocator.LinkageKey, Linkage.ToString("B")), (ParentLocator.RelativePathKey, "p"));
        if (at is 18 or 28 or 30)
            BinaryPrimitives.WriteUInt16LittleEndian(item.AsSpan(at), unchecked((ushort)value));
        else
            BinaryPrimitives.WriteInt32LittleEndian(item.AsSpan(at), value);
        Assert.Contains(problem, Refusal(item), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(19)]
    [InlineData(21)]
    public void An_item_that_ends_early_is_refused(int length) => Refusal(Make((ParentLocator.LinkageKey, Linkage.ToString("B")), (ParentLocator.RelativePathKey, "p"))[..length]);

    /// <summary>A value that takes all the bytes that its length can say.</summary>
    [Fact]
    public void A_path_as_long_as_can_be_stated_is_read()
    {
        string path = new('p', 0xFFFE / 2);
        Assert.Equal([path], Parse(Make((ParentLocator.LinkageKey, Linkage.ToString("B")), (ParentLocator.RelativePathKey, path))).Paths);
    }

    [Fact]
    public void A_chain_of_256_disks_opens_and_one_of_257_does_not()
    {
        using TempDirectory temp = new();
        ImageCreator creator = new(HostFileSystem.Instance);
        ImageOpener opener = new(HostFileSystem.Instance);
        for (int i = 0; i <= 256; i++)
        {
            creator.Create(new ImageRequest
            {
                Path = temp[$"{i}.vhdx"],
                Format = "vhdx",
                Size = i == 0 ? 4 << 20 : -1,
                BackingName = i == 0 ? null : $"{i - 1}.vhdx",
                Options = [new("block_size", "1M"), new("log_size", "1M")],
            });
            if (i > 0)
                continue;
            using IDiskImage image = opener.Open(temp["0.vhdx"], new OpenOptions { Writable = true });
            image.Write(1 << 20, Pattern.Bytes(1, 0, 5000));
            image.Close();
        }

        using (IDiskImage image = opener.Open(temp["255.vhdx"], new OpenOptions()))
        {
            byte[] read = new byte[5000];
            image.Read(1 << 20, read);
            Assert.Equal(Pattern.Bytes(1, 0, 5000), read);
        }

        Assert.Contains("the chain has more than 256 images", Assert.Throws<ImageFormatException>(() => opener.Open(temp["256.vhdx"], new OpenOptions())).Message, StringComparison.Ordinal);
    }

    private static ParentLocator Parse(byte[] item) => ParentLocator.Parse(item, "image", 100);

    private static string Refusal(byte[] item)
    {
        ImageFormatException refusal = Assert.Throws<ImageFormatException>(() => Parse(item));
        Assert.StartsWith("image: parent locator at byte 1", refusal.Message, StringComparison.Ordinal);
        return refusal.Message;
    }

    // Entries first, then the texts.
    private static byte[] Make(params (string Key, string Value)[] values)
    {
        int at = 20 + (values.Length * 12);
        byte[] item = new byte[at + values.Sum(v => (v.Key.Length + v.Value.Length) * 2)];
        new Guid("B04AEFB7-D19E-4A81-B789-25B8E9445913").TryWriteBytes(item);
        BinaryPrimitives.WriteUInt16LittleEndian(item.AsSpan(18), (ushort)values.Length);
        for (int i = 0; i < values.Length; i++)
        {
            Span<byte> entry = item.AsSpan(20 + (i * 12));
            foreach ((string text, int offsetAt, int lengthAt) in new[] { (values[i].Key, 0, 8), (values[i].Value, 4, 10) })
            {
                BinaryPrimitives.WriteInt32LittleEndian(entry[offsetAt..], at);
                BinaryPrimitives.WriteUInt16LittleEndian(entry[lengthAt..], (ushort)(text.Length * 2));
                at += Encoding.Unicode.GetBytes(text, item.AsSpan(at));
            }
        }

        return item;
    }
}
