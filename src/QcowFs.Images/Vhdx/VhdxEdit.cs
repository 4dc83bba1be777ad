// Changes of the structures of a VHDX image that nobody else has open, through its log.
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>An edit of one file, which stays the caller's. Used by one thread. It replays the log first; each
/// <see cref="Commit"/> makes what was changed since the one before durable.</summary>
internal sealed class VhdxEdit
{
    private const long CacheSize = 1 << 20;

    private readonly VhdxState _state;
    private readonly VhdxCommit _commit;

    private VhdxEdit(VhdxLayout layout, VhdxState state)
    {
        Layout = layout;
        _state = state;
        _commit = new VhdxCommit(state, 0);
    }

    public VhdxLayout Layout { get; }

    /// <summary>The free space.</summary>
    public VhdxSpace Space => _state.Space!;

    /// <summary>Begins an edit. Faults: <see cref="ImageFormatException"/> where the image cannot be written safely, by which nothing but
    /// its log has changed.</summary>
    public static VhdxEdit Begin(IStorage file, GuidSource guids)
    {
        VhdxReplay.Run(file, guids);
        VhdxLayout layout = VhdxLayout.Read(file);
        layout.RequireWritable(file);
        VhdxSpace space = VhdxSpace.Scan(layout, file);
        return Begin(layout, file, guids, space);
    }

    /// <summary>The same for a file whose log was replayed and whose space is known.</summary>
    /// <param name="layout">What describes the file.</param>
    /// <param name="file">The file.</param>
    /// <param name="guids">Where new GUIDs come from.</param>
    /// <param name="space">The free space.</param>
    /// <param name="keepsData">Nothing that the guest sees will change.</param>
    public static VhdxEdit Begin(VhdxLayout layout, IStorage file, GuidSource guids, VhdxSpace space, bool keepsData = false)
    {
        VhdxEdit edit = new(layout, new VhdxState
        {
            Layout = layout,
            File = file,
            Cache = new MetadataCache(file, VhdxLimits.SectorSize, CacheSize),
            Epoch = new ReaderEpoch(),
            Latch = new FailureLatch(null),
            Space = space,
            Guids = guids,
            DurableLength = file.Length,
        });
        edit._commit.BeginUse(keepsData);
        return edit;
    }

    /// <summary>Changes bytes of a structure.</summary>
    public void Write(long offset, ReadOnlySpan<byte> bytes)
    {
        if (_state.Cache.DirtyCount + 2 > _commit.PagesPerEntry)
            Commit();
        while (bytes.Length > 0)
        {
            int inPage = (int)(offset & (VhdxLimits.SectorSize - 1));
            ReadOnlySpan<byte> part = bytes[..Math.Min(bytes.Length, VhdxLimits.SectorSize - inPage)];
            using PinnedPages pins = new(_state.Cache);
            MetadataPage page = pins.Add(offset - inPage);
            lock (_state.Cache.Gate)
            {
                _state.Cache.BeginChange(page, CommitStage.Links);
                part.CopyTo(page.Bytes[inPage..]);
                page.EndChange();
            }

            offset += part.Length;
            bytes = bytes[part.Length..];
        }
    }

    /// <summary>Frees space once the change that unmaps it is durable.</summary>
    public void Remove(long offset, long length)
    {
        lock (_state.Cache.Gate)
            _state.Remove(offset, length);
    }

    /// <summary>Notes that the file became longer.</summary>
    public void NoteGrowth() => _state.NoteGrowth();

    /// <summary>Makes all changes durable, what was written beside the log too.</summary>
    public void Commit() => _commit.Run(static () => true);

    /// <summary>Commits, closes the log, gives unused space back.</summary>
    public void End()
    {
        Commit();
        _commit.EndUse();
    }
}
