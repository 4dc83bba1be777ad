// A header extension: u32 type, u32 length, data, padding to 8 bytes. Unknown ones are kept as they are.
using System.Buffers.Binary;

namespace QcowFs.Images.Qcow2;

/// <summary>The types of header extensions that have a meaning here.</summary>
internal enum HeaderExtensionType : uint
{
    End = 0,
    BackingFormat = 0xE2792ACA,
    FeatureNames = 0x6803F857,
    Bitmaps = 0x23852875,
    CryptoHeader = 0x0537BE77,
    DataFileName = 0x44415441,

    /// <summary>Private: "QFJL", place of the journal.</summary>
    Journal = 0x51464A4C,

    /// <summary>Private: "QFOV", what an overlay remembers of its base.</summary>
    OverlayBase = 0x51464F56,
}

/// <summary>One header extension as it is on disk.</summary>
/// <param name="Type">The type; any value.</param>
/// <param name="Data">The data without padding. Not to be changed.</param>
/// <param name="Offset">Byte offset of the extension's head in the file it was read from; 0 for one made in memory.</param>
internal sealed record HeaderExtension(HeaderExtensionType Type, byte[] Data, int Offset = 0)
{
    /// <summary>Byte offset of the data in the file.</summary>
    public int DataOffset => Offset + Qcow2HeaderLayout.ExtensionHeadLength;

    /// <summary>Bytes with head and padding.</summary>
    public int SizeOnDisk => SizeFor(Data.Length);

    public static int SizeFor(int dataLength)
    {
        const int mask = Qcow2HeaderLayout.ExtensionAlignment - 1;
        return Qcow2HeaderLayout.ExtensionHeadLength + ((dataLength + mask) & ~mask);
    }

    public void WriteTo(Span<byte> destination)
    {
        BinaryPrimitives.WriteUInt32BigEndian(destination, (uint)Type);
        BinaryPrimitives.WriteUInt32BigEndian(destination[4..], (uint)Data.Length);
        Data.CopyTo(destination[Qcow2HeaderLayout.ExtensionHeadLength..]);
    }
}
