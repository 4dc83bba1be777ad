// A table of 64-bit big-endian entries that is kept in memory as a whole: qcow2's L1 table and refcount table.
// Reading an entry takes no lock. Changes are made under the metadata cache's gate and written by the commit in pieces.
using System.Buffers.Binary;
using QcowFs.Storage;

namespace QcowFs.Images.Metadata;

/// <summary>A table of 64-bit entries in memory and on disk.</summary>
internal sealed class ResidentTable
{
    private const int EntriesPerPiece = 512;

    private readonly ulong[] _entries;
    private readonly SortedSet<int> _dirtyPieces = [];
    private readonly SortedSet<int> _unloggedPieces = [];

    /// <summary>Creates a table of zero entries at a host offset that is a multiple of 512.</summary>
    public ResidentTable(long offset, int length)
    {
        Offset = offset;
        _entries = new ulong[length];
    }

    /// <summary>Host byte offset of the first entry.</summary>
    public long Offset { get; }

    /// <summary>Number of entries.</summary>
    public int Length => _entries.Length;

    /// <summary>Whether an entry changed since the last freeze. Call under the gate.</summary>
    public bool IsDirty => _dirtyPieces.Count > 0;

    /// <summary>The entry, in the machine's byte order.</summary>
    public ulong this[int index] => Volatile.Read(ref _entries[index]);

    /// <summary>Reads a table from a file.</summary>
    public static ResidentTable Load(IStorage file, long offset, int length)
    {
        ResidentTable table = new(offset, length);
        byte[] buffer = new byte[(int)Math.Min(256 * 1024L, length * 8L)];
        for (int index = 0; index < length;)
        {
            Span<byte> chunk = buffer.AsSpan(0, (int)Math.Min(buffer.Length, (length - index) * 8L));
            file.Read(offset + (index * 8L), chunk);
            for (int at = 0; at < chunk.Length; at += 8, index++)
                table._entries[index] = BinaryPrimitives.ReadUInt64BigEndian(chunk[at..]);
        }

        return table;
    }

    /// <summary>A copy with more entries at another place, all of it dirty.</summary>
    public ResidentTable Relocate(long offset, int length)
    {
        ResidentTable table = new(offset, length) { IsLogged = IsLogged };
        _entries.CopyTo(table._entries.AsSpan());
        for (int piece = 0; piece * EntriesPerPiece < length; piece++)
            table._dirtyPieces.Add(piece);
        return table;
    }

    /// <summary>Changes an entry. Call under the gate.</summary>
    public void Set(int index, ulong value)
    {
        Volatile.Write(ref _entries[index], value);
        _dirtyPieces.Add(index / EntriesPerPiece);
        if (IsLogged)
            _unloggedPieces.Add(index / EntriesPerPiece);
    }

    /// <summary>Whether changes are kept for <see cref="TakeUnlogged"/>. Set under the gate.</summary>
    public bool IsLogged { get; set; }

    /// <summary>Whether an entry was changed since the last record. Call under the gate.</summary>
    public bool HasUnlogged => _unloggedPieces.Count > 0;

    /// <summary>Shows the pieces that changed since the last call. Call under the gate.</summary>
    public void TakeUnlogged(Action<FrozenPiece> visit)
    {
        foreach (int piece in _unloggedPieces)
            visit(Piece(piece));
        _unloggedPieces.Clear();
    }

    /// <summary>Takes the changed pieces as they are now for a commit. Call under the gate.</summary>
    public List<FrozenPiece> Freeze()
    {
        List<FrozenPiece> pieces = [];
        foreach (int piece in _dirtyPieces)
            pieces.Add(Piece(piece));
        _dirtyPieces.Clear();
        return pieces;
    }

    private FrozenPiece Piece(int piece)
    {
        int first = piece * EntriesPerPiece;
        int count = Math.Min(EntriesPerPiece, _entries.Length - first);
        byte[] bytes = new byte[count * 8];
        for (int i = 0; i < count; i++)
            BinaryPrimitives.WriteUInt64BigEndian(bytes.AsSpan(i * 8), _entries[first + i]);
        return new FrozenPiece(piece, Offset + (first * 8L), bytes);
    }

    /// <summary>Makes the pieces of a commit that did not complete dirty again. Call under the gate.</summary>
    public void Thaw(List<FrozenPiece> pieces)
    {
        foreach (FrozenPiece piece in pieces)
            _dirtyPieces.Add(piece.Index);
    }

    /// <summary>A part of the table as it was at a freeze.</summary>
    internal readonly record struct FrozenPiece(int Index, long Offset, byte[] Bytes);
}
