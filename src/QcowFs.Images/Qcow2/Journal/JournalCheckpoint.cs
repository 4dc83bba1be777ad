// The checkpoint: brings committed pages to their places and moves the tail, in step with the commits, whose syncs it shares (J9).
//
// C1. Only what a confirmed record logged is written home, as it was at the cut, never a later change.
// C2. The superblock with the new tail is written when a sync has covered the home writes; the ring's space before that tail is free
//     when a sync has covered the superblock.
// So a turn of the ring costs no sync of its own as long as commits come; only who finds the ring full pays for them himself.
//
//   idle -> cut -> (cut confirmed) writing home, a slice after each commit -> home written -> (sync) tail written -> (sync) idle

namespace QcowFs.Images.Qcow2.Journal;

/// <summary>The checkpoint of one journal. Called by the one thread that commits, under the ring's lock.</summary>
internal sealed class JournalCheckpoint(JournaledFile file, JournalRing ring)
{
    // So many bytes of pages are written after one commit: enough to be done in half a turn, too little to be felt.
    private const int SliceBytes = 256 << 10;

    // So many bytes of pages wait in memory at most before a cut.
    private const long OverlayBytes = 8L << 20;

    private Phase _phase;
    private ulong _cut;
    private JournalPosition _tail;
    private long[] _home = [];
    private int _written;

    private enum Phase
    {
        Idle,
        Cut,
        HomeWritten,
        TailWritten,
    }

    /// <summary>Goes on after a sync that returned.</summary>
    /// <param name="synced">The last commit whose sync returned, and the place behind it.</param>
    /// <param name="behind">The place behind that commit.</param>
    /// <param name="confirmed">The last confirmed commit.</param>
    /// <param name="durableLength">The file is durably this long.</param>
    public void AfterSync(ulong synced, JournalPosition behind, ulong confirmed, long durableLength)
    {
        if (_phase == Phase.TailWritten)
            Finish();
        if (_phase == Phase.HomeWritten)
            WriteTail(Math.Max(confirmed, _cut), durableLength);
        else if (_phase == Phase.Cut && confirmed >= _cut)
            WriteSlice(SliceBytes);
        else if (_phase == Phase.Idle && (ring.UsedBlocks > ring.Blocks / 2 || file.Current.Bytes > OverlayBytes))
            Cut(synced, behind);
    }

    /// <summary>Empties the ring up to the last synced commit, with syncs of its own. Returns what is confirmed then.</summary>
    public ulong Force(ulong synced, JournalPosition behind, ulong confirmed)
    {
        // The one under way ends at an older cut.
        if (_phase != Phase.Idle)
            confirmed = Complete(confirmed);
        Cut(synced, behind);
        return Complete(confirmed);
    }

    private ulong Complete(ulong confirmed)
    {
        if (_phase == Phase.TailWritten)
        {
            Sync();
            Finish();
            return confirmed;
        }

        if (_phase == Phase.Cut)
        {
            if (confirmed < _cut)
            {
                // C1. Nothing else confirms it, so the superblock does.
                ring.WriteConfirmed(_cut, Sync());
                _ = Sync();
                confirmed = _cut;
            }

            WriteSlice(int.MaxValue);
        }

        WriteTail(confirmed, Sync()); // C2
        _ = Sync();
        Finish();
        return confirmed;
    }

    /// <summary>Returns how long the file durably is.</summary>
    private long Sync()
    {
        long length = file.Length;
        ring.Close();
        file.Inner.Sync();
        return length;
    }

    private void Cut(ulong synced, JournalPosition behind)
    {
        file.Cut();
        (_cut, _tail, _written) = (synced, behind, 0);
        _home = file.Closing.Offsets;
        _phase = Phase.Cut;
    }

    private void WriteSlice(int bytes)
    {
        // Pages that were freed since the cut have left the overlay.
        long[] left = [.. _home.Skip(_written).Where(offset => file.Closing.Find(offset) is not null)];
        int count = left.Length == 0 ? 0 : Math.Min(left.Length, Math.Max(1, bytes / file.Closing.Find(left[0])!.Length));
        JournalReplay.WriteHome(file.Inner, file.Closing, left.AsSpan(0, count));
        _home = left;
        _written = count;
        if (count == left.Length)
            _phase = Phase.HomeWritten;
    }

    private void WriteTail(ulong confirmed, long durableLength)
    {
        ring.WriteTail(_tail, confirmed, durableLength);
        _phase = Phase.TailWritten;
    }

    private void Finish()
    {
        ring.Release(_tail);
        file.EndCut();
        _phase = Phase.Idle;
    }
}
