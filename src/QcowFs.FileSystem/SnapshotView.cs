// An internal snapshot's disk, open while its file is.
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>The disk of one snapshot. Members other than the properties are called under the image's lock.</summary>
/// <param name="facts">The snapshot.</param>
/// <param name="key">Name or id that finds it and no other.</param>
/// <param name="keyIsId">Whether the key is an id.</param>
/// <param name="currentSize">Its size where the image does not state it: the active disk's.</param>
internal sealed class SnapshotView(SnapshotFacts facts, string key, bool keyIsId, long currentSize)
{
    private volatile IDiskImage? _disk;
    private int _uses;

    public SnapshotFacts Facts { get; } = facts;

    public IDiskImage? Disk => _disk;

    /// <summary>Who serves the bytes of its file while that is open, else null.</summary>
    public DataPath? DataPath { get; set; }

    public bool IsUsed => _uses > 0;

    public long Length => _disk?.Length ?? Facts.VirtualSize ?? currentSize;

    public void Open(IImageHold hold)
    {
        _disk ??= hold.OpenSnapshot(key, keyIsId);
        _uses++;
    }

    public void Close()
    {
        if (--_uses > 0) return;
        _disk?.Dispose(); // it was only read
        _disk = null;
    }
}
