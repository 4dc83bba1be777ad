// qcow2 as an overlay: the header extension that remembers the base, and the step that empties the image after a commit.
//
// V1. What is remembered changes in steps of one sector, a sync after each: the state alone, or the rest while the state says that
//     it does not count.
// V2. Emptying: the base holds what the image holds, so every subset of the active L1 entries may go, in any order. They are durably
//     gone before a count is lowered (I3); a crash before that leaks.
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

internal static class Qcow2Overlay
{
    public static HeaderExtension MakeExtension(BaseIdentity identity)
    {
        byte[] data = new byte[BaseIdentity.Size];
        identity.WriteTo(data);
        return new HeaderExtension(HeaderExtensionType.OverlayBase, data);
    }

    /// <summary>What the image remembers of its base, or null.</summary>
    public static BaseIdentity? ReadBase(Qcow2Header header) =>
        header.FindExtension(HeaderExtensionType.OverlayBase) is { } extension && BaseIdentity.TryParse(extension.Data, out BaseIdentity identity)
            ? identity : null;

    /// <summary>Makes the image remember, durably. It must have the extension.</summary>
    /// <param name="header">The header as it was when the image was opened; only the extension's place is taken from it.</param>
    /// <param name="file">The image file.</param>
    /// <param name="identity">What to remember.</param>
    public static void WriteBase(Qcow2Header header, IStorage file, BaseIdentity identity)
    {
        HeaderExtension extension = header.FindExtension(HeaderExtensionType.OverlayBase)
            ?? throw new InvalidOperationException("the image remembers no base");
        int place = extension.DataOffset;
        byte[] bytes = new byte[BaseIdentity.Size];
        (identity with { IsCommitting = true }).WriteTo(bytes);
        // V1. The state is an aligned word, so one sector holds it.
        file.Write(place + BaseIdentity.StateAt, bytes.AsSpan(BaseIdentity.StateAt, BaseIdentity.StateSize));
        file.Sync();
        file.Write(place, bytes);
        file.Sync();
        if (identity.IsCommitting)
            return;
        identity.WriteTo(bytes);
        file.Write(place + BaseIdentity.StateAt, bytes.AsSpan(BaseIdentity.StateAt, BaseIdentity.StateSize));
        file.Sync();
    }

    /// <summary>Lets the base supply everything, durably. Faults: <see cref="ImageFormatException"/> before anything changes;
    /// <see cref="StorageException"/>, which leaves a valid image, with leaks at worst.</summary>
    public static void Empty(Qcow2Header header, IStorage file)
    {
        Qcow2Edit edit = Qcow2Edit.Begin(header, file);
        L1Entry[] l1 = edit.ReadL1(header.L1Offset, header.L1Size);
        if (!Array.Exists(l1, static entry => entry.IsAllocated))
            return;
        edit.BeginUse();
        edit.WriteL1(header.L1Offset, new L1Entry[l1.Length]);
        file.Sync(); // V2
        // Guest clusters of an external data file are not counted.
        if (header.HasExternalDataFile)
        {
            foreach (L1Entry entry in l1)
            {
                if (entry.IsAllocated)
                    edit.Counts.Lower(entry.TableOffset >> header.ClusterBits);
            }
        }
        else
        {
            edit.Walk(l1, edit.Counts.Lower);
        }

        edit.Counts.WriteLowered();
        edit.EndUse();
    }
}
