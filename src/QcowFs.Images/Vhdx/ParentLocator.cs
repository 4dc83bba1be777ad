// The parent locator (fact sheet, section 7): how a differencing disk names its parent, and which parent is the right one.
using System.Buffers.Binary;
using System.Text;

namespace QcowFs.Images.Vhdx;

/// <summary>A parent locator's keys and values.</summary>
internal sealed class ParentLocator
{
    public const string LinkageKey = "parent_linkage";
    public const string SecondLinkageKey = "parent_linkage2";
    public const string RelativePathKey = "relative_path";
    public const string VolumePathKey = "volume_path";
    public const string AbsolutePathKey = "absolute_win32_path";
    public const int CountAt = 18;
    public const int EntriesAt = 20;
    public const int EntrySize = 12;
    private const string Structure = "parent locator";
    private const string Damaged = "restore the file from a copy";

    private readonly Dictionary<string, string> _values;

    private ParentLocator(Dictionary<string, string> values, Guid linkage, Guid? secondLinkage)
    {
        _values = values;
        Linkage = linkage;
        SecondLinkage = secondLinkage;
    }

    /// <summary>The data write GUID of the right parent.</summary>
    public Guid Linkage { get; }

    /// <summary>Another data write GUID that is right too, or null.</summary>
    public Guid? SecondLinkage { get; }

    /// <summary>The paths that are stated, in the order in which they are tried.</summary>
    public IEnumerable<string> Paths =>
        from key in (string[])[RelativePathKey, VolumePathKey, AbsolutePathKey]
        where _values.ContainsKey(key)
        select _values[key];

    public string? this[string key] => _values.GetValueOrDefault(key);

    /// <summary>Reads an item. Faults: <see cref="ImageFormatException"/>.</summary>
    /// <param name="item">The item's bytes.</param>
    /// <param name="file">The file's name.</param>
    /// <param name="at">Where the item is in the file.</param>
    public static ParentLocator Parse(ReadOnlySpan<byte> item, string file, long at)
    {
        if (item.Length < EntriesAt || new Guid(item[..VhdxGuids.Size]) != VhdxGuids.ParentIsVhdx)
            throw new ImageFormatException(file, Structure, at, "it is not of the type for VHDX parents", "use software that knows its type");
        int count = BinaryPrimitives.ReadUInt16LittleEndian(item[CountAt..]);
        if (EntriesAt + count * EntrySize > item.Length)
            throw new ImageFormatException(file, Structure, at + CountAt, $"its {count} entries do not fit into {item.Length} bytes", Damaged);
        Dictionary<string, string> values = [];
        for (int i = 0; i < count; i++)
        {
            int entryAt = EntriesAt + i * EntrySize;
            ReadOnlySpan<byte> entry = item.Slice(entryAt, EntrySize);
            string key = Text(item, BinaryPrimitives.ReadUInt32LittleEndian(entry), BinaryPrimitives.ReadUInt16LittleEndian(entry[8..]), file, at + entryAt);
            string value = Text(item, BinaryPrimitives.ReadUInt32LittleEndian(entry[4..]), BinaryPrimitives.ReadUInt16LittleEndian(entry[10..]), file, at + entryAt);
            if (!values.TryAdd(key, value))
                throw new ImageFormatException(file, Structure, at + entryAt, $"the key {Printable.Quote(key)} is there twice", Damaged);
        }

        Guid linkage = ParseGuid(values, LinkageKey, file, at)
            ?? throw new ImageFormatException(file, Structure, at, $"the key {LinkageKey} is missing", Damaged);
        ParentLocator locator = new(values, linkage, ParseGuid(values, SecondLinkageKey, file, at));
        return locator.Paths.Any() ? locator
            : throw new ImageFormatException(file, Structure, at, "it states no path", Damaged);
    }

    /// <summary>Makes the bytes of an item.</summary>
    public static byte[] Make(Guid linkage, IReadOnlyList<KeyValuePair<string, string>> paths)
    {
        List<KeyValuePair<string, string>> values = [new(LinkageKey, linkage.ToString("B")), .. paths];
        int textAt = EntriesAt + values.Count * EntrySize;
        byte[] item = new byte[textAt + values.Sum(v => Encoding.Unicode.GetByteCount(v.Key) + Encoding.Unicode.GetByteCount(v.Value))];
        VhdxGuids.ParentIsVhdx.TryWriteBytes(item);
        BinaryPrimitives.WriteUInt16LittleEndian(item.AsSpan(CountAt), (ushort)values.Count);
        for (int i = 0; i < values.Count; i++)
        {
            Span<byte> entry = item.AsSpan(EntriesAt + i * EntrySize, EntrySize);
            textAt = Put(item, entry, 0, 8, textAt, values[i].Key);
            textAt = Put(item, entry, 4, 10, textAt, values[i].Value);
        }

        return item;
    }

    private static int Put(byte[] item, Span<byte> entry, int offsetAt, int lengthAt, int textAt, string text)
    {
        int length = Encoding.Unicode.GetBytes(text, item.AsSpan(textAt));
        BinaryPrimitives.WriteUInt32LittleEndian(entry[offsetAt..], (uint)textAt);
        BinaryPrimitives.WriteUInt16LittleEndian(entry[lengthAt..], (ushort)length);
        return textAt + length;
    }

    private static string Text(ReadOnlySpan<byte> item, uint offset, int length, string file, long at) =>
        offset > 0 && length > 0 && length % 2 == 0 && offset + (long)length <= item.Length
            ? Encoding.Unicode.GetString(item.Slice((int)offset, length))
            : throw new ImageFormatException(file, Structure, at, $"{length} bytes of text at offset {offset} do not lie in its {item.Length} bytes", Damaged);

    private static Guid? ParseGuid(Dictionary<string, string> values, string key, string file, long at)
    {
        if (!values.TryGetValue(key, out string? text))
            return null;
        return Guid.TryParse(text, out Guid value) ? value
            : throw new ImageFormatException(file, Structure, at, $"{key} is {Printable.Quote(text)}, which is no GUID", Damaged);
    }
}
