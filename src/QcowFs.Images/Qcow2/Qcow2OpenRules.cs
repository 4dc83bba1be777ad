// What a qcow2 image must be to be opened, beyond a header that can be read. `info` and `inspect` ask none of this.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

internal static class Qcow2OpenRules
{
    private const string Structure = "header";

    /// <summary>Throws <see cref="ImageFormatException"/> where the image cannot be opened so.</summary>
    public static void Require(Qcow2Header header, IStorage file, bool writable)
    {
        RequireKnownContent(header, file);
        RequireTable(file, "L1 table", header.L1Offset, (long)header.L1Size * L1Entry.Size);
        if (!writable)
            return;

        string repair = $"run qcowfs check --repair {file.Name}";
        if (header.IsCorrupt)
        {
            throw Bad(file, Qcow2HeaderLayout.IncompatibleFeaturesAt, "the image is marked corrupt and can only be read",
                $"{repair}, or mount it without -w");
        }

        if (header.RefcountTableClusters == 0)
        {
            throw Bad(file, Qcow2HeaderLayout.RefcountTableClustersAt, "the image has no refcount table",
                $"{repair}, or mount it without -w");
        }

        RequireTable(file, "refcount table", header.RefcountTableOffset, (long)header.RefcountTableClusters << header.ClusterBits);
    }

    private static void RequireKnownContent(Qcow2Header header, IStorage file)
    {
        if (header.CryptMethod != CryptMethod.None)
        {
            throw Bad(file, Qcow2HeaderLayout.CryptMethodAt,
                $"the image is encrypted ({(header.CryptMethod == CryptMethod.Aes ? "AES" : "LUKS")}), which is not supported",
                "make a decrypted copy with qemu-img convert");
        }

        if (header.HasExternalDataFile && string.IsNullOrEmpty(header.DataFileName))
        {
            throw Bad(file, Qcow2HeaderLayout.IncompatibleFeaturesAt, "the image has an external data file but does not name it",
                "name it with qemu-img amend -o data_file=NAME");
        }
    }

    /// <summary>Throws where the image has a journal, which only a mount with -w and a repair replay.</summary>
    public static void RequireNoJournal(Qcow2Header header, IStorage file)
    {
        if (header.HasJournal)
        {
            throw Bad(file, Qcow2HeaderLayout.IncompatibleFeaturesAt, "the image has a journal that is not replayed",
                $"run qcowfs check --repair {file.Name} first");
        }
    }

    private static void RequireTable(IStorage file, string structure, long offset, long length)
    {
        if (length > file.Length - offset)
        {
            throw new ImageFormatException(file.Name, structure, offset,
                $"its {length} bytes reach past the end of the file at byte {file.Length}",
                "the image is truncated; restore it from a copy");
        }
    }

    private static ImageFormatException Bad(IStorage file, long offset, string problem, string advice) =>
        new(file.Name, Structure, offset, problem, advice);
}
