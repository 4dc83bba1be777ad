// Keeps the last few decompressed blocks, so that small sequential reads do not decompress a block once for each of them.
namespace QcowFs.Images.Engine;

/// <summary>Fills a block with the decompressed bytes that a descriptor stands for.</summary>
internal delegate void Decompress(long descriptor, Span<byte> block);

/// <summary>Decompressed blocks by their descriptor. Thread-safe.</summary>
internal sealed class CompressedBlockCache(int blockSize, Decompress decompress)
{
    private const int Slots = 4;

    private readonly Entry?[] _entries = new Entry?[Slots];
    private int _next;

    /// <summary>Copies a part of a decompressed block.</summary>
    /// <param name="descriptor">The format's descriptor of the compressed block.</param>
    /// <param name="offset">First byte within the block.</param>
    /// <param name="destination">Receives the part.</param>
    public void Read(long descriptor, int offset, Span<byte> destination)
    {
        foreach (Entry? entry in _entries)
        {
            if (entry is null || !Monitor.TryEnter(entry))
                continue;
            try
            {
                if (entry.Descriptor == descriptor)
                {
                    entry.Block.AsSpan(offset, destination.Length).CopyTo(destination);
                    return;
                }
            }
            finally
            {
                Monitor.Exit(entry);
            }
        }

        int slot = (Interlocked.Increment(ref _next) & int.MaxValue) % Slots;
        Entry target = _entries[slot] ?? Interlocked.CompareExchange(ref _entries[slot], new Entry(blockSize), null)
            ?? _entries[slot]!;
        lock (target)
        {
            target.Descriptor = -1;
            decompress(descriptor, target.Block);
            target.Descriptor = descriptor;
            target.Block.AsSpan(offset, destination.Length).CopyTo(destination);
        }
    }

    /// <summary>Forgets everything. Called when compressed blocks are freed, after the readers that may hold them have left and before
    /// their space can hold others.</summary>
    public void Clear()
    {
        foreach (Entry? entry in _entries)
        {
            if (entry is null)
                continue;
            lock (entry)
                entry.Descriptor = -1;
        }
    }

    private sealed class Entry(int blockSize)
    {
        public long Descriptor { get; set; } = -1;

        public byte[] Block { get; } = new byte[blockSize];
    }
}
