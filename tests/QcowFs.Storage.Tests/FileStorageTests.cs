// What is FileStorage's own: the host's facts and space, read-only, the latch of a failed sync, no allocation.
using System.Globalization;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests;

public sealed partial class FileStorageTests : IDisposable
{
    private readonly TempDirectory _directory = new();

    public static TheoryData<StorageKind> DirectKinds => StorageFixture.DirectKinds;

    public static TheoryData<StorageKind> Files => StorageFixture.Files;

    public void Dispose() => _directory.Dispose();

    [Fact]
    public void Facts_are_those_of_the_host()
    {
        using FileStorage file = Create("a", 10_000);
        FileFacts facts = file.QueryFacts();
        string[] said = ChildProcess.Run("stat", "-c", "%i %s %b %a %Y", _directory["a"]).MustSucceed().Trim().Split(' ');
        Assert.Equal(said[0], facts.Inode.ToString(CultureInfo.InvariantCulture));
        Assert.Equal((10_000, long.Parse(said[2], CultureInfo.InvariantCulture) * 512), (facts.Length, facts.AllocatedBytes));
        Assert.Equal(Convert.ToInt32(said[3], 8), facts.Mode);
        Assert.Equal(said[4], facts.ModifiedSeconds.ToString(CultureInfo.InvariantCulture));
        Assert.False(facts.IsBlockDevice);

        using FileStorage same = HostFiles.Open(_directory["a"], StorageAccess.Read);
        Assert.Equal((facts.Device, facts.Inode), (same.QueryFacts().Device, same.QueryFacts().Inode));
    }

    [SkippableFact]
    public void Block_device_has_its_size_as_length()
    {
        using var fixture = new StorageFixture(StorageKind.BlockDevice, 1 << 20);
        Assert.Equal(1 << 20, fixture.Storage.Length);
        Assert.Equal(1 << 20, fixture.File.QueryFacts().Length);
        Assert.True(fixture.File.QueryFacts().IsBlockDevice);
        Assert.True(fixture.File.IsData(0, out long end) || end > 0);
    }

    /// <summary>A device cannot grow: who reserves space past its end hears so there, not when it writes.</summary>
    [SkippableFact]
    public void Block_device_keeps_its_length()
    {
        using var fixture = new StorageFixture(StorageKind.BlockDevice, 1 << 20);
        fixture.File.Reserve(0, 1 << 20);
        StorageException fault = Assert.Throws<StorageException>(() => fixture.File.Reserve(512 << 10, 1 << 20));
        Assert.True(fault.IsOutOfSpace);
        Assert.Throws<StorageException>(() => fixture.File.SetLength(2 << 20));
        fixture.File.SetLength(512 << 10);
        Assert.Equal(1 << 20, fixture.File.Length);
    }

    [Fact]
    public void Space_is_reserved_given_back_and_cut()
    {
        using FileStorage file = Create("a", 0);
        file.Reserve(0, 1 << 20);
        Assert.Equal(1 << 20, file.Length);
        Assert.InRange(file.QueryFacts().AllocatedBytes, 1 << 20, 2 << 20);
        file.Discard(0, 512 << 10);
        Assert.InRange(file.QueryFacts().AllocatedBytes, 512 << 10, 600 << 10);
        file.Discard(0, long.MaxValue);
        Assert.Equal(1 << 20, file.Length);
        Assert.Equal(0, file.QueryFacts().AllocatedBytes);
        file.WriteZeroes(0, 256 << 10);
        Assert.InRange(file.QueryFacts().AllocatedBytes, 256 << 10, 300 << 10);
        file.SetLength(0);
        Assert.Equal(0, file.QueryFacts().AllocatedBytes);
    }

    [Fact]
    public void Data_and_holes_are_told_apart()
    {
        using FileStorage file = Create("a", 1 << 20);
        file.Write(256 << 10, new byte[64 << 10]);
        Assert.False(file.IsData(0, out long end));
        Assert.Equal(256 << 10, end);
        Assert.True(file.IsData(260 << 10, out end));
        Assert.Equal(320 << 10, end);
        Assert.False(file.IsData(320 << 10, out end));
        Assert.Equal(1 << 20, end);
        Assert.False(file.IsData(1 << 20, out end));
    }

