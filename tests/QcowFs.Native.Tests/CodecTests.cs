// zlib, zstd and xxhash: right against other implementations, and total on bad input.
using System.IO.Compression;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Native.Tests;

public sealed class CodecTests
{
    private const int Cluster = 64 << 10;

    public static TheoryData<int> Seeds => [.. Enumerable.Range(1, 20)];

    [Theory]
    [InlineData(12)]
    [InlineData(15)]
    public void Deflate_comes_back_and_DeflateStream_reads_it(int windowBits)
    {
        byte[] data = Compressible(1, Cluster);
        byte[] packed = new byte[Cluster];
        int length = Zlib.Deflate(data, packed, windowBits);
        Assert.InRange(length, 1, Cluster / 2);

        byte[] back = new byte[Cluster];
        Assert.Equal(Cluster, Zlib.Inflate(packed.AsSpan(0, length), back, windowBits));
        Assert.Equal(data, back);

        using var stream = new DeflateStream(new MemoryStream(packed, 0, length), CompressionMode.Decompress);
        stream.ReadExactly(back);
        Assert.Equal(data, back);
    }

    [Fact]
    public void Small_window_is_kept_when_writing_and_any_is_read()
    {
        // Repeats at a distance of 20,000 bytes: worth a match only to a window of 32 KiB.
        byte[] data = new byte[Cluster];
        for (int at = 0; at < Cluster; at++)
            data[at] = Pattern.Bytes(7, at % 20_000, 1)[0];
        byte[] large = new byte[Cluster];
        int largeLength = Zlib.Deflate(data, large, Zlib.LargestWindowBits);
        Assert.InRange(largeLength, 1, Cluster / 2);
        Assert.Equal(-1, Zlib.Deflate(data, new byte[Cluster / 2], Zlib.Qcow2WindowBits));

        byte[] back = new byte[Cluster];
        Assert.Equal(Cluster, Zlib.Inflate(large.AsSpan(0, largeLength), back, Zlib.LargestWindowBits));
        Assert.Equal(data, back);
    }

    [Fact]
    public void Inflate_stops_at_the_end_of_the_stream_or_of_the_room()
    {
        byte[] data = Compressible(2, 1000);
        byte[] packed = new byte[2000];
        int length = Zlib.Deflate(data, packed, 12);
        packed.AsSpan(length).Fill(0xff);

        byte[] larger = new byte[4000];
        Assert.Equal(1000, Zlib.Inflate(packed, larger, 12));
        byte[] smaller = new byte[500];
        Assert.Equal(500, Zlib.Inflate(packed, smaller, 12));
        Assert.True(smaller.AsSpan().SequenceEqual(data.AsSpan(0, 500)));
        Assert.InRange(Zlib.Inflate(packed.AsSpan(0, length / 2), larger, 12), 0, 999);
        Assert.Equal(0, Zlib.Inflate([], larger, 12));
        Assert.Equal(0, Zlib.Inflate(packed, [], 12));
    }

    [Fact]
    public void What_does_not_fit_is_said_and_does_not_spill()
    {
        byte[] noise = Pattern.Bytes(3, 0, 4096);
        byte[] room = new byte[4096];
        Assert.Equal(-1, Zlib.Deflate(noise, room.AsSpan(0, 4000), 12));
        Assert.Equal(0, room[4000]);
        room.AsSpan().Clear();
        Assert.Equal(-1, Zstd.Compress(noise, room.AsSpan(0, 4000)));
        Assert.Equal(0, room[4000]);
        Assert.Equal(-1, Zlib.Deflate(noise, [], 12));
        Assert.Equal(-1, Zstd.Compress(noise, []));
    }

