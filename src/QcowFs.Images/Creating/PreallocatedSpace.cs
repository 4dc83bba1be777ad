// Makes host space for the data of a new image.
using QcowFs.Storage;

namespace QcowFs.Images;

internal static class PreallocatedSpace
{
    private const int Step = 1 << 20;

    /// <summary>Makes the space of a range that reads as zeros, as far as the mode says.</summary>
    public static void Fill(IStorage file, long offset, long length, Preallocation preallocation)
    {
        if (preallocation == Preallocation.Reserve)
            file.Reserve(offset, length);
        if (preallocation != Preallocation.Full)
            return;
        byte[] zeros = new byte[Step];
        for (long done = 0; done < length; done += Step)
            file.Write(offset + done, zeros.AsSpan(0, (int)Math.Min(Step, length - done)));
    }
}
