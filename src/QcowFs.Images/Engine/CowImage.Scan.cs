// Deduplication of what an image holds already, block by block, beside everything else that may be done with it.
using System.Buffers;

namespace QcowFs.Images.Engine;

/// <content>Scanning.</content>
internal sealed partial class CowImage
{
    // After so much of the disk the work so far is made durable, and with it where to go on.
    private const long ScanStep = 64 << 20;

    // How much is done between two questions whether to go on.
    private const long ScanChunk = 64 << 10;

    /// <summary>Looks at every block of the disk, from where an earlier scan ended.</summary>
    /// <param name="share">Whether equal blocks are shared, or only indexed.</param>
    /// <param name="goOn">Told how many bytes of the disk are done, and says whether to go on.</param>
    internal DedupScanResult DeduplicateAll(bool share, Func<long, bool> goOn)
    {
        Invariant.Require(Index is not null, "a scan needs an index");
        BeginChange();
        long shared = Statistics.BytesShared;
        ScanPass pass = new(this, share);
        long offset = Math.Min(Index.ScanOffset & ~_blockMask, Length);
        long saved = offset;
        bool going = true;
        while (offset + BlockSize <= Length && (going = goOn(offset)))
        {
            Extent extent = QueryExtent(offset, Length - offset);
            if (extent is not { Kind: ExtentKind.Data, Depth: 0 })
            {
                offset = (offset + extent.Length + _blockMask) & ~_blockMask;
                continue;
            }

            long end = Math.Min(offset + extent.Length, offset + ScanChunk) & ~_blockMask;
            for (end = Math.Max(end, offset + BlockSize); offset < end; offset += BlockSize)
                pass.Look(offset);
            if (offset - saved < ScanStep)
                continue;
            Sync();
            Index.NoteScan(offset);
            saved = offset;
        }

        Sync();
        Index.NoteScan(going ? 0 : offset);
        return new DedupScanResult(pass.Looked, Statistics.BytesShared - shared, pass.Zeroed, going ? -1 : offset, Index.Paused);
    }

    /// <summary>Puts flags right and takes the mark of an index away: nothing will be shared any more.</summary>
    internal void EndSharing() => SweepAndCommit();

    /// <summary>What one scan keeps from block to block. Used by one thread.</summary>
    private sealed class ScanPass
    {
        private readonly CowImage _image;
        private readonly bool _share;
        private readonly WritePlan _plan;
        private readonly ExclusiveStep _step;

        public ScanPass(CowImage image, bool share)
        {
            _image = image;
            _share = share;
            _plan = new WritePlan(image);
            _step = (_, offset, _) =>
            {
                LookLocked(offset);
                return true; // nothing is written in place, so no commit need come first
            };
        }

        public long Looked { get; private set; }

        public long Zeroed { get; private set; }

        public void Look(long offset)
        {
            _plan.Begin(offset >> _image._blockBits, 1);
            _plan.Slots[0] = -1;
            _plan.BeginWriting();
            _image.Allocating(offset, _image.BlockSize, default, _step);
            _image.Settle(_plan);
        }

        /// <summary>Under the block's lock, so that what was read is what is hashed, compared and indexed.</summary>
        private void LookLocked(long offset)
        {
            long host = _image.HostBlockOf(offset >> _image._blockBits);
            if (host < 0)
                return;
            byte[] buffer = ArrayPool<byte>.Shared.Rent(_image.BlockSize);
            try
            {
                Span<byte> block = buffer.AsSpan(0, _image.BlockSize);
                _image._data.Read(host << _image._blockBits, block);
                Looked += block.Length;
                if (!block.ContainsAnyExcept((byte)0))
                {
                    if (_share && _image._map.TryPublishZero(offset, block.Length))
                        Zeroed += block.Length;
                    return;
                }

                _plan.Begin(offset >> _image._blockBits, 1);
                _plan.AddHash(0, _image.Index!.HashOf(block));
                _image.Index.Find(_plan.Hashes.AsSpan(0, 1), _plan.Found);
                _plan.BeginWriting();
                bool found = _plan.Found[0] is { } entry && (_share || entry.Host == host) && _image.TryShare(_plan, 0, block, entry);
                if (!found)
                    _plan.Written[0] = host;
            }
            finally
            {
                ArrayPool<byte>.Shared.Return(buffer);
            }
        }
    }
}
