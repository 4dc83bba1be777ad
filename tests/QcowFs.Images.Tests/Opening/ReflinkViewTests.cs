// Views of disks where nothing can be shared; those that share blocks need XFS or Btrfs, and are tested by mounts.
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Opening;

public sealed class ReflinkViewTests : IDisposable
{
    private const int Size = (2 << 20) + 512;

    private readonly TempDirectory _temp = TempDirectory.InMemory(); // tmpfs does not share blocks
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    [SkippableFact]
    public void What_cannot_be_shared_is_copied_and_holes_stay_holes()
    {
        byte[] model = Make(compress: true);
        using IDiskImage disk = _opener.Open(_temp["disk"], new OpenOptions());
        using FileStorage view = HostFiles.Open(_temp["view"], StorageAccess.Create);
        ReflinkResult result = ReflinkView.Fill(view, disk, new ReflinkLimits { MostCopied = 320 << 10 });
        Assert.Null(result.Obstacle);
        Assert.Equal((0, 320 << 10), (result.Shared, result.Copied));
        Assert.Equal(model, File.ReadAllBytes(_temp["view"]));
        Assert.InRange(view.QueryFacts().AllocatedBytes, 320 << 10, 340 << 10);
    }

    [SkippableFact]
    public void Beyond_a_limit_nothing_is_made()
    {
        Make(compress: true);
        using IDiskImage disk = _opener.Open(_temp["disk"], new OpenOptions());
        using FileStorage view = HostFiles.Open(_temp["view"], StorageAccess.Create);
        Assert.Contains("would have to be copied", ReflinkView.Fill(view, disk, new ReflinkLimits { MostCopied = (320 << 10) - 1 }).Obstacle, StringComparison.Ordinal);
        Assert.Equal(0, view.Length);
        Make(compress: false);
        using IDiskImage coarse = _opener.Open(_temp["disk"], new OpenOptions());
        Assert.Contains("more than 1 pieces", ReflinkView.Fill(view, coarse, new ReflinkLimits { MostRanges = 1 }).Obstacle, StringComparison.Ordinal);
        Assert.Equal(0, view.Length);
    }

    [SkippableFact]
    public void A_file_system_that_cannot_share_is_an_obstacle()
    {
        Make(compress: false);
        using IDiskImage disk = _opener.Open(_temp["disk"], new OpenOptions());
        using FileStorage view = HostFiles.Open(_temp["view"], StorageAccess.Create);
        Assert.Contains("cannot share blocks", ReflinkView.Fill(view, disk, new ReflinkLimits()).Obstacle, StringComparison.Ordinal);
    }

    // Two runs of whole clusters.
    private byte[] Make(bool compress)
    {
        Tools.Require("qemu-img");
        File.Delete(_temp["disk"]);
        Qemu.Img("create", "-q", "-f", "qcow2", _temp["disk"], $"{Size}");
        byte[] model = new byte[Size];
        using IDiskImage image = _opener.Open(_temp["disk"], new OpenOptions { Writable = true, Compress = compress });
        foreach ((int offset, int length) in ((int, int)[])[(0, 128 << 10), (1 << 20, 192 << 10)])
        {
            for (int i = 0; i < length; i++)
                model[offset + i] = (byte)(1 + ((i >> 9) % 251));
            image.Write(offset, model.AsSpan(offset, length));
        }

        image.Close();
        return model;
    }
}
