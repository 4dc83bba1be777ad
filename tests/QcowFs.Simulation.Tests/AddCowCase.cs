// add-cow images for simulation: three files on one simulated disk, made from the description of the format, with an image file full of
// bytes that must never be seen.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

/// <summary>A kind of add-cow image.</summary>
/// <param name="ClusterBits">Unit of the bitmap; 9: the layout of March 2012.</param>
/// <param name="Size">Size of the disk.</param>
/// <param name="BackingSize">Size of the backing file, -1: none.</param>
/// <param name="MissingFrom">Clusters before this one are in the image file from the start.</param>
/// <param name="IsInQcow2">The image file is a qcow2 image, empty at the start.</param>
public sealed record AddCowCase(int ClusterBits, int Size, int BackingSize, int MissingFrom = 0, bool IsInQcow2 = false)
{
    public const string Overlay = "overlay", Image = "image", Base = "base";

    public override string ToString() =>
        $"{(ClusterBits == 9 ? "March 2012" : $"clusters of {1 << ClusterBits}")}, {Size} bytes over {BackingSize}, missing from {MissingFrom}{(IsInQcow2 ? ", in qcow2" : "")}";

    /// <summary>What the disk reads as before anything is written.</summary>
    public byte[] Guest
    {
        get
        {
            byte[] guest = new byte[Size];
            Backing.AsSpan(0, Math.Min(Backing.Length, Size)).CopyTo(guest);
            Stale.AsSpan(0, Math.Min(MissingFrom << ClusterBits, Size)).CopyTo(guest);
            return guest;
        }
    }

    private byte[] Backing => BackingSize < 0 ? [] : Pattern.Bytes(11, 0, BackingSize);

    private byte[] Stale => Pattern.Bytes(12, 0, Size);

    /// <summary>A disk with the three files.</summary>
    public SimulatedDisk MakeDisk()
    {
        AddCowBytes bytes = new()
        {
            DiskSize = Size,
            ClusterBits = ClusterBits,
            Backing = BackingSize < 0 ? null : Base,
            ImageFormat = IsInQcow2 ? "qcow2" : "raw",
            IsAllocated = cluster => cluster < MissingFrom,
        };
        SimulatedDisk disk = new();
        disk.Create(Overlay, ClusterBits == 9 ? bytes.March() : bytes.Final());
        if (IsInQcow2)
            new ImageCreator(disk).Create(new ImageRequest { Path = Image, Format = "qcow2", Size = Size, Options = [new("cluster_size", "512")] });
        else
            disk.Create(Image, Stale);
        if (BackingSize >= 0)
            disk.Create(Base, Backing);
        return disk;
    }

    internal static CowImage Open(SimulatedDisk disk, bool writable = true, long cacheSize = 4096, Action<string>? log = null) =>
        (CowImage)new ImageOpener(disk).Open(Overlay, new OpenOptions
        {
            Writable = writable,
            CommitInterval = TimeSpan.Zero,
            BackgroundRecovery = false,
            CacheSize = cacheSize,
            Log = log,
        });

    /// <summary>Whether the image says on the medium that it needs neither bitmap nor backing file.</summary>
    internal static bool IsMarkedComplete(byte[] overlay) =>
        overlay.AsSpan().StartsWith("ACOW"u8) && (overlay[AddCowBytes.CompatFeaturesAt] & 1) != 0;

    /// <summary>Fails the test unless the disk holds what the model allows, the check finds nothing at all, and the backing file is
    /// untouched; and, where it says that it is complete, unless the image file alone holds it.</summary>
    internal void Judge(SimulatedDisk disk, DiskModel model, string where)
    {
        try
        {
            using (CowImage image = Open(disk, writable: false))
                model.CheckAfterCrash(image);
            if (BackingSize >= 0)
                Assert.True(disk.Content(Base).AsSpan().SequenceEqual(Backing), "the backing file was written");
            CheckReport report = new ImageOpener(disk).Check(Overlay);
            Assert.True(report.ExitCode == 0, string.Join("; ", report.Findings.Select(f => f.Message)));
            if (IsInQcow2)
            {
                CheckReport inner = new ImageOpener(disk).Check(Image);
                Assert.True(inner.Corruptions + inner.CheckErrors == 0, string.Join("; ", inner.Findings.Select(f => f.Message)));
            }

            if (!IsMarkedComplete(disk.Content(Overlay)))
                return;
            using IStorage file = IsInQcow2 ? new ImageOpener(disk).Open(Image, new OpenOptions()) : disk.Open(Image, readOnly: true);
            model.CheckAfterCrash(file);
        }
        catch (Exception exception) when (exception is not InvalidOperationException)
        {
            throw new InvalidOperationException($"{this}: {where}: {exception.Message}", exception);
        }
    }
}
