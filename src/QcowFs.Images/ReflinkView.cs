// The content of a disk as a plain file that shares the blocks of the disk's own files: XFS and Btrfs let two files have blocks in common,
// so nothing is copied but what does not lie in whole blocks of its own.
//
// V1. Nothing is made before it is known what it costs: the first pass over the map counts, the second one makes.
// V2. What is shared is never written: by whom it is read the disk is read-only, and a write to either file would get a block of its own.
// V3. A view is whole or there is none: whatever fails leaves a file that nobody is shown.
using System.Buffers;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>What a view may cost.</summary>
public sealed record ReflinkLimits
{
    /// <summary>Bytes that may be copied because their blocks cannot be shared (compressed, ragged, on another file system): about as
    /// long as a person waits for a first open.</summary>
    public long MostCopied { get; init; } = 256L << 20;

    /// <summary>Ranges that may be shared; each takes the host some ten microseconds, and a piece of its map.</summary>
    public int MostRanges { get; init; } = 100_000;
}

/// <summary>What became of a view.</summary>
/// <param name="Obstacle">Why there is none, or null.</param>
/// <param name="Shared">Bytes whose blocks are shared.</param>
/// <param name="Copied">Bytes that were copied.</param>
/// <param name="Ranges">Ranges that were shared.</param>
public readonly record struct ReflinkResult(string? Obstacle, long Shared, long Copied, int Ranges);

/// <summary>Fills files with the content of disks.</summary>
public static class ReflinkView
{
    private const int CopySize = 256 << 10;

    /// <summary>Gives an empty file the content and the length of a disk that does not change meanwhile, its backing chain included.
    /// Faults: <see cref="StorageException"/>, <see cref="ImageFormatException"/>; then the file is of no use, as it is with an obstacle.
    /// </summary>
    public static ReflinkResult Fill(FileStorage view, IDiskImage disk, ReflinkLimits limits)
    {
        int unit = view.HostBlockSize;
        ulong device = view.QueryFacts().Device;
        ReflinkResult cost = default;
        foreach (Piece piece in Pieces(disk, unit, device)) // V1
        {
            cost = cost.With(piece);
            if (cost.Copied > limits.MostCopied)
            {
                return cost with
                {
                    Obstacle = $"more than {limits.MostCopied >> 20} MiB would have to be copied: they are compressed, not in whole blocks, or on another file system",
                };
            }

            if (cost.Ranges > limits.MostRanges)
                return cost with { Obstacle = $"the disk is in more than {limits.MostRanges} pieces" };
        }

        view.SetLength(disk.Length);
        ReflinkResult done = default;
        foreach (Piece piece in Pieces(disk, unit, device))
        {
            if (piece.Source is null)
                Copy(view, disk, piece);
            else if (view.TryClone(piece.Source, piece.Host, piece.Offset, piece.Length) is not Errno.None and var errno)
                return done with { Obstacle = ObstacleOf(errno) };
            done = done.With(piece);
        }

        return done;
    }

    private static string ObstacleOf(Errno errno) => errno switch
    {
        Errno.EOPNOTSUPP or Errno.ENOTTY or Errno.EINVAL or Errno.EXDEV => "the host file system cannot share blocks between these files",
        Errno.ENOSPC or Errno.EDQUOT => "the host file system is full",
        _ => $"sharing blocks failed: {ErrnoText.Describe(errno)}",
    };

    private static ReflinkResult With(this in ReflinkResult sum, in Piece piece) => piece.Source is null
        ? sum with { Copied = sum.Copied + piece.Length }
        : sum with { Shared = sum.Shared + piece.Length, Ranges = sum.Ranges + 1 };

    /// <summary>The disk's data in order: ranges whose blocks can be shared, and those between them that are to be copied.</summary>
    private static IEnumerable<Piece> Pieces(IDiskImage disk, int unit, ulong device)
    {
        Dictionary<FileStorage, bool> isNear = [];
        foreach (Piece piece in Runs(disk))
        {
            // The part that is whole blocks in both files.
            long start = (piece.Offset + unit - 1) / unit * unit;
            long end = (piece.Offset + piece.Length) / unit * unit;
            if (piece.Source is not { } source || (piece.Host - piece.Offset) % unit != 0 || end <= start || !IsNear(source))
            {
                yield return piece with { Source = null };
                continue;
            }

            long head = start - piece.Offset;
            if (head > 0)
                yield return new Piece(piece.Offset, head, null, -1);
            yield return new Piece(start, end - start, source, piece.Host + head);
            if (end < piece.Offset + piece.Length)
                yield return new Piece(end, piece.Offset + piece.Length - end, null, -1);
        }

        bool IsNear(FileStorage source)
        {
            // Subvolumes of one Btrfs look like devices of their own; they are copied from.
            if (!isNear.TryGetValue(source, out bool near))
                isNear[source] = near = source.QueryFacts() is { IsBlockDevice: false } facts && facts.Device == device;
            return near;
        }
    }

    /// <summary>The disk's data in order, what is contiguous in one file as one piece.</summary>
    private static IEnumerable<Piece> Runs(IDiskImage disk)
    {
        Piece run = default;
        for (long offset = 0; offset < disk.Length;)
        {
            Extent extent = disk.QueryExtent(offset, disk.Length - offset);
            if (extent.Kind is ExtentKind.Data or ExtentKind.Compressed)
            {
                FileStorage? source = null;
                bool lies = extent.Kind == ExtentKind.Data && extent.Host >= 0 && disk.TryGetDataFile(extent.Depth, out source);
                Piece next = new(offset, extent.Length, lies ? source : null, lies ? extent.Host : -1);
                if (run.IsFollowedBy(next))
                {
                    run = run with { Length = run.Length + next.Length };
                }
                else
                {
                    if (run.Length > 0)
                        yield return run;
                    run = next;
                }
            }

            offset += extent.Length;
        }

        if (run.Length > 0)
            yield return run;
    }

    private static void Copy(FileStorage view, IDiskImage disk, Piece piece)
    {
        byte[] buffer = ArrayPool<byte>.Shared.Rent(CopySize);
        try
        {
            for (long done = 0; done < piece.Length;)
            {
                Span<byte> part = buffer.AsSpan(0, (int)Math.Min(CopySize, piece.Length - done));
                disk.Read(piece.Offset + done, part);
                if (part.ContainsAnyExcept((byte)0))
                    view.Write(piece.Offset + done, part);
                done += part.Length;
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    /// <param name="Offset">Where on the disk.</param>
    /// <param name="Length">How long.</param>
    /// <param name="Source">The file whose blocks can be shared; null: copied.</param>
    /// <param name="Host">Where in it, or -1.</param>
    private readonly record struct Piece(long Offset, long Length, FileStorage? Source, long Host)
    {
        public bool IsFollowedBy(in Piece next) => Length > 0 && next.Offset == Offset + Length && ReferenceEquals(next.Source, Source)
            && (Source is null || next.Host == Host + Length);
    }
}
