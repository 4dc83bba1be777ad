// The declarations of libc against what the system's own tools say: a wrong offset or constant shows here.
using System.Globalization;
using System.Runtime.CompilerServices;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Native.Tests;

public sealed unsafe class LibcTests : IDisposable
{
    private readonly TempDirectory _directory = new();

    public void Dispose() => _directory.Dispose();

    [Fact]
    public void Statx_agrees_with_stat()
    {
        string path = _directory["file"];
        File.WriteAllBytes(path, new byte[12345]);
        File.SetLastWriteTimeUtc(path, new DateTime(2001, 2, 3, 4, 5, 6, DateTimeKind.Utc).AddTicks(1234567));
        string[] said = ChildProcess.Run("stat", "-c", "%i %s %b %f %u %g %h %o %d %.9Y", path).MustSucceed().Trim().Split(' ');

        Assert.Equal(0, Libc.Statx(path, Libc.STATX_BASIC_STATS, out StatxData facts));
        Assert.Equal(said[0], Text(facts.Inode));
        Assert.Equal(said[1], Text(facts.Size));
        Assert.Equal(said[2], Text(facts.Blocks));
        Assert.Equal(said[3], facts.Mode.ToString("x", CultureInfo.InvariantCulture));
        Assert.Equal(said[4], Text(facts.UserId));
        Assert.Equal(said[5], Text(facts.GroupId));
        Assert.Equal(said[6], Text(facts.LinkCount));
        Assert.Equal(said[7], Text(facts.BlockSize));
        Assert.Equal(said[8], Text(facts.DeviceMajor << 8 | facts.DeviceMinor));
        Assert.Equal(said[9], $"{facts.ModifiedSeconds}.{facts.ModifiedNanoseconds:d9}");
    }

    [Fact]
    public void Structures_have_the_kernel_s_sizes()
    {
        Assert.Equal(256, Unsafe.SizeOf<StatxData>());
        Assert.Equal(32, Unsafe.SizeOf<Flock>());
        Assert.Equal(16, Unsafe.SizeOf<Iovec>());
    }

    [Fact]
    public void Flags_that_depend_on_the_architecture_do_what_they_say()
    {
        string file = _directory["file"];
        string link = _directory["link"];
        File.WriteAllBytes(file, []);
        File.CreateSymbolicLink(link, file);
        Assert.Equal(-1, Libc.Open(file, Libc.O_RDONLY | Libc.O_DIRECTORY, 0));
        Assert.Equal(Errno.ENOTDIR, Libc.LastErrno);
        Assert.Equal(-1, Libc.Open(link, Libc.O_RDONLY | Libc.O_NOFOLLOW, 0));
        Assert.Equal(Errno.ELOOP, Libc.LastErrno);
        Assert.Equal(-1, Libc.Open(file, Libc.O_RDWR | Libc.O_CREAT | Libc.O_EXCL, 0));
        Assert.Equal(Errno.EEXIST, Libc.LastErrno);
        int fd = Libc.Open(file, Libc.O_RDONLY | Libc.O_CLOEXEC, 0);
        string flags = File.ReadLines($"/proc/self/fdinfo/{fd}").First(line => line.StartsWith("flags:", StringComparison.Ordinal));
        Assert.True((Convert.ToInt32(flags.Split('\t')[1], 8) & Libc.O_CLOEXEC) != 0);
        Assert.Equal(0, Libc.Close(fd));
    }

    [Fact]
    public void Openat2_stays_beneath()
    {
        File.WriteAllBytes(_directory["file"], [42]);
        Directory.CreateDirectory(_directory["below"]);
        int directory = Libc.Open(_directory["below"], Libc.O_RDONLY | Libc.O_DIRECTORY | Libc.O_CLOEXEC, 0);
        Assert.Equal(-1, Libc.OpenAt2(directory, "../file", Libc.O_RDONLY, 0, Libc.RESOLVE_BENEATH));
        Assert.Equal(Errno.EXDEV, Libc.LastErrno);
        int fd = Libc.OpenAt2(directory, "../file", Libc.O_RDONLY | Libc.O_CLOEXEC, 0, 0);
        Span<byte> content = stackalloc byte[10];
        Assert.Equal(1, Libc.Pread(fd, content, 0));
        Assert.Equal(42, content[0]);
        Assert.Equal(0, Libc.Close(fd));
        Assert.Equal(0, Libc.Close(directory));
    }

