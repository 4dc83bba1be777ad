// Makes a disk larger while it is open.
//
// R1. What is added reads as zeros before the new size can be durable: nothing is mapped there, or it has been made zero and synced. So the
//     statement of the size waits for nothing and nothing waits for it: whichever reaches the disk first, the image is valid.
// R2. The next Sync makes the size durable, together with the data that came with it: they lie in the same file.
// R3. Appends that are no whole blocks end in a block that is mapped. Its rest is made zero, and synced, once for the block and not for
//     each of them.
// R4. What cannot be done so is left to an edit of the closed image: a table that must move first, a journal (which remembers the size
//     that it was made for), bitmaps, data in a file of its own, a backing image that goes on, a last block that is not the image's own.
namespace QcowFs.Images.Engine;

/// <content>Growing.</content>
internal sealed partial class CowImage
{
    private long _zeroHost = -1; // where the last block lay when its rest was made zero (R3)

    public bool TryGrow(long size)
    {
        if (size < Length || IsReadOnly || Failure is not null || _isWrittenOutside || _dataImage is not null || Info.DataPath is not null)
            return false;
        bool tracksAll = _guard is not null || _parts.Changes is not null; // R4
        if (tracksAll || !_map.CanGrowTo(size) || Volatile.Read(ref _backing) is { } backing && backing.Length > Length)
            return false;
        if (!TryFindTail(size, out Extent tail))
            return false;
        BeginChange(); // I9, I10
        long blockStart = tail.Host & ~_blockMask;
        if (tail.Length > 0 && blockStart != _zeroHost)
        {
            _data.WriteZeroes(tail.Host, tail.Length);
            _data.Sync(); // R1
            _zeroHost = blockStart;
        }

        _map.StateSize(size);
        _dataDirty = true; // R2
        Volatile.Write(ref _length, size);
        ArmCommitTimer();
        return true;
    }

    /// <summary>Finds the rest of the last block, past the disk's end; of no length where the block is not mapped, or ends there. False
    /// where what is mapped past the end needs more than that to read as zeros.</summary>
    private bool TryFindTail(long size, out Extent tail)
    {
        tail = new Extent(ExtentKind.Zero, 0);
        int slot = _epoch.Enter();
        try
        {
            long blockEnd = (Length + _blockMask) & ~_blockMask;
            for (long offset = Length; offset < Math.Max(size, blockEnd);)
            {
                Extent extent = _map.Lookup(offset, Math.Max(size, blockEnd) - offset);
                if (extent.Kind is ExtentKind.Data && offset == Length && extent.Writable && offset < blockEnd)
                    tail = extent = extent with { Length = Math.Min(extent.Length, blockEnd - offset) };
                else if (extent.Kind is not (ExtentKind.Zero or ExtentKind.Backing))
                    return false;
                offset += extent.Length;
            }

            return true;
        }
        finally
        {
            _epoch.Exit(slot);
        }
    }
}
