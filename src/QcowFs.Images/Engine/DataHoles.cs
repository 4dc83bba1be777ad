// What the file with the guest's data knows of its own holes.
using QcowFs.Storage;

namespace QcowFs.Images.Engine;

internal static class DataHoles
{
    /// <summary>Whether the byte at <paramref name="offset"/> may be other than zero, for the next <paramref name="run"/> bytes, at most
    /// <paramref name="length"/>. A storage that cannot tell is all data.</summary>
    public static bool IsData(IStorage data, long offset, long length, out long run)
    {
        run = length;
        data = data is LatchedStorage latched ? latched.Inner : data;
        if (data is IDiskImage image)
        {
            Extent extent = image.QueryExtent(offset, length);
            run = extent.Length > 0 ? extent.Length : length;
            return extent.Kind is ExtentKind.Data or ExtentKind.Compressed;
        }

        if (data is not IExtentSource extents)
            return true;
        bool isData = extents.IsData(offset, out long end);
        run = end > offset ? Math.Min(length, end - offset) : length;
        return isData;
    }
}