    [Fact]
    public void Transfers_at_offsets_beyond_32_bits()
    {
        int fd = Libc.Open(_directory["sparse"], Libc.O_RDWR | Libc.O_CREAT | Libc.O_CLOEXEC, 0x180);
        const long Far = 5L << 32;
        Assert.Equal(3, Libc.Pwrite(fd, [1, 2, 3], Far));
        Span<byte> back = stackalloc byte[8];
        Assert.Equal(2, Libc.Pread(fd, back, Far + 1));
        Assert.Equal(3, back[1]);
        Assert.Equal(Far & ~4095L, Libc.Lseek(fd, 0, Libc.SEEK_DATA));
        Assert.Equal(Far + 3, Libc.Lseek(fd, 0, Libc.SEEK_END));

        byte one = 8;
        byte two = 9;
        Iovec* vectors = stackalloc Iovec[2];
        vectors[0] = new Iovec { Base = &one, Length = 1 };
        vectors[1] = new Iovec { Base = &two, Length = 1 };
        Assert.Equal(2, Libc.Pwritev(fd, vectors, 2, Far));
        one = two = 0;
        Assert.Equal(2, Libc.Preadv(fd, vectors, 2, Far));
        Assert.Equal((8, 9), (one, two));

        Assert.Equal(0, Libc.Ftruncate(fd, Far));
        Assert.Equal(0, Libc.Fallocate(fd, Libc.FALLOC_FL_KEEP_SIZE, 0, 4096));
        Assert.Equal(0, Libc.Fdatasync(fd));
        Assert.Equal(0, Libc.Fsync(fd));
        Assert.Equal(Far, new FileInfo(_directory["sparse"]).Length);
        Assert.Equal(0, Libc.Close(fd));
    }

    [Fact]
    public void Locks_of_two_open_files_conflict_in_one_process()
    {
        int a = Libc.Open(_directory["file"], Libc.O_RDWR | Libc.O_CREAT | Libc.O_CLOEXEC, 0x180);
        int b = Libc.Open(_directory["file"], Libc.O_RDWR | Libc.O_CLOEXEC, 0);
        var mine = new Flock { Type = Libc.F_RDLCK, Start = 100, Length = 1 };
        Assert.Equal(0, Libc.FcntlLock(a, Libc.F_OFD_SETLK, ref mine));
        var asked = new Flock { Type = Libc.F_WRLCK, Start = 90, Length = 100 };
        Assert.Equal(0, Libc.FcntlLock(b, Libc.F_OFD_GETLK, ref asked));
        Assert.Equal((Libc.F_RDLCK, 100L, 1L, -1), (asked.Type, asked.Start, asked.Length, asked.Pid));
        Assert.Equal(0, Libc.Close(a));
        Assert.Equal(0, Libc.Close(b));
    }

    [Fact]
    public void Random_bytes_come()
    {
        byte* bytes = stackalloc byte[64];
        new Span<byte>(bytes, 64).Clear();
        Assert.Equal(64, Libc.GetRandom(bytes, 64, 0));
        Assert.True(new Span<byte>(bytes, 64).ContainsAnyExcept((byte)0));
    }

    [Fact]
    public void Aligned_buffer_is_aligned_zero_and_gone_after_dispose()
    {
        var buffer = new AlignedBuffer(10_000);
        Assert.Equal(0u, (nuint)buffer.Pointer % AlignedBuffer.PageSize);
        Assert.True(AlignedBuffer.IsAligned(buffer.Span, 4096));
        Assert.False(AlignedBuffer.IsAligned(buffer.Span[1..], 2));
        Assert.Equal(10_000, buffer.Span.Length);
        Assert.False(buffer.Span.ContainsAnyExcept((byte)0));
        buffer.Dispose();
        buffer.Dispose();
        Assert.Throws<ObjectDisposedException>(() => buffer.Span.Length);
    }

    private static string Text<T>(T number)
        where T : IFormattable => number.ToString(null, CultureInfo.InvariantCulture);
}
