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
    private const int Contents = 5;

    /// <summary>Mostly writes of whole blocks whose content is one of a few; some parts of blocks, discards, syncs.</summary>
    public static IEnumerable<SharingOperation> Random(ulong seed, int count, int size, int block)
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
                    Content(random.Next(Contents)).AsSpan(0, block).CopyTo(bytes.AsSpan(j * block));
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

    /// <summary>Content number 0 is zeros.</summary>
    public static byte[] Content(int number) => number == 0 ? new byte[1 << 16] : Pattern.Bytes((ulong)number, 0, 1 << 16);

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
