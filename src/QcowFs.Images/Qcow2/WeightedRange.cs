// Tables of an image may share bytes: by right (nothing forbids two snapshots to name one L1 table) or by malice (65,536 snapshots,
// each with an L1 table of 32 MiB, in a file of 33 MiB). Counting by byte instead of by table makes the work follow the file's size.
namespace QcowFs.Images.Qcow2;

/// <summary>A range of the image file that <paramref name="Weight"/> tables cover.</summary>
internal readonly record struct WeightedRange(long Offset, long Length, long Weight)
{
    /// <summary>Splits overlapping ranges so that each byte occurs once, in ascending order, with the number of ranges that cover
    /// it. Empty ranges vanish.</summary>
    public static List<WeightedRange> Merge(IEnumerable<(long Offset, long Length)> ranges)
    {
        List<(long Offset, int Change)> edges = [];
        foreach ((long offset, long length) in ranges)
        {
            if (length <= 0)
                continue;
            edges.Add((offset, 1));
            edges.Add((offset + length, -1));
        }

        edges.Sort();
        List<WeightedRange> merged = [];
        long weight = 0;
        for (int i = 0; i < edges.Count; i++)
        {
            if (weight > 0 && edges[i].Offset > edges[i - 1].Offset)
                merged.Add(new WeightedRange(edges[i - 1].Offset, edges[i].Offset - edges[i - 1].Offset, weight));
            weight += edges[i].Change;
        }

        return merged;
    }
}