    [Fact]
    public void Read_only_file_takes_no_change_and_keeps_its_bytes()
    {
        File.WriteAllBytes(_directory["a"], [1, 2, 3]);
        using FileStorage file = HostFiles.Open(_directory["a"], StorageAccess.Read);
        Assert.True(file.IsReadOnly);
        foreach (Action change in new Action[]
        {
            () => file.Write(0, [9]), () => file.WriteZeroes(0, 1), () => file.Discard(0, 1), () => file.Reserve(0, 9), () => file.SetLength(0),
        })
        {
            Assert.Equal(Errno.EROFS, Assert.Throws<StorageException>(change).Errno);
        }
        file.Sync();
        Assert.Equal([1, 2, 3], File.ReadAllBytes(_directory["a"]));
    }

    [SkippableTheory]
    [MemberData(nameof(Files))]
    public void Bytes_past_the_end_read_as_zero(StorageKind kind)
    {
        using var fixture = new StorageFixture(kind, 4096);
        fixture.Storage.Write(4000, Pattern.Bytes(1, 0, 96));
        byte[] back = new byte[1000];
        back.AsSpan().Fill(0xcc);
        fixture.Storage.Read(4000, back);
        Assert.True(back.AsSpan(0, 96).SequenceEqual(Pattern.Bytes(1, 0, 96)));
        Assert.Equal(-1, back.AsSpan(96).IndexOfAnyExcept((byte)0));
        back.AsSpan().Fill(0xcc);
        fixture.Storage.Read(1 << 30, back);
        Assert.Equal(-1, back.AsSpan().IndexOfAnyExcept((byte)0));
    }

    [SkippableTheory]
    [InlineData(StorageKind.BlockDevice)]
    [InlineData(StorageKind.BlockDeviceDirect)]
    public void Write_that_meets_the_end_of_the_host_says_ENOSPC_and_where(StorageKind kind)
    {
        using var fixture = new StorageFixture(kind, 1 << 20);
        using var data = new AlignedBuffer(64 << 10);
        StorageException full = Assert.Throws<StorageException>(() => fixture.Storage.Write((1 << 20) - (32 << 10), data.Span));
        Assert.True(full.IsOutOfSpace);
        Assert.Equal(((1 << 20) - (32 << 10), 64 << 10, fixture.Storage.Name), (full.Offset, full.Length, full.Path));
        Assert.Equal(1 << 20, fixture.Storage.Length);
        Assert.Contains("no space left on device", full.Message, StringComparison.Ordinal);
    }

    [SkippableFact]
    public void Length_after_a_failed_change_is_the_real_one()
    {
        using var directory = new TempDirectory();
        using var mounts = new MountNamespace();
        mounts.Run("mount", "-t", "tmpfs", "-o", "size=1m", "none", directory.Root).MustSucceed();
        using FileStorage file = HostFiles.Open(mounts.Root + directory["a"], StorageAccess.Create);
        Assert.True(Assert.Throws<StorageException>(() => file.Write(0, new byte[3 << 20])).IsOutOfSpace);
        Assert.Equal(file.QueryFacts().Length, file.Length);
        Assert.InRange(file.Length, 1, 1 << 20);
        Assert.True(Assert.Throws<StorageException>(() => file.Reserve(0, 8 << 20)).IsOutOfSpace);
        Assert.Equal(file.QueryFacts().Length, file.Length);
        file.SetLength(0);
        file.Write(0, new byte[512 << 10]);
    }

