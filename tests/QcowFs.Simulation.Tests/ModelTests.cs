// Random operations on a qcow2 image and on a plain byte array must agree, for every geometry.
using QcowFs.Images;
using QcowFs.Images.Qcow2;
using QcowFs.Storage;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class ModelTests
{
    [Theory]
    [InlineData("cluster_size=512")]
    [InlineData("cluster_size=512,refcount_bits=1")]
    [InlineData("cluster_size=512,refcount_bits=64")]
    [InlineData("cluster_size=4096,refcount_bits=8")]
    [InlineData("cluster_size=65536")]
    [InlineData("cluster_size=16384,extended_l2=on")]
    [InlineData("cluster_size=65536,extended_l2=on")]
    [InlineData("cluster_size=512,compat=0.10")]
    public void Agrees_with_bytes(string options)
    {
        for (int seed = 1; seed <= 5; seed++)
        {
            string dir = Directory.CreateTempSubdirectory().FullName;
            string path = Path.Combine(dir, "a.qcow2");
            Run("qemu-img", $"create -q -f qcow2 -o {options} {path} 3000k");
            using (IDiskImage image = OpenFile(path))
            {
                Random random = new(seed);
                byte[] model = new byte[image.Length];
                byte[] buffer = new byte[300_000];
                for (int step = 0; step < 400; step++)
                {
                    int length = random.Next(4) == 0 ? random.Next(1, 300_000) : random.Next(1, 9000);
                    int offset = random.Next(0, model.Length - length);
                    if (random.Next(3) == 0)
                        (offset, length) = (offset & ~511, Math.Max(512, length & ~511));
                    switch (random.Next(10))
                    {
                        case < 5:
                            if (random.Next(6) == 0)
                                Array.Clear(buffer);
                            else
                                random.NextBytes(buffer.AsSpan(0, length));
                            image.Write(offset, buffer.AsSpan(0, length));
                            buffer.AsSpan(0, length).CopyTo(model.AsSpan(offset));
                            break;
                        case 5:
                            image.Discard(offset, length);
                            model.AsSpan(offset, length).Clear();
                            break;
                        case 6:
                            image.WriteZeroes(offset, length);
                            model.AsSpan(offset, length).Clear();
                            break;
                        case 7:
                            image.Sync();
                            break;
                        default:
                            image.Read(offset, buffer.AsSpan(0, length));
                            Assert.True(buffer.AsSpan(0, length).SequenceEqual(model.AsSpan(offset, length)), $"seed {seed} step {step}");
                            break;
                    }
                }

                byte[] all = new byte[model.Length];
                image.Read(0, all);
                Assert.Equal(model, all);
                image.Close();
                File.WriteAllBytes(Path.Combine(dir, "model"), model);
            }

            Run("qemu-img", $"check -q {path}");
            Run("qemu-img", $"compare -f qcow2 -F raw {path} {Path.Combine(dir, "model")}");
            Directory.Delete(dir, true);
        }
    }

    private static IDiskImage OpenFile(string path)
    {
        FileStorage file = HostFiles.Open(path, StorageAccess.Write);
        Qcow2Header header = Qcow2HeaderReader.Read(file);
        return Qcow2Image.Open(new Qcow2Parts(header, file, null, null, new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero, CacheSize = 8192 }));
    }

    private static void Run(string program, string arguments)
    {
        using System.Diagnostics.Process process = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo(program, arguments) { UseShellExecute = false, RedirectStandardOutput = true, RedirectStandardError = true })!;
        string output = process.StandardOutput.ReadToEnd() + process.StandardError.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0, $"{program} {arguments}: {process.ExitCode} {output}");
    }
}
