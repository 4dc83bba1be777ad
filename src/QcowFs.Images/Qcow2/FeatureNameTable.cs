// The feature name table: 48-byte entries that let older software name a feature which it does not know.
//   u8 kind (0 incompatible, 1 compatible, 2 autoclear) | u8 bit | 46 bytes of name, zero padded
using System.Text;

namespace QcowFs.Images.Qcow2;

internal enum FeatureKind : byte
{
    Incompatible = 0,
    Compatible = 1,
    Autoclear = 2,
}

internal readonly record struct FeatureName(FeatureKind Kind, int Bit, string Name);

internal static class FeatureNameTable
{
    public const int EntrySize = 48;
    private const int NameAt = 2;
    private const int NameLength = EntrySize - NameAt;

    // The published bits begin at 0, ours end at 63.
    private const int FirstPrivateBit = 48;

    /// <summary>What this program writes into new images: QEMU's names in QEMU's order, then the private ones.</summary>
    public static IReadOnlyList<FeatureName> Written { get; } =
    [
        new(FeatureKind.Incompatible, 0, "dirty bit"),
        new(FeatureKind.Incompatible, 1, "corrupt bit"),
        new(FeatureKind.Incompatible, 2, "external data file"),
        new(FeatureKind.Incompatible, 3, "compression type"),
        new(FeatureKind.Incompatible, 4, "extended L2 entries"),
        new(FeatureKind.Compatible, 0, "lazy refcounts"),
        new(FeatureKind.Autoclear, 0, "bitmaps"),
        new(FeatureKind.Autoclear, 1, "raw external data"),
        new(FeatureKind.Incompatible, 60, "qcowfs journal"),
        new(FeatureKind.Autoclear, 60, "qcowfs in use"),
        new(FeatureKind.Autoclear, 61, "qcowfs dedup index"),
    ];

    /// <summary>A table with the names of our private bits too, or null where it has them or is no whole table.</summary>
    public static byte[]? WithPrivateNames(byte[] data)
    {
        IReadOnlyList<FeatureName> names = Parse(data);
        List<FeatureName> missing = [.. Written.Where(ours => ours.Bit >= FirstPrivateBit && !names.Any(n => n.Kind == ours.Kind && n.Bit == ours.Bit))];
        bool canGrow = data.Length % EntrySize == 0 && names.Count + missing.Count <= Qcow2Limits.MaxFeatureNames;
        return missing.Count == 0 || !canGrow ? null : [.. data, .. ToBytes(missing)];
    }

    /// <summary>The entries of an extension's data; a ragged tail and what is beyond the limit are not looked at, since names are
    /// only ever shown.</summary>
    public static IReadOnlyList<FeatureName> Parse(ReadOnlySpan<byte> data)
    {
        int count = Math.Min(data.Length / EntrySize, Qcow2Limits.MaxFeatureNames);
        List<FeatureName> names = new(count);
        for (int i = 0; i < count; i++)
        {
            ReadOnlySpan<byte> entry = data.Slice(i * EntrySize, EntrySize);
            ReadOnlySpan<byte> name = entry[NameAt..];
            int end = name.IndexOf((byte)0);
            names.Add(new FeatureName((FeatureKind)entry[0], entry[1], Encoding.UTF8.GetString(end < 0 ? name : name[..end])));
        }

        return names;
    }

    public static byte[] ToBytes(IReadOnlyList<FeatureName> names)
    {
        byte[] data = new byte[names.Count * EntrySize];
        for (int i = 0; i < names.Count; i++)
        {
            Span<byte> entry = data.AsSpan(i * EntrySize, EntrySize);
            entry[0] = (byte)names[i].Kind;
            entry[1] = (byte)names[i].Bit;
            byte[] text = Encoding.UTF8.GetBytes(names[i].Name);
            text.AsSpan(0, Math.Min(text.Length, NameLength)).CopyTo(entry[NameAt..]);
        }

        return data;
    }

    /// <summary>Names of the set bits for a message, by the image's own table, else ours, else the bit's number.</summary>
    public static string Describe(IReadOnlyList<FeatureName> names, FeatureKind kind, ulong bits)
    {
        List<string> words = [];
        for (int bit = 0; bit < 64; bit++)
        {
            if ((bits >> bit & 1) == 0)
                continue;

            FeatureName named = names.Concat(Written).FirstOrDefault(n => n.Kind == kind && n.Bit == bit && n.Name.Length > 0);
            words.Add(named.Name is null ? $"bit {bit}" : $"{Printable.Quote(named.Name)} (bit {bit})");
        }

        return string.Join(", ", words);
    }
}
