// Images made by other programs, kept packed beside the tests.
using System.IO.Compression;

namespace QcowFs.Testing;

/// <summary>Unpacks images of tests/QcowFs.Testing/Samples.</summary>
public static class Samples
{
    /// <summary>A dynamic VHDX whose log must be replayed.</summary>
    public const string DirtyVhdx = "vhdx-log-replay.vhdx.gz";

    /// <summary>A dynamic VHDX of Hyper-V's.</summary>
    public const string HyperVVhdx = "iotest-dynamic-1G.vhdx.bz2";

    /// <summary>Writes an image to a file.</summary>
    public static void Unpack(string sample, string path)
    {
        string packed = Path.Combine(Folder(), sample);
        if (sample.EndsWith(".gz", StringComparison.Ordinal))
        {
            using GZipStream source = new(File.OpenRead(packed), CompressionMode.Decompress);
            using FileStream target = File.Create(path);
            source.CopyTo(target);
            return;
        }

        Tools.Require("bzip2");
        _ = ChildProcess.Run("sh", "-c", "bzip2 -dc \"$1\" >\"$2\"", "sh", packed, path).MustSucceed();
    }

    private static string Folder()
    {
        string? folder = AppContext.BaseDirectory;
        while (folder is not null && !File.Exists(Path.Combine(folder, "QcowFs.sln")))
            folder = Path.GetDirectoryName(folder);
        return Path.Combine(folder ?? throw new InvalidOperationException("the sources are not above the test's own folder"), "tests/QcowFs.Testing/Samples");
    }
}
