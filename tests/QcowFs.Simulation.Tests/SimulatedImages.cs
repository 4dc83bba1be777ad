// Images for simulation: made once by qemu-img with every feature that the engine treats differently, then put on simulated disks.
using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Diagnostics;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

/// <summary>A kind of image to simulate on.</summary>
/// <param name="Options">qemu-img's creation options.</param>
/// <param name="Size">Virtual size in bytes.</param>
/// <param name="Content">How the image is filled before the simulation begins.</param>
/// <param name="Compress">Whether the engine compresses what it writes.</param>
public sealed record Geometry(string Options, int Size, InitialContent Content = InitialContent.Empty, bool Compress = false)
{
    public override string ToString() => $"{Options} size={Size} {Content}{(Compress ? " compressing" : "")}";
}

/// <summary>What an image holds when the simulation begins.</summary>
public enum InitialContent
{
    Empty,
    /// <summary>Over a backing image that is shorter than the disk.</summary>
    Backing,
    /// <summary>All clusters are shared with an internal snapshot.</summary>
    Snapshot,
    /// <summary>All clusters are compressed, several to a host cluster.</summary>
    Compressed,
    /// <summary>All clusters are written.</summary>
    Full,
    /// <summary>Guest data lives in another file.</summary>
    ExternalData,
    /// <summary>All clusters are written, and there are persistent bitmaps of two granularities and a disabled one.</summary>
    Bitmaps,
}

/// <summary>An image as bytes, with what it reads as.</summary>
internal sealed record PreparedImage(byte[] File, byte[]? Data, byte[]? Backing, byte[] Guest, bool Compress = false);

internal static class SimulatedImages
{
    private static readonly ConcurrentDictionary<Geometry, PreparedImage> Prepared = new();

    /// <summary>The image of a geometry. Made once.</summary>
    public static PreparedImage Prepare(Geometry geometry) => Prepared.GetOrAdd(geometry, Make);

    /// <summary>Bytes of a cluster of the image.</summary>
    public static int ClusterSize(PreparedImage image) => 1 << BinaryPrimitives.ReadInt32BigEndian(image.File.AsSpan(20));

    /// <summary>A disk with the image on it.</summary>
    public static SimulatedDisk DiskOf(PreparedImage image)
    {
        SimulatedDisk disk = new();
        disk.Create("image", image.File);
        if (image.Data is not null)
            disk.Create("data", image.Data);
        return disk;
    }

    /// <summary>Opens the image on a disk.</summary>
    public static CowImage Open(SimulatedDisk disk, PreparedImage image, bool writable = true, long cacheSize = 1024, Action<string>? log = null, JournalOptions? journal = null)
    {
        SimulatedStorage file = disk.Open("image", readOnly: !writable);
        IStorage? data = image.Data is null ? null : disk.Open("data", readOnly: !writable);
        IDiskImage? backing = image.Backing is null ? null : OpenBacking(image.Backing);
        OpenOptions options = new() { Writable = writable, CommitInterval = TimeSpan.Zero, BackgroundRecovery = false, CacheSize = cacheSize, Journal = journal, Log = log, Compress = image.Compress };
        return (CowImage)Qcow2Image.Open(new Qcow2Parts(Qcow2HeaderReader.Read(file), file, data, backing, options));
    }

