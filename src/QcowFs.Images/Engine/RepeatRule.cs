// When hashing is worth it: a load that never repeats is not hashed in full.
//
// Rule. All blocks are hashed until 16384 in a row gave fewer than one hit in 256. From then on only every sixteenth is, chosen by a few words of
// its content, so that equal blocks are chosen alike wherever they are written; the others are stored without a look. As soon as 64 chosen
// blocks in a row give at least one hit, all blocks are hashed again. What was not hashed is not in the index: a scan finds it later.
using System.Buffers.Binary;

namespace QcowFs.Images.Engine;

/// <summary>Decides which blocks are hashed. Thread-safe.</summary>
internal sealed class RepeatRule
{
    public const int FullWindow = 16384;
    public const int LeastHits = FullWindow / 256;
    public const int SampleWindow = 64;
    public const int SampleOneIn = 16;

    private readonly Lock _lock = new();
    private int _looked;
    private int _hits;
    private volatile bool _sampling;

    /// <summary>Whether only a sample is hashed now.</summary>
    public bool IsSampling => _sampling;

    /// <summary>Whether a block is to be hashed.</summary>
    public bool Wants(ReadOnlySpan<byte> block) => !_sampling || IsSample(block);

    /// <summary>Tells what became of hashed blocks.</summary>
    public void Note(int hashed, int hits)
    {
        lock (_lock)
        {
            _looked += hashed;
            _hits += hits;
            if (_looked < (_sampling ? SampleWindow : FullWindow))
                return;
            _sampling = _sampling ? _hits == 0 : _hits < LeastHits;
            _looked = 0;
            _hits = 0;
        }
    }

    /// <summary>The same answer for equal blocks.</summary>
    private static bool IsSample(ReadOnlySpan<byte> block)
    {
        ulong mixed = 0;
        for (int i = 0; i < 4; i++)
        {
            ulong word = BinaryPrimitives.ReadUInt64LittleEndian(block[((block.Length / 4 * i) + (8 * i))..]);
            mixed = unchecked(((mixed ^ word) * 0x9E3779B97F4A7C15UL) ^ (mixed >> 29));
        }

        return mixed >> 60 == 0;
    }
}
