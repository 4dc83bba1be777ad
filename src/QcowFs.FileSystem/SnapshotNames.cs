// What the files of snapshots are called (PRODUCT section 3): a snapshot's name may hold any bytes, a file's may not.
using System.Buffers;
using System.Text;
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>Names files of snapshots.</summary>
internal static class SnapshotNames
{
    /// <summary>The longest name of a file, in bytes.</summary>
    private const int LongestName = 255;

    /// <summary>A snapshot's file and what finds the snapshot in the image.</summary>
    /// <param name="FileName">The file's name.</param>
    /// <param name="Snapshot">The snapshot.</param>
    /// <param name="Key">Its name, or its id.</param>
    /// <param name="KeyIsId">Whether the key is the id.</param>
    public readonly record struct Named(byte[] FileName, SnapshotFacts Snapshot, string Key, bool KeyIsId);

    /// <summary>Names the snapshots of an image that have a name to be found by.</summary>
    /// <param name="image">The image's file name.</param>
    /// <param name="snapshots">Its snapshots.</param>
    /// <param name="warn">Told of those that are left out.</param>
    public static List<Named> Of(ReadOnlySpan<byte> image, IReadOnlyList<SnapshotFacts> snapshots, Action<string> warn)
    {
        Dictionary<string, int> bytes = Count(snapshots, static s => Convert.ToHexString(s.RawName.Span));
        Dictionary<string, int> names = Count(snapshots, static s => s.Name);
        Dictionary<string, int> ids = Count(snapshots, static s => s.Id);
        List<Named> named = [];
        foreach (SnapshotFacts snapshot in snapshots)
        {
            // A name finds one snapshot only where no other has the same text, which bytes that are not UTF-8 can bring about.
            bool byName = snapshot.Name.Length > 0 && names[snapshot.Name] == 1;
            if (!byName && ids[snapshot.Id] > 1)
            {
                warn($"snapshots with the id \"{snapshot.Id}\" cannot be told apart; none of them is shown");
                continue;
            }
            byte[] file = FileName(image, snapshot.RawName.Span, prefix: default);
            if (snapshot.RawName.IsEmpty || bytes[Convert.ToHexString(snapshot.RawName.Span)] > 1 || file.Length > LongestName)
                file = FileName(image, Encoding.UTF8.GetBytes(snapshot.Id), "id-"u8);
            if (file.Length > LongestName) warn($"the name of snapshot {snapshot.Id} is too long for a file, and so is its id; it is not shown");
            else named.Add(new Named(file, snapshot, byName ? snapshot.Name : snapshot.Id, !byName));
        }
        return named;
    }

    private static Dictionary<string, int> Count(IReadOnlyList<SnapshotFacts> snapshots, Func<SnapshotFacts, string> key)
    {
        Dictionary<string, int> counts = [];
        foreach (SnapshotFacts snapshot in snapshots) counts[key(snapshot)] = counts.GetValueOrDefault(key(snapshot)) + 1;
        return counts;
    }

    private static byte[] FileName(ReadOnlySpan<byte> image, ReadOnlySpan<byte> name, ReadOnlySpan<byte> prefix)
    {
        const byte firstVisible = 0x21, delete = 0x7F;
        ArrayBufferWriter<byte> file = new(image.Length + name.Length + 16);
        file.Write(image);
        file.Write("@"u8);
        file.Write(prefix);
        while (!name.IsEmpty)
        {
            bool valid = Rune.DecodeFromUtf8(name, out _, out int length) == OperationStatus.Done;
            bool kept = valid && (length > 1 || (name[0] is >= firstVisible and not delete and not (byte)'/' and not (byte)'%' and not (byte)'@'));
            if (!valid) length = 1;
            if (kept) file.Write(name[..length]);
            else file.Write(Encoding.ASCII.GetBytes($"%{name[0]:X2}"));
            name = name[length..];
        }
        file.Write(".raw"u8);
        return file.WrittenSpan.ToArray();
    }
}
