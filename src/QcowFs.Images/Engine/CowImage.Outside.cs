// The files below a disk as others may use them: the kernel, which serves a disk out of its data file, and who clones blocks of it.
//
// U1. The data file is the disk only where every block lies in it at its own offset and it ends where the disk ends; for writing, every
//     block must be the image's own too, so that no write from outside would have needed a copy.
// U2. While others write, the mapping stays so: nothing is allocated, since all is there, and nothing is unmapped, since zeroing happens
//     in the file. It begins under the lock of the whole disk, when no change of the mapping is under way.
// U3. Their writes are not seen, so every Sync and the Close take the data for dirty. Where each write must be seen, they are not let in.
// U4. Once they were let in, U2 and U3 hold to the close: a memory map writes on when the file that it was made of is closed.
using System.Diagnostics.CodeAnalysis;
using Microsoft.Win32.SafeHandles;
using QcowFs.Storage;

namespace QcowFs.Images.Engine;

/// <content>Direct use of the data file.</content>
internal sealed partial class CowImage
{
    private FileStorage? HostData => (_data is LatchedStorage outer ? outer.Inner : _data) as FileStorage;

    private bool SeesEveryWrite => _parts.Changes is not null || _guard is not null || _attached is not null || _compressing is not null;

    public bool TryGetIdentityFile([NotNullWhen(true)] out SafeFileHandle? file)
    {
        file = null;
        if (_dataImage is not null)
            return _map.IsComplete && _dataImage.TryGetIdentityFile(out file);
        return TryFindIdentity(forWriting: false, out file);
    }

    public bool TryBeginOutsideWrites([NotNullWhen(true)] out SafeFileHandle? file)
    {
        file = null;
        // Looked for before anything is written for it, and again under the lock.
        if (IsReadOnly || Failure is not null || SeesEveryWrite || !_map.ToleratesLongerData || !TryFindIdentity(forWriting: true, out _))
            return false;
        BeginChange(); // I9, I10
        using RangeGate.Ticket held = LockRange(0, Length, exclusive: true); // U2
        bool isIdentity = TryFindIdentity(forWriting: true, out file);
        _isWrittenOutside |= isIdentity; // U4
        return isIdentity;
    }

    public void EndOutsideWrites()
    {
        if (!_isWrittenOutside)
            return;
        long past = HostData!.RefreshLength() - Length;
        if (past <= 0)
            return;
        // The image states the disk's size. Left there, the bytes would keep the file from being the disk, and come up when it grows.
        _data.SetLength(Length);
        _log?.Invoke($"{Name}: {past} bytes had been written past the end of the disk, to {_data.Name}; they were cut off");
    }

    public bool TryGetDataFile(int depth, [NotNullWhen(true)] out FileStorage? file)
    {
        file = null;
        if (depth > 0)
            return Volatile.Read(ref _backing) is { } backing && backing.TryGetDataFile(depth - 1, out file);
        file = HostData;
        return file is not null;
    }

    // U1
    private bool TryFindIdentity(bool forWriting, [NotNullWhen(true)] out SafeFileHandle? file)
    {
        file = null;
        if (HostData is not { } data || data.QueryFacts() is not { IsBlockDevice: false } facts || facts.Length != Length || !IsIdentity(forWriting))
            return false;
        file = data.Handle;
        return true;
    }

    private bool IsIdentity(bool forWriting)
    {
        // Such a format says it durably, or it is not so.
        if (_map.Traits.IsIdentity)
            return _map.IsComplete;
        int slot = _epoch.Enter();
        try
        {
            for (long offset = 0; offset < Length;)
            {
                Extent extent = _map.Lookup(offset, Length - offset);
                if (extent.Kind != ExtentKind.Data || extent.Host != offset || (forWriting && !extent.Writable))
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

    // U3
    private void NoteOutsideWrites()
    {
        if (_isWrittenOutside)
            _dataDirty = true;
    }
}
