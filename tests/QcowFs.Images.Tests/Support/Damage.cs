// Changes single fields of an image file, the way a defect or an attacker would.
using System.Buffers.Binary;
using QcowFs.Images.Qcow2;
using QcowFs.Storage;

namespace QcowFs.Images.Tests.Support;

/// <summary>An image file under the test's hands: its structures located, its bytes changeable.</summary>
internal sealed class Damage : IDisposable
{
    private readonly FileStorage _file;

    public Damage(string path)
    {
        _file = HostFiles.Open(path, StorageAccess.Write);
        Header = Qcow2HeaderReader.Read(_file);
    }

    public Qcow2Header Header { get; }

    public long Length => _file.Length;

    /// <summary>Byte offset of L1 entry <paramref name="index"/>.</summary>
    public long L1At(int index) => Header.L1Offset + index * 8L;

    /// <summary>Byte offset of an entry of the L2 table that the given L1 entry names.</summary>
    public long L2At(int index, int l1Index = 0) => new L1Entry(Get(L1At(l1Index))).TableOffset + (long)index * Header.L2EntrySize;

    /// <summary>Byte offset of the 16-bit count of a host cluster.</summary>
    public long CountAt(long cluster) => new RefcountTableEntry(Get(Header.RefcountTableOffset)).BlockOffset + cluster * 2;

    public ulong Get(long offset)
    {
        Span<byte> bytes = stackalloc byte[8];
        _file.Read(offset, bytes);
        return BinaryPrimitives.ReadUInt64BigEndian(bytes);
    }

    public void Set(long offset, ulong value)
    {
        Span<byte> bytes = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64BigEndian(bytes, value);
        _file.Write(offset, bytes);
    }

    public void Set32(long offset, uint value)
    {
        Span<byte> bytes = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(bytes, value);
        _file.Write(offset, bytes);
    }

    public void Set16(long offset, ushort value)
    {
        Span<byte> bytes = stackalloc byte[2];
        BinaryPrimitives.WriteUInt16BigEndian(bytes, value);
        _file.Write(offset, bytes);
    }

    public void Write(long offset, ReadOnlySpan<byte> bytes) => _file.Write(offset, bytes);

    public void SetLength(long length) => _file.SetLength(length);

    public void Dispose() => _file.Dispose();
}
