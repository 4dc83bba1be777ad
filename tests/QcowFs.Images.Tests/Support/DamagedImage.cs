// One image with a little of everything, and one damage for each rule of the check.
using QcowFs.Images.Qcow2;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Support;

internal static class DamagedImage
{
    /// <summary>Makes the undamaged image.</summary>
    public static string Make(TempDirectory folder)
    {
        string path = folder["image.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", path, "1G");
        Qemu.Img("bitmap", "--add", path, "bitmap");
        Qemu.Io("qcow2", path, "write -P 1 0 1M", "write -z 2M 64k", "write -c -P 7 3M 64k");
        Qemu.Img("snapshot", "-c", "before", path);
        Qemu.Io("qcow2", path, "write -P 2 1M 1M");
        Assert.Equal(0, QemuImg.Check(path).ExitCode);
        return path;
    }

    /// <summary>Damages it.</summary>
    public static void Apply(Damage hands, string damage)
    {
        ulong data = hands.Get(hands.L2At(20));
        long l1 = hands.L1At(0);
        ulong table = hands.Get(l1);
        long reftable = hands.Header.RefcountTableOffset;
        ulong block = hands.Get(reftable);
        long snapshot = hands.Header.SnapshotsOffset;
        ulong outside = ((ulong)hands.Length + 0x100000) & ~0xFFFFUL;
        switch (damage)
        {
            case "leak": hands.Set(hands.L2At(20), 0); break;
            case "count too high": hands.Set16(hands.CountAt(0), 2); break;
            case "count too low": hands.Set16(hands.CountAt((long)(hands.Get(hands.L2At(0)) & L2Entry.OffsetMask) >> 16), 1); break;
            case "count zero": hands.Set16(hands.CountAt((long)(data & L2Entry.OffsetMask) >> 16), 0); break;
            case "header count": hands.Set16(hands.CountAt(0), 0); break;
            case "copied missing": hands.Set(hands.L2At(20), data & ~L2Entry.CopiedBit); break;
            case "copied wrong": hands.Set(hands.L2At(0), hands.Get(hands.L2At(0)) | L2Entry.CopiedBit); break;
            case "l1 copied missing": hands.Set(l1, table & ~L1Entry.CopiedBit); break;
            case "l1 reserved": hands.Set(l1, table | 1UL << 60); break;
            case "l1 misaligned": hands.Set(l1, table + 512); break;
            case "l1 out of range": hands.Set(hands.L1At(1), outside | L1Entry.CopiedBit); break;
            case "l1 flag only": hands.Set(hands.L1At(1), L1Entry.CopiedBit); break;
            case "l1 names header": hands.Set(hands.L1At(1), hands.Get(hands.Header.RefcountTableOffset)); break;
            case "l2 reserved": hands.Set(hands.L2At(20), data | 1UL << 57); break;
            case "l2 misaligned": hands.Set(hands.L2At(20), data + 512); break;
            case "l2 zero misaligned": hands.Set(hands.L2At(40), (data + 512) | L2Entry.ZeroBit); break;
            case "l2 out of range": hands.Set(hands.L2At(40), outside | L2Entry.CopiedBit); break;
            case "l2 twice": hands.Set(hands.L2At(40), data); break;
            case "l2 names refcount block": hands.Set(hands.L2At(40), block); break;
            case "compressed copied": hands.Set(hands.L2At(48), hands.Get(hands.L2At(48)) | L2Entry.CopiedBit); break;
            case "compressed out of range": hands.Set(hands.L2At(48), L2Entry.CompressedBit | 0x3FFFFFFFFFF000); break;
            case "refcount table reserved": hands.Set(reftable, block | 8); break;
            case "refcount table misaligned": hands.Set(reftable, block + 512); break;
            case "refcount table out of range": hands.Set(reftable + 8, outside); break;
            case "refcount block twice": hands.Set(reftable + 8, block); break;
            case "no refcount block": hands.Set(reftable, 0); break;
            case "snapshot l1 misaligned": hands.Set(snapshot, hands.Get(snapshot) + 8); break;
            case "snapshot l1 too large": hands.Set32(snapshot + 8, (4 << 20) + 1); break;
            case "snapshot extra": DropExtra(hands, snapshot); break;
            case "bitmap entry":
                long directory = hands.Header.Bitmaps!.DirectoryOffset;
                hands.Set((long)hands.Get(directory), 1UL << 60);
                break;
            default: throw new ArgumentOutOfRangeException(nameof(damage), damage, "no such damage");
        }
    }

    // The entry's extra data turns into its name: still a table that can be read.
    private static void DropExtra(Damage hands, long snapshot)
    {
        hands.Set32(snapshot + 36, 8);
        hands.Set16(snapshot + 14, (ushort)((hands.Get(snapshot + 8) & 0xFFFF) + 16));
    }
}
