// Files that stay open and locked while disks over them come and go.
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Opening;

public sealed class HeldFilesTests
{
    [Fact]
    public void The_lock_outlives_the_disks_and_ends_with_the_hold()
    {
        using TempDirectory temp = new();
        string path = Create(temp, "disk");
        HeldFiles held = new(HostFileSystem.Instance);
        ImageOpener opener = new(held);
        for (int round = 0; round < 3; round++)
        {
            using (IDiskImage disk = opener.Open(path, new OpenOptions { Writable = true }))
            {
                disk.Write(0, new byte[512]);
                disk.Close();
            }
            Assert.Throws<ImageInUseException>(() => HostFileSystem.Instance.Open(path, HostAccess.Read, directIo: false));
        }
        new ImageEditor(held, TimeProvider.System).EditSnapshot(path, null, SnapshotAction.Create, "one");
        Assert.Equal(0, opener.Check(path).ExitCode);
        Assert.Throws<ImageInUseException>(() => HostFileSystem.Instance.Open(path, HostAccess.Read, directIo: false));
        held.Dispose();
        HostFileSystem.Instance.Open(path, HostAccess.Write, directIo: false).Dispose();
    }

    [Fact]
    public void The_file_is_the_one_that_was_opened_whatever_becomes_of_its_name()
    {
        using TempDirectory temp = new();
        string path = Create(temp, "disk");
        using HeldFiles held = new(HostFileSystem.Instance);
        ImageOpener opener = new(held);
        using (IDiskImage disk = opener.Open(path, new OpenOptions { Writable = true }))
        {
            disk.Write(0, [1, 2, 3]);
            disk.Close();
        }
        File.Delete(path);
        File.WriteAllText(path, "another file");
        using IDiskImage again = opener.Open(path, new OpenOptions { Writable = true });
        byte[] read = new byte[3];
        again.Read(0, read);
        Assert.Equal([1, 2, 3], read);
        Assert.Single(held.Identities());
    }

    [Fact]
    public void A_snapshot_is_read_beside_the_disk_on_the_same_file()
    {
        using TempDirectory temp = new();
        string path = Create(temp, "disk");
        using HeldFiles held = new(HostFileSystem.Instance);
        ImageOpener opener = new(held);
        Write(1);
        new ImageEditor(held, TimeProvider.System).EditSnapshot(path, null, SnapshotAction.Create, "one");
        using IDiskImage disk = opener.Open(path, new OpenOptions { Writable = true });
        using IDiskImage snapshot = opener.Open(path, new OpenOptions { Snapshot = "one" });
        disk.Write(0, [2]);
        disk.Sync();
        byte[] read = new byte[1];
        snapshot.Read(0, read);
        Assert.Equal(1, read[0]);
        disk.Read(0, read);
        Assert.Equal(2, read[0]);
        Assert.Throws<ImageFormatException>(() => opener.Open(path, new OpenOptions { Snapshot = "one", SnapshotIsId = true }));
        opener.Open(path, new OpenOptions { Snapshot = "1", SnapshotIsId = true }).Dispose();
        disk.Close();

        void Write(byte value)
        {
            using IDiskImage first = opener.Open(path, new OpenOptions { Writable = true });
            first.Write(0, [value]);
            first.Close();
        }
    }

    [Fact]
    public void A_file_held_for_reading_is_opened_anew_for_writing()
    {
        using TempDirectory temp = new();
        string path = Create(temp, "disk");
        using HeldFiles held = new(HostFileSystem.Instance);
        held.Open(path, HostAccess.Inspect, directIo: false).Dispose();
        held.Open(path, HostAccess.Read, directIo: false).Dispose();
        using IStorage writable = held.Open(path, HostAccess.Write, directIo: false);
        Assert.False(writable.IsReadOnly);
        Assert.Same(writable, held.Open(path, HostAccess.Read, directIo: false));
    }

    private static string Create(TempDirectory temp, string name)
    {
        string path = $"{temp.Root}/{name}";
        new ImageCreator(HostFileSystem.Instance).Create(new ImageRequest { Path = path, Format = "qcow2", Size = 1 << 20 });
        return path;
    }
}