    [Fact]
    public void Failed_sync_is_final_though_the_next_would_succeed()
    {
        // A descriptor that only names a file cannot be synced; then a good one takes its number.
        File.WriteAllBytes(_directory["a"], [1]);
        var handle = new SafeFileHandle(Libc.Open(_directory["a"], Libc.O_PATH | Libc.O_CLOEXEC, 0), ownsHandle: true);
        using var file = new FileStorage(handle, "a", isReadOnly: false, directIo: false);
        Assert.Equal(Errno.EBADF, Assert.Throws<StorageException>(file.Sync).Errno);

        using SafeFileHandle good = File.OpenHandle(_directory["a"], FileMode.Open, FileAccess.ReadWrite);
        Assert.True(Duplicate((int)good.DangerousGetHandle(), (int)handle.DangerousGetHandle()) >= 0);
        file.Write(0, [2]);
        Assert.Equal(0, Libc.Fdatasync((int)handle.DangerousGetHandle()));
        StorageException again = Assert.Throws<StorageException>(file.Sync);
        Assert.Equal((Errno.EBADF, "sync", "a"), (again.Errno, again.Operation, again.Path));
    }

    [SkippableFact]
    public void Sync_is_one_fdatasync()
    {
        Tools.Require("strace");
        using FileStorage file = Create("a", 4096);
        file.Write(0, [1]);
        ToolResult trace = Strace("fsync,fdatasync,syncfs,sync", () => file.Sync());
        Assert.Equal(1, trace.Errors.Split("fdatasync(").Length - 1);
        Assert.DoesNotContain(" fsync(", trace.Errors, StringComparison.Ordinal);
    }

    [SkippableTheory]
    [MemberData(nameof(DirectKinds))]
    public void Direct_mode_never_goes_through_the_page_cache(StorageKind kind)
    {
        using var fixture = new StorageFixture(kind, 64 << 10);
        Assert.True(fixture.File.IsDirect);
        string flags = File.ReadLines($"/proc/self/fdinfo/{fixture.File.Handle.DangerousGetHandle()}")
            .First(line => line.StartsWith("flags:", StringComparison.Ordinal));
        Assert.NotEqual(0, Convert.ToInt32(flags.Split('\t')[1], 8) & Libc.O_DIRECT);
    }

    [SkippableFact]
    public void File_system_without_direct_io_says_so()
    {
        using var directory = new TempDirectory();
        using var mounts = new MountNamespace();
        mounts.Run("mount", "-t", "ramfs", "none", directory.Root).MustSucceed();
        mounts.Run("touch", directory["a"]).MustSucceed();
        StorageException refused = Assert.Throws<StorageException>(
            () => HostFiles.Open(mounts.Root + directory["a"], StorageAccess.Write, directIo: true));
        Assert.Equal((Errno.EOPNOTSUPP, "direct I/O"), (refused.Errno, refused.Operation));
    }

    [SkippableTheory]
    [InlineData(StorageKind.File)]
    [InlineData(StorageKind.FileDirect)]
    [InlineData(StorageKind.Tmpfs)]
    public void Steady_use_allocates_nothing(StorageKind kind)
    {
        using var fixture = new StorageFixture(kind, 1 << 20);
        using var aligned = new AlignedBuffer(64 << 10);
        byte[] odd = new byte[1001];
        void Work()
        {
            fixture.Storage.Write(4096, aligned.Span);
            fixture.Storage.Read(4096, aligned.Span);
            fixture.Storage.Write(777, odd);
            fixture.Storage.Read(777, odd);
            fixture.Storage.WriteZeroes(8192, 10_000);
            fixture.Storage.Discard(100_000, 200_000);
            fixture.Storage.Sync();
        }
        Work();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 20; i++)
            Work();
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    private FileStorage Create(string name, long length)
    {
        FileStorage file = HostFiles.Open(_directory[name], StorageAccess.Create);
        file.SetLength(length);
        return file;
    }

    // Traces this very process while it does something.
    private static ToolResult Strace(string calls, Action work)
    {
        using ChildProcess strace = ChildProcess.Start(
            "strace", "-f", "-e", $"trace={calls}", "-p", Environment.ProcessId.ToString(CultureInfo.InvariantCulture));
        strace.WaitForText("attached");
        work();
        strace.Signal(2);
        return strace.WaitForExit();
    }

    [LibraryImport("libc", EntryPoint = "dup2", SetLastError = true)]
    private static partial int Duplicate(int from, int to);
}
