// One page of an image's mapping or reference-count structures, held in memory.
//
// P1. The content is changed only under the cache's gate, by a thread that has the page pinned, between BeginChange and EndChange.
// P2. Readers take no lock: they read between two looks at Sequence, which is odd while the page is being loaded or changed and
//     differs afterwards. A reader that saw it odd or changed reads again.
// P3. A page that is dirty, frozen or pinned is never given to another offset. Who looks for a page to give away holds the set's lock
//     and not the gate, so dirty and frozen are one field: between the two the page is never seen as neither.
// P4. While a commit holds the page frozen, the first change after the freeze sets the frozen content aside, so that the commit
//     writes the image of the freeze and never a later one.
using System.Runtime.InteropServices;

namespace QcowFs.Images.Metadata;

/// <summary>Why a page's content must stay in memory.</summary>
[Flags]
internal enum Unwritten
{
    /// <summary>The file holds it.</summary>
    Nothing = 0,

    /// <summary>Changed since the last freeze.</summary>
    Dirty = 1,

    /// <summary>Part of the commit in progress.</summary>
    Frozen = 2,
}

/// <summary>A page of metadata in memory. See the invariants at the head of the file.</summary>
internal sealed class MetadataPage
{
    /// <summary>The value of <see cref="Offset"/> while the page holds nothing.</summary>
    public const long Nowhere = -1;

    private readonly byte[] _data;
    private long _offset = Nowhere;
    private int _sequence;
    private int _unwritten;

    public MetadataPage(int pageSize) => _data = new byte[pageSize];

    /// <summary>Host byte offset of the page, or <see cref="Nowhere"/>. Changes only under the set's lock.</summary>
    public long Offset
    {
        get => Volatile.Read(ref _offset);
        set => Volatile.Write(ref _offset, value);
    }

    /// <summary>Even while the content is stable.</summary>
    public int Sequence => Volatile.Read(ref _sequence);

    /// <summary>The content. Writing needs P1.</summary>
    public Span<byte> Bytes => _data;

    /// <summary>The content as 64-bit entries in the image's (big-endian) byte order.</summary>
    public Span<ulong> Entries => MemoryMarshal.Cast<byte, ulong>(_data.AsSpan());

    /// <summary>How many threads need the page to stay. Guarded by the set's lock.</summary>
    public int Pins { get; set; }

    /// <summary>A thread is reading the page from the file. Guarded by the set's lock.</summary>
    public bool Loading { get; set; }

    /// <summary>Second chance of the clock that picks victims; a lost update does no harm.</summary>
    public bool RecentlyUsed { get; set; }

    /// <summary>Which stage of the commit writes the page. Guarded by the gate.</summary>
    public CommitStage Stage { get; set; }

    /// <summary>What of the content is not on disk. Changed under the gate, in one step (P3).</summary>
    public Unwritten Unwritten
    {
        get => (Unwritten)Volatile.Read(ref _unwritten);
        set => Volatile.Write(ref _unwritten, (int)value);
    }

    /// <summary>Changed since the last freeze.</summary>
    public bool Dirty => Unwritten.HasFlag(Unwritten.Dirty);

    /// <summary>Part of the commit in progress.</summary>
    public bool Frozen => Unwritten.HasFlag(Unwritten.Frozen);

    /// <summary>The content at the freeze, where it was changed since (P4). Guarded by the gate.</summary>
    public byte[]? FrozenContent { get; set; }

    /// <summary>The content that the last record logged, where a journal is kept and the page was changed since it was last clean. Guarded
    /// by the gate.</summary>
    public byte[]? Logged { get; set; }

    /// <summary>Changed since the last record. Guarded by the gate.</summary>
    public bool Unlogged { get; set; }

    /// <summary>Makes readers wait or retry; every call is paired with <see cref="EndChange"/>.</summary>
    public void BeginChange() => Interlocked.Increment(ref _sequence);

    /// <summary>Makes the new content visible to readers.</summary>
    public void EndChange() => Interlocked.Increment(ref _sequence);

    /// <summary>The content that the commit in progress writes. Call under the gate.</summary>
    public ReadOnlySpan<byte> CommitContent => FrozenContent ?? _data;
}
