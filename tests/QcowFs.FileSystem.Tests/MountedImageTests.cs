// An image through its life in a mount: first and last use, edits under open files, freezing, and what the receipt says of it all.
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.FileSystem.Tests;

public sealed class MountedImageTests
{
    private const int Size = 1 << 20;
    private const int ReadWrite = 2;

    [Fact]
    public void It_is_open_from_its_first_to_its_last_use()
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk, staysOpen: false);
        Assert.Empty(mount.Hold.Calls);
        Assert.Equal(Size, mount.Attributes(mount.Raw).Size);
        ulong first = mount.Open(mount.Raw, ReadWrite);
        ulong second = mount.Open(mount.Raw);
        Assert.Equal(["open rw"], mount.Hold.Calls);
        mount.System.Release(mount.Raw, first);
        Assert.True(mount.Image.IsOpen);
        mount.System.Release(mount.Raw, second);
        Assert.Equal(["open rw", "release"], mount.Hold.Calls);
        Assert.Equal(["close", "dispose"], disk.Calls);
        Assert.False(mount.Image.IsOpen);
        mount.System.Release(mount.Raw, mount.Open(mount.Raw));
        Assert.Equal(["open rw", "release", "open rw", "release"], mount.Hold.Calls);
    }

    [Fact]
    public void An_open_that_fails_leaves_nothing_and_is_told_until_one_succeeds()
    {
        Mount mount = new(new MemoryDisk(Size), staysOpen: false);
        mount.Hold.FailOpen = new ImageInUseException("x", "qemu", writes: true);
        Assert.Throws<ImageInUseException>(() => mount.System.Open(mount.Raw, 0, out _));
        Assert.Equal(0, mount.System.Opens);
        Assert.Equal(["open rw", "release"], mount.Hold.Calls);
        Assert.Equal($"{mount.Hold.FailOpen.Message}\n", mount.ReadText(".qcowfs/disk.qcow2/error.txt"));
        mount.Hold.FailOpen = null;
        mount.System.Release(mount.Raw, mount.Open(mount.Raw));
        Assert.Null(mount.Image.Error);
        mount.List(1);
        Assert.DoesNotContain("error.txt", mount.List(mount.Find(".qcowfs/disk.qcow2").Node));
    }

    // The kernel sends RELEASE when close(2) has long returned, so who lists next may come while the last close reads the table.
    [Fact]
    public void A_listing_waits_for_the_table_that_a_close_is_reading()
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk, staysOpen: false);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        mount.System.Write(mount.Raw, handle, 0, new PartitionBytes(Size).Gpt((100, 199)).Bytes, 0, out _);
        List<string> names = [];
        Thread lister = new(() => names = mount.List(1)) { IsBackground = true };
        disk.BeforeRead = () =>
        {
            disk.BeforeRead = static () => { };
            lister.Start();
            Wait.Until(() => !lister.IsAlive || lister.ThreadState.HasFlag(ThreadState.WaitSleepJoin), "the listing waits, or has not waited");
        };
        mount.System.Release(mount.Raw, handle);
        lister.Join();
        Assert.Contains("disk.qcow2.p1.raw", names);
    }

    [Fact]
    public void A_close_that_fails_is_in_the_receipt_although_it_was_opened_again()
    {
        MemoryDisk disk = new(Size) { FailClose = MemoryHold.Fault("sync") };
        Mount mount = new(disk, staysOpen: false);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Throws<StorageException>(() => mount.System.Release(mount.Raw, handle));
        Assert.Equal(0, mount.Image.Opens);
        disk.FailClose = null;
        mount.System.Release(mount.Raw, mount.Open(mount.Raw));
        Assert.Contains("sync failed", mount.Image.Close().Error, StringComparison.Ordinal);
    }

    [Fact]
    public void A_last_close_whose_sync_failed_is_tried_again_at_the_next()
    {
        MemoryDisk disk = new(Size) { FailSync = MemoryHold.Fault("sync") };
        Mount mount = new(disk);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        mount.System.Write(mount.Raw, handle, 0, new byte[512], 0, out _);
        Assert.Throws<StorageException>(() => mount.System.Release(mount.Raw, handle));
        disk.FailSync = null;
        mount.System.Release(mount.Raw, mount.Open(mount.Raw));
        Assert.Equal(["sync", "sync"], disk.Calls);
    }

    [Fact]
    public void An_edit_closes_the_disk_and_opens_it_again_under_open_files()
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        mount.Hold.DuringEdit = () => Assert.Equal(["close", "dispose"], disk.Calls);
        mount.Image.EditSnapshot(SnapshotAction.Create, "new");
        mount.Hold.DuringEdit = static () => { };
        Assert.Equal(["open rw", "Create new", "open rw"], mount.Hold.Calls);
        Assert.Equal(Errno.None, mount.System.Write(mount.Raw, handle, 0, "abc"u8, 0, out int count));
        Assert.Equal(3, count);
        Assert.Equal(4711, mount.Image.Resize(new SizeChange(4711), mayShrink: false));
        Assert.Equal(0, mount.Image.Check().ExitCode);
        Assert.Equal(["open rw", "Create new", "open rw", "resize 4711", "open rw", "check", "open rw"], mount.Hold.Calls);
        Assert.False(mount.Hold.IsDisposed);
    }

    [Fact]
    public void Requests_wait_while_an_edit_runs()
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        bool answered = false;
        bool answeredEarly = false;
        Thread? reader = null;
        mount.Hold.DuringEdit = () =>
        {
            reader = new Thread(() =>
            {
                mount.System.Read(mount.Raw, handle, 0, new byte[512], out _);
                Volatile.Write(ref answered, true);
            });
            reader.Start();
            Wait.Until(() => reader.ThreadState.HasFlag(ThreadState.WaitSleepJoin), "the reader waits");
            answeredEarly = Volatile.Read(ref answered);
        };
        mount.Image.EditSnapshot(SnapshotAction.Create, "new");
        reader!.Join();
        Assert.False(answeredEarly);
        Assert.True(answered);
    }

    [Fact]
    public void A_refused_edit_leaves_the_disk_open()
    {
        Mount mount = new(new MemoryDisk(Size));
        mount.Hold.FailEdit = new ImageFormatException("x", "snapshot table", -1, "p", "a");
        Assert.Throws<ImageFormatException>(() => mount.Image.EditSnapshot(SnapshotAction.Create, "new"));
        mount.System.Release(mount.Raw, mount.Open(mount.Raw, ReadWrite));
        Assert.Equal(["open rw", "Create new", "open rw"], mount.Hold.Calls);
        Assert.Null(mount.Image.Close().Error);
    }

    [Fact]
    public void A_disk_that_cannot_be_completed_is_not_edited_and_takes_no_more_requests()
    {
        MemoryDisk disk = new(Size) { FailClose = MemoryHold.Fault("sync") };
        Mount mount = new(disk);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Throws<StorageException>(() => mount.Image.EditSnapshot(SnapshotAction.Create, "new"));
        Assert.Equal(["open rw"], mount.Hold.Calls);
        Assert.Throws<StorageException>(() => mount.System.Read(mount.Raw, handle, 0, new byte[512], out _));
        Assert.Throws<ImageBusyException>(() => mount.Image.Check());
        Assert.Contains("sync failed", mount.Image.Close().Error, StringComparison.Ordinal);
    }

    [Fact]
    public void A_disk_that_cannot_be_opened_again_takes_no_more_requests_and_the_receipt_says_why()
    {
        Mount mount = new(new MemoryDisk(Size));
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        mount.Hold.DuringEdit = () => mount.Hold.FailOpen = MemoryHold.Fault("open");
        Assert.Throws<StorageException>(() => mount.Image.EditSnapshot(SnapshotAction.Create, "new"));
        Assert.Throws<StorageException>(() => mount.System.Write(mount.Raw, handle, 0, new byte[512], 0, out _));
        Assert.Equal(Size, mount.Attributes(mount.Raw).Size);
        Assert.Contains("could not be opened again", mount.Image.Close().Error, StringComparison.Ordinal);
    }

    [Fact]
    public void Applying_waits_for_nobody_who_has_the_disk_open_and_deleting_for_nobody_who_has_the_snapshot()
    {
        Mount mount = new(new MemoryDisk(Size));
        mount.Hold.Snapshots["before"] = new MemoryDisk(Size, readOnly: true);
        ulong snapshot = mount.Find("disk.qcow2@before.raw").Node;
        ulong disk = mount.Open(mount.Raw);
        Assert.Throws<ImageBusyException>(() => mount.Image.EditSnapshot(SnapshotAction.Apply, "before"));
        mount.System.Release(mount.Raw, disk);
        ulong handle = mount.Open(snapshot);
        mount.Image.EditSnapshot(SnapshotAction.Apply, "before"); // an open snapshot is in nobody's way
        Assert.Throws<ImageBusyException>(() => mount.Image.EditSnapshot(SnapshotAction.Delete, "before"));
        Assert.Throws<ImageBusyException>(() => mount.Image.EditSnapshot(SnapshotAction.Delete, "1"));
        mount.System.Release(snapshot, handle);
        mount.Image.EditSnapshot(SnapshotAction.Delete, "before");
    }

    [Fact]
    public void A_close_on_its_way_is_waited_for()
    {
        Mount mount = new(new MemoryDisk(Size), releasePatience: Wait.HangLimit);
        ulong disk = mount.Open(mount.Raw);
        Thread closer = new(() => mount.System.Release(mount.Raw, disk));
        closer.Start();
        mount.Image.EditSnapshot(SnapshotAction.Apply, "before");
        closer.Join();
    }

    [Fact]
    public void A_deleted_snapshots_file_goes_and_is_not_opened_again()
    {
        Mount mount = new(new MemoryDisk(Size));
        ulong snapshot = mount.Find("disk.qcow2@before.raw").Node;
        List<string> left = [];
        mount.System.NameLeft = name => left.Add(System.Text.Encoding.UTF8.GetString(name.Span));
        mount.Hold.DuringEdit = () => mount.Hold.Facts = mount.Hold.Facts with { Snapshots = [] };
        mount.Image.EditSnapshot(SnapshotAction.Delete, "before");
        mount.System.Refresh();
        Assert.Equal(["disk.qcow2@before.raw"], left);
        Assert.Equal([".", "..", "disk.qcow2.raw", ".qcowfs"], mount.List(1));
        Assert.Equal(Errno.ESTALE, mount.System.Open(snapshot, 0, out _)); // the kernel looks the name up again
    }

    [Fact]
    public void Frozen_it_is_completed_and_only_read_until_it_thaws()
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        mount.System.Write(mount.Raw, handle, 0, "abc"u8, 0, out _);
        mount.System.Freeze();
        mount.System.Freeze(); // again: nothing
        Assert.Equal(["close", "dispose"], disk.Calls);
        Assert.Equal(["open rw", "open ro"], mount.Hold.Calls);
        byte[] read = new byte[3];
        mount.System.Read(mount.Raw, handle, 0, read, out _);
        Assert.Equal("abc"u8, read);
        Assert.Equal(Errno.None, mount.System.Sync(mount.Raw, handle, dataOnly: false));
        Assert.Throws<ImageBusyException>(() => mount.Image.EditSnapshot(SnapshotAction.Create, "x"));
        Thread writer = new(() => mount.System.Write(mount.Raw, handle, 0, "xyz"u8, 0, out _));
        writer.Start();
        Wait.Until(() => writer.ThreadState.HasFlag(ThreadState.WaitSleepJoin), "the writer waits");
        mount.System.Read(mount.Raw, handle, 0, read, out _);
        Assert.Equal("abc"u8, read);
        mount.System.Thaw();
        writer.Join();
        Assert.Equal("xyz"u8, disk.Bytes.AsSpan(0, 3));
        Assert.Equal(["open rw", "open ro", "open rw"], mount.Hold.Calls);
    }

    [Fact]
    public void An_image_first_used_while_frozen_is_opened_for_reading()
    {
        Mount mount = new(new MemoryDisk(Size), staysOpen: false);
        mount.System.Freeze();
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        Assert.Equal(["open ro"], mount.Hold.Calls);
        mount.System.Thaw();
        Assert.Equal(["open ro", "open rw"], mount.Hold.Calls);
        Assert.Equal(Errno.None, mount.System.Write(mount.Raw, handle, 0, "abc"u8, 0, out _));
    }

    [Fact]
    public void Edits_of_a_read_only_mount_are_refused()
    {
        Mount mount = new(new MemoryDisk(Size, readOnly: true));
        Assert.Throws<ImageBusyException>(() => mount.Image.EditSnapshot(SnapshotAction.Create, "x"));
        Assert.Throws<ImageBusyException>(() => mount.Image.Resize(new SizeChange(1), mayShrink: false));
        Assert.Equal(0, mount.Image.Check().ExitCode);
    }

    [Fact]
    public void Statistics_add_up_over_closes_and_count_requests_by_duration()
    {
        MemoryDisk disk = new(Size);
        Mount mount = new(disk, staysOpen: false);
        ulong handle = mount.Open(mount.Raw, ReadWrite);
        disk.Statistics.AddWritten(1000);
        disk.Statistics.AddCopied(500);
        mount.System.Read(mount.Raw, handle, 0, new byte[10], out _);
        DiskFileSystem.Served(FuseOpcode.Read, TimeSpan.FromMicroseconds(5));
        DiskFileSystem.Served(FuseOpcode.Read, TimeSpan.FromMicroseconds(5)); // of something else: nothing was asked of a disk
        mount.System.Write(mount.Raw, handle, 0, new byte[10], 0, out _);
        DiskFileSystem.Served(FuseOpcode.Write, TimeSpan.FromDays(1));
        mount.System.Release(mount.Raw, handle);
        using System.Text.Json.JsonDocument json = System.Text.Json.JsonDocument.Parse(mount.ReadText(".qcowfs/disk.qcow2/stats.json"));
        System.Text.Json.JsonElement stats = json.RootElement;
        Assert.False(stats.GetProperty("open").GetBoolean());
        Assert.Equal(1000, stats.GetProperty("bytes-written").GetInt64());
        Assert.Equal(1.5, stats.GetProperty("copy-on-write-amplification").GetDouble());
        Assert.Equal(1, stats.GetProperty("operations").GetProperty("read").GetInt64());
        System.Text.Json.JsonElement read = Assert.Single(stats.GetProperty("latency").GetProperty("read").EnumerateArray());
        Assert.Equal(8, read.GetProperty("below-microseconds").GetInt64());
        System.Text.Json.JsonElement write = Assert.Single(stats.GetProperty("latency").GetProperty("write").EnumerateArray());
        Assert.Equal(System.Text.Json.JsonValueKind.Null, write.GetProperty("below-microseconds").ValueKind);
    }

    [Fact]
    public void The_check_after_the_close_is_made_where_something_was_changed_and_nothing_failed()
    {
        MemoryDisk changed = new(Size);
        changed.Statistics.AddWritten(1);
        Mount mount = new(changed);
        Assert.Equal("fine", mount.Image.Close(Check).Check);
        Assert.True(mount.Hold.IsDisposed);
        Assert.Equal("not run", new Mount(new MemoryDisk(Size)).Image.Close(Check).Check);

        string Check(IImageHold hold)
        {
            Assert.Equal(["close", "dispose"], changed.Calls);
            Assert.False(mount.Hold.IsDisposed);
            return "fine";
        }
    }
}