    [Fact]
    public void Window_out_of_range_is_a_bug_of_the_caller()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => Zlib.Inflate([], [], 8));
        Assert.Throws<ArgumentOutOfRangeException>(() => Zlib.Deflate([], [], 16));
    }

    [Fact]
    public void Zstd_comes_back_from_one_frame_or_several_with_rubbish_behind()
    {
        byte[] data = Compressible(4, Cluster);
        byte[] packed = new byte[Cluster];
        int first = Zstd.Compress(data.AsSpan(0, 10_000), packed);
        int second = Zstd.Compress(data.AsSpan(10_000), packed.AsSpan(first));
        packed.AsSpan(first + second).Fill(0xee);

        byte[] back = new byte[Cluster];
        Assert.Equal(Cluster, Zstd.Decompress(packed, back));
        Assert.Equal(data, back);
        Assert.Equal(10_000, Zstd.Decompress(packed.AsSpan(0, first), back));
        Assert.Equal(0, Zstd.Decompress([], back));
        Assert.Equal(0, Zstd.Decompress(packed, []));
    }

    [Fact]
    public void Zstd_skips_a_skippable_frame()
    {
        byte[] data = Compressible(5, 3000);
        byte[] packed = new byte[4000];
        byte[] skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
        skippable.CopyTo(packed, 0);
        int length = Zstd.Compress(data, packed.AsSpan(skippable.Length));
        byte[] back = new byte[3000];
        Assert.Equal(3000, Zstd.Decompress(packed.AsSpan(0, skippable.Length + length), back));
        Assert.Equal(data, back);
    }

    [Fact]
    public void Zstd_refuses_what_is_cut_off_or_holds_too_much()
    {
        byte[] data = Compressible(6, Cluster);
        byte[] packed = new byte[Cluster];
        int length = Zstd.Compress(data, packed);
        Assert.Equal(-1, Zstd.Decompress(packed.AsSpan(0, length - 1), new byte[Cluster]));
        Assert.Equal(-1, Zstd.Decompress(packed.AsSpan(0, length), new byte[Cluster - 1]));
        Assert.Equal(-1, Zstd.Decompress(new byte[100], new byte[Cluster]));
    }

    [Fact]
    public void Zstd_does_not_allocate_the_window_that_a_frame_announces()
    {
        // Magic, descriptor without content size or checksum, window 2^41, one raw last block of three bytes.
        byte[] hostile = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 31 << 3, 0x19, 0, 0, 1, 2, 3];
        byte[] back = new byte[3];
        int result = Zstd.Decompress(hostile, back);
        Assert.True(result is -1 or 3, $"{result}");
    }

    [Theory]
    [MemberData(nameof(Seeds))]
    public void Damaged_streams_give_a_result(int seed)
    {
        var random = new Random(seed);
        byte[] data = Compressible((ulong)seed, 8192);
        byte[] deflated = new byte[8192];
        byte[] frames = new byte[8192];
        int deflatedLength = Zlib.Deflate(data, deflated, 12);
        int framesLength = Zstd.Compress(data, frames);
        byte[] room = new byte[8192 + 16];
        for (int i = 0; i < 300; i++)
        {
            byte[] one = deflated[..deflatedLength];
            byte[] two = frames[..framesLength];
            for (int damage = random.Next(1, 5); damage > 0; damage--)
            {
                one[random.Next(one.Length)] = (byte)random.Next(256);
                two[random.Next(two.Length)] = (byte)random.Next(256);
            }
            room.AsSpan(8192).Fill(0xcd);
            Assert.InRange(Zlib.Inflate(one, room.AsSpan(0, 8192), 12), -1, 8192);
            Assert.InRange(Zstd.Decompress(two, room.AsSpan(0, 8192)), -1, 8192);
            Assert.Equal(-1, room.AsSpan(8192).IndexOfAnyExcept((byte)0xcd));
        }
    }

    [Fact]
    public void Codecs_work_on_many_threads_at_once()
    {
        var threads = Enumerable.Range(0, 8).Select(number => new Thread(() =>
        {
            byte[] data = Compressible((ulong)number, Cluster);
            byte[] packed = new byte[Cluster];
            byte[] back = new byte[Cluster];
            for (int i = 0; i < 20; i++)
            {
                Assert.Equal(Cluster, Zstd.Decompress(packed.AsSpan(0, Zstd.Compress(data, packed)), back));
                Assert.Equal(Cluster, Zlib.Inflate(packed.AsSpan(0, Zlib.Deflate(data, packed, 12)), back, 12));
                Assert.Equal(data, back);
            }
        })).ToList();
        threads.ForEach(thread => thread.Start());
        threads.ForEach(thread => thread.Join());
    }

    [Fact]
    public void Steady_use_allocates_nothing()
    {
        byte[] data = Compressible(8, Cluster);
        byte[] packed = new byte[Cluster];
        byte[] secret = Pattern.Bytes(9, 0, 192);
        void Work()
        {
            _ = Zstd.Decompress(packed.AsSpan(0, Zstd.Compress(data, packed)), data);
            _ = Zlib.Inflate(packed.AsSpan(0, Zlib.Deflate(data, packed, 12)), data, 12);
            _ = XxHash.Hash128(data, secret);
        }
        Work();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 10; i++)
            Work();
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    [Fact]
    public void Hash_is_that_of_the_specification()
    {
        // In canonical order, the high half first, as xxhsum prints them.
        Assert.Equal("99aa06d3014798d86001c324468d497f", XxHash.Hash128([]).ToString("x32"));
        Assert.Equal("a96faf705af16834e6c632b61e964e1f", XxHash.Hash128("a"u8).ToString("x32"));
        byte[] data = Compressible(9, 5000);
        Assert.NotEqual(XxHash.Hash128(data), XxHash.Hash128(data, seed: 1));
        byte[] secret = Pattern.Bytes(10, 0, 192);
        UInt128 hash = XxHash.Hash128(data, secret);
        Assert.Equal(hash, XxHash.Hash128(data, secret));
        secret[100] ^= 1;
        Assert.NotEqual(hash, XxHash.Hash128(data, secret));
        Assert.Throws<ArgumentOutOfRangeException>(() => XxHash.Hash128(data, new byte[XxHash.SmallestSecret - 1]));
    }

    // Text-like: short runs of noise, each repeated soon after.
    private static byte[] Compressible(ulong seed, int length)
    {
        byte[] data = new byte[length];
        for (int at = 0; at < length; at += 64)
            Pattern.Fill(data.AsSpan(at, Math.Min(64, length - at)), seed + Pattern.Mix(seed + (ulong)at) % 12, 0);
        return data;
    }
}
