// Random guest operations from a seed, for models, crashes and faults alike.
using QcowFs.Images;
using QcowFs.Testing;

namespace QcowFs.Simulation.Tests;

internal enum OperationKind
{
    Write,
    Discard,
    WriteZeroes,
    Reserve,
    Sync,
}

/// <summary>One guest operation.</summary>
internal sealed record Operation(OperationKind Kind, int Offset, byte[] Bytes)
{
    /// <summary>Operations on <paramref name="size"/> bytes from <paramref name="first"/> on: mostly small, some large, mostly whole sectors, some of them zeros.</summary>
    public static IEnumerable<Operation> Random(ulong seed, int count, int size, int first = 0)
    {
        Random random = new(unchecked((int)seed));
        for (int i = 0; i < count; i++)
        {
            int length = random.Next(4) == 0 ? random.Next(1, Math.Min(size, 40_000)) : random.Next(1, 3000);
            int offset = random.Next(0, size - length);
            if (random.Next(3) != 0)
                (offset, length) = (offset & ~511, Math.Max(512, length & ~511));
            length = Math.Min(length, size - offset); // where the size is no multiple of the sector
            offset += first;
            int kind = random.Next(10);
            byte[] bytes = new byte[length];
            if (kind < 4)
                random.NextBytes(bytes);
            yield return kind switch
            {
                < 5 => new Operation(OperationKind.Write, offset, bytes),
                5 => new Operation(OperationKind.Discard, offset, bytes),
                6 => new Operation(OperationKind.WriteZeroes, offset, bytes),
                7 => new Operation(OperationKind.Reserve, offset, bytes),
                _ => new Operation(OperationKind.Sync, 0, []),
            };
        }
    }

    /// <summary>The operations of a run on a kind of image: where it compresses, what is written can be compressed.</summary>
    public static IEnumerable<Operation> Random(ulong seed, int count, Geometry geometry, int first = 0)
    {
        foreach (Operation operation in Random(seed, count, geometry.Size - first, first))
        {
            // Some stays random: what does not shrink is stored as it is.
            for (int i = 0; geometry.Compress && operation.Offset / 512 % 5 != 0 && i < operation.Bytes.Length; i++)
                operation.Bytes[i] &= 3;
            yield return operation;
        }
    }

    private bool ChangesBytes => Kind is OperationKind.Write or OperationKind.Discard or OperationKind.WriteZeroes;

    /// <summary>Does it, the model first, so that a crash in the middle finds both values allowed.</summary>
    public void Run(IDiskImage image, DiskModel model)
    {
        long mark = model.Mark;
        if (ChangesBytes)
            model.Write(Offset, Bytes);
        Run(image);
        if (Kind == OperationKind.Sync)
            model.Sync(mark);
    }

    /// <summary>Does it where it may fail: until it succeeds the model takes it as done or not, sector by sector.</summary>
    public void RunDoubtfully(IDiskImage image, DiskModel model)
    {
        long mark = model.Mark;
        if (ChangesBytes)
            model.MaybeWrite(Offset, Bytes);
        Run(image);
        if (Kind == OperationKind.Sync)
            model.Sync(mark);
        else if (ChangesBytes)
            model.Write(Offset, Bytes);
    }

    private void Run(IDiskImage image)
    {
        switch (Kind)
        {
            case OperationKind.Write:
                image.Write(Offset, Bytes);
                break;
            case OperationKind.Discard:
                image.Discard(Offset, Bytes.Length);
                break;
            case OperationKind.WriteZeroes:
                image.WriteZeroes(Offset, Bytes.Length);
                break;
            case OperationKind.Reserve:
                image.Reserve(Offset, Bytes.Length);
                break;
            default:
                image.Sync();
                break;
        }
    }
}
