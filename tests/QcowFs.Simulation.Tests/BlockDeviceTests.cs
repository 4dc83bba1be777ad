// An image on a storage that cannot grow, as a logical volume: the guest meets the end as ENOSPC, a commit never does (I7).
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Native;
using QcowFs.Storage;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class BlockDeviceTests
{
    private static readonly OpenOptions Writable = new() { Writable = true, CommitInterval = TimeSpan.Zero };

    /// <summary>Whole clusters, and ends inside a cluster that would be data, an L2 table or a refcount block.</summary>
    public static TheoryData<int, int> Devices
    {
        get
        {
            TheoryData<int, int> devices = new() { { 4096, 262_144 }, { 4096, 264_192 } };
            for (int clusters = 100; clusters < 170; clusters++)
                devices.Add(512, clusters * 512);
            return devices;
        }
    }

    [Theory]
    [MemberData(nameof(Devices))]
    public void A_full_device_is_full_for_the_guest_only(int clusterSize, int deviceSize)
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry($"cluster_size={clusterSize}", 1 << 20));
        MemoryStorage memory = new("device");
        memory.Write(0, prepared.File);
        memory.SetLength(deviceSize);
        Device device = new(memory);
        byte[] ones = [.. Enumerable.Repeat((byte)1, clusterSize)];
        List<long> written = [];
        using (CowImage image = Open(device))
        {
            int refused = 0;
            for (long offset = 0; offset < image.Length; offset += clusterSize)
            {
                try
                {
                    image.Write(offset, ones);
                    written.Add(offset);
                }
                catch (StorageException exception) when (exception.IsOutOfSpace)
                {
                    refused++;
                }
            }

            Assert.True(refused > 0);
            image.Sync();
            image.Discard(0, 8 * clusterSize);
            image.Close();
            Assert.Null(image.Failure);
        }

        Assert.True(written.Count > deviceSize / clusterSize / 2, $"{written.Count} clusters found room");
        CheckReport report = Qcow2Checker.Check(device);
        Assert.True(report.ExitCode == 0, string.Join("; ", report.Findings.Select(f => f.Message)));
        using CowImage again = Open(device);
        byte[] bytes = new byte[clusterSize];
        foreach (long offset in written.Where(offset => offset >= 8 * clusterSize))
        {
            again.Read(offset, bytes);
            Assert.Equal(ones, bytes);
        }
    }

    private static CowImage Open(Device device) =>
        (CowImage)Qcow2Image.Open(new Qcow2Parts(Qcow2HeaderReader.Read(device), device, null, null, Writable));

    private sealed class Device(MemoryStorage inner) : IStorage
    {
        public string Name => inner.Name;

        public long Length => inner.Length;

        public bool IsReadOnly => false;

        public void Read(long offset, Span<byte> destination) => inner.Read(offset, destination);

        public void Write(long offset, ReadOnlySpan<byte> source)
        {
            RequireInside(offset, source.Length);
            inner.Write(offset, source);
        }

        public void WriteZeroes(long offset, long length)
        {
            RequireInside(offset, length);
            inner.WriteZeroes(offset, length);
        }

        public void Discard(long offset, long length) => inner.Discard(offset, length);

        public void Reserve(long offset, long length) => RequireInside(offset, length);

        public void SetLength(long length) => RequireInside(0, length);

        public void Sync() => inner.Sync();

        public void Dispose()
        {
        }

        private void RequireInside(long offset, long length)
        {
            if (offset + length > Length)
                throw new StorageException(Errno.ENOSPC, "write", Name, offset, length);
        }
    }
}