    /// <summary>Fails the test unless qemu-img finds no error and no leak, and reads the same bytes.</summary>
    public static void JudgeByQemu(SimulatedDisk disk, PreparedImage image, ReadOnlySpan<byte> expected, string where)
    {
        string folder = Directory.CreateTempSubdirectory("qcowfs-simulation-").FullName;
        try
        {
            string path = Path.Combine(folder, "image");
            File.WriteAllBytes(path, disk.Content("image"));
            File.WriteAllBytes(Path.Combine(folder, "model"), expected);
            string source = path;
            if (image.Data is not null)
            {
                File.WriteAllBytes(Path.Combine(folder, "data"), disk.Content("data"));
                source = $"json:{{\"driver\":\"qcow2\",\"file.filename\":\"{path}\",\"data-file\":{{\"driver\":\"file\",\"filename\":\"{folder}/data\"}}}}";
            }

            if (image.Backing is not null)
            {
                File.WriteAllBytes(Path.Combine(folder, "backing"), image.Backing);
                Run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", Path.Combine(folder, "backing"), path);
            }

            Run("qemu-img", "check", "-q", source);
            Run("qemu-img", "compare", "-q", source, $"json:{{\"driver\":\"raw\",\"file.filename\":\"{folder}/model\"}}");
        }
        catch (Xunit.Sdk.XunitException exception)
        {
            throw new InvalidOperationException($"{where}: {exception.Message}", exception);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>Fails the test unless the snapshot "before" still reads as when it was made.</summary>
    public static void JudgeSnapshotByQemu(SimulatedDisk disk, byte[] expected, string where)
    {
        string folder = Directory.CreateTempSubdirectory("qcowfs-simulation-").FullName;
        try
        {
            File.WriteAllBytes(Path.Combine(folder, "image"), disk.Content("image"));
            Run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name=before", Path.Combine(folder, "image"), Path.Combine(folder, "raw"));
            Assert.True(File.ReadAllBytes(Path.Combine(folder, "raw")).AsSpan().SequenceEqual(expected), $"{where}: the snapshot changed");
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>Runs a program, which must succeed.</summary>
    public static string Run(string program, params string[] arguments)
    {
        ProcessStartInfo start = new(program, arguments) { UseShellExecute = false, RedirectStandardOutput = true, RedirectStandardError = true };
        using Process process = Process.Start(start)!;
        Task<string> errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd() + errors.Result;
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, $"{program} {string.Join(' ', arguments)}: exit {process.ExitCode}\n{output}");
        return output;
    }

    internal static IDiskImage OpenBacking(byte[] bytes)
    {
        MemoryStorage file = new("backing");
        file.Write(0, bytes);
        return Qcow2Image.Open(new Qcow2Parts(Qcow2HeaderReader.Read(file), file, null, null, new OpenOptions()));
    }

    private static PreparedImage Make(Geometry geometry)
    {
        string folder = Directory.CreateTempSubdirectory("qcowfs-simulation-").FullName;
        try
        {
            return Make(geometry, folder);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static PreparedImage Make(Geometry geometry, string folder)
    {
        string path = Path.Combine(folder, "image");
        byte[] guest = new byte[geometry.Size];
        byte[] pattern = new byte[geometry.Size];
        for (int i = 0; i < pattern.Length; i++)
            pattern[i] = (byte)(1 + (i / 64 % 200) + (i % 3));
        string raw = Path.Combine(folder, "raw");
        File.WriteAllBytes(raw, pattern);
        string size = geometry.Size.ToString();
        byte[]? backing = null;
        switch (geometry.Content)
        {
            case InitialContent.Empty:
                Run("qemu-img", "create", "-q", "-f", "qcow2", "-o", geometry.Options, path, size);
                break;
            case InitialContent.ExternalData:
                Run("qemu-img", "create", "-q", "-f", "qcow2", "-o", $"{geometry.Options},data_file={folder}/data", path, size);
                break;
            case InitialContent.Backing:
                int covered = geometry.Size * 3 / 4 / 512 * 512;
                File.WriteAllBytes(raw, pattern[..covered]);
                string backingPath = Path.Combine(folder, "backing");
                Run("qemu-img", "convert", "-O", "qcow2", raw, backingPath);
                backing = File.ReadAllBytes(backingPath);
                Run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backingPath, "-o", geometry.Options, path, size);
                pattern.AsSpan(0, covered).CopyTo(guest);
                break;
            default:
                string[] compress = geometry.Content == InitialContent.Compressed ? ["-c"] : [];
                Run("qemu-img", ["convert", .. compress, "-O", "qcow2", "-o", geometry.Options, raw, path]);
                if (geometry.Content == InitialContent.Snapshot)
                    Run("qemu-img", "snapshot", "-c", "before", path);
                if (geometry.Content == InitialContent.Bitmaps)
                {
                    Run("qemu-img", "bitmap", "--add", "-g", "512", path, "fine");
                    Run("qemu-img", "bitmap", "--add", "-g", "4096", path, "coarse");
                    Run("qemu-io", "-f", "qcow2", "-c", "write 3000 1000", path);
                    Run("qemu-img", "bitmap", "--add", "--disable", "-g", "1024", path, "off");
                    Run("qemu-img", "bitmap", "--merge", "fine", path, "off");
                    pattern.AsSpan(3000, 1000).Fill(0xcd);
                }

                pattern.CopyTo(guest, 0);
                break;
        }

        string dataPath = Path.Combine(folder, "data");
        return new PreparedImage(File.ReadAllBytes(path), File.Exists(dataPath) ? File.ReadAllBytes(dataPath) : null, backing, guest, geometry.Compress);
    }
}
