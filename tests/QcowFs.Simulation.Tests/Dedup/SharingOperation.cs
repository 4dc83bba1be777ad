// Random guest operations that repeat content: what deduplication lives on.
using QcowFs.Images.Engine;
using QcowFs.Testing;

namespace QcowFs.Simulation.Tests;

internal enum SharingKind
{
    Write,
    Discard,
    Sync,
    FlushIndex,
}

/// <summary>One operation.</summary>
internal sealed record SharingOperation(SharingKind Kind, int Offset, byte[] Bytes)
{
    /// <summary>Contents that collide when their hashes are weak: each of these with one a hundred lower.</summary>
    private const int FirstTwin = 100;

    /// <summary>Mostly writes of whole blocks whose content is one of a few; some parts of blocks, discards, syncs.</summary>
    /// <param name="seed">Decides all.</param>
    /// <param name="count">How many operations.</param>
    /// <param name="size">Bytes of the disk.</param>
    /// <param name="block">Bytes of a block.</param>
    /// <param name="contents">How many contents, and as many again that collide with them. Few: many references; many: few, so that counts
    /// fall to one all the time.</param>
    public static IEnumerable<SharingOperation> Random(ulong seed, int count, int size, int block, int contents = 5)
    {
        Random random = new(unchecked((int)seed));
        int blocks = size / block;
        for (int i = 0; i < count; i++)
        {
            int run = Math.Min(random.Next(1, 5), blocks);
            int first = random.Next(0, blocks - run + 1) * block;
            int kind = random.Next(12);
            if (kind < 7)
            {
                byte[] bytes = new byte[run * block];
                for (int j = 0; j < run; j++)
                    Content(random.Next(contents) + (random.Next(3) == 0 ? FirstTwin : 0), block).CopyTo(bytes.AsSpan(j * block));
                yield return new SharingOperation(SharingKind.Write, first, bytes);
            }
            else if (kind == 7)
            {
                int length = random.Next(1, block * 2);
                byte[] bytes = new byte[length];
                random.NextBytes(bytes);
                yield return new SharingOperation(SharingKind.Write, random.Next(0, size - length), bytes);
            }
            else if (kind == 8)
            {
                yield return new SharingOperation(SharingKind.Discard, first, new byte[run * block]);
            }
            else
            {
                yield return new SharingOperation(kind == 9 ? SharingKind.FlushIndex : SharingKind.Sync, 0, []);
            }
        }
    }

    /// <summary>Content number 0 is zeros; number 100 + i collides with i when hashes are weak.</summary>
    public static byte[] Content(int number, int block)
    {
        if (number == 0)
            return new byte[block];
        byte[] bytes = Pattern.Bytes((ulong)number, 0, block);
        if (number < FirstTwin)
            return bytes;
        bytes[^1] = 0;
        bytes[^1] = unchecked((byte)(SharingImages.WeakSum(Content(number - FirstTwin, block)) - SharingImages.WeakSum(bytes)));
        return bytes;
    }

    /// <summary>Does it, the model first, so that a crash in the middle finds both values allowed.</summary>
    public void Run(CowImage image, DiskModel model)
    {
        long mark = model.Mark;
        if (Bytes.Length > 0)
            model.Write(Offset, Bytes);
        switch (Kind)
        {
            case SharingKind.Write:
                image.Write(Offset, Bytes);
                break;
            case SharingKind.Discard:
                image.Discard(Offset, Bytes.Length);
                break;
            case SharingKind.FlushIndex:
                image.FlushIndexEarly();
                break;
            default:
                image.Sync();
                model.Sync(mark);
                break;
        }
    }
}
