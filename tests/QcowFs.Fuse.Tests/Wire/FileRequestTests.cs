// Byte for byte: open files.
using QcowFs.Native;

namespace QcowFs.Fuse.Tests.Wire;

public sealed class FileRequestTests
{
    private const int DataSync = 0x1000;

    [Fact]
    public void Open_gives_handle_and_flags()
    {
        var fixture = new DispatcherFixture();
        fixture.FileSystem.Opened = new FuseOpenResult { Handle = 0xABCD, Flags = FuseOpenFlags.DirectIo | FuseOpenFlags.ParallelDirectWrites };
        fixture.Expect(
            Packet.Request(FuseOpcode.Open, 2, new Packet().U32(0x8002).U32(0)),
            Packet.Reply(0, new Packet().U64(0xABCD).U32(65).U32(0)),
            "open 2 8002");
    }

    [Fact]
    public void Release_and_flush_pass_the_handle()
    {
        var fixture = new DispatcherFixture();
        fixture.Expect(Packet.Request(FuseOpcode.Release, 2, new Packet().U64(7).U32(0).U32(0).U64(0)), Packet.Reply(0), "release 2 7");
        fixture.Expect(Packet.Request(FuseOpcode.Flush, 2, new Packet().U64(7).U32(0).U32(0).U64(1)), Packet.Reply(0), "flush 2 7");
    }

    [Fact]
    public void Read_gives_the_bytes()
    {
        var fixture = new DispatcherFixture();
        fixture.Expect(
            Packet.Request(FuseOpcode.Read, 2, ReadBody(offset: 0x10, length: 4)),
            Packet.Reply(0, new Packet().Raw([0x10, 0x11, 0x12, 0x13])),
            "read 2 7 16 4");
    }

    [Fact]
    public void Read_at_the_end_gives_fewer_bytes()
    {
        var fixture = new DispatcherFixture { FileSystem = { Count = 2 } };
        fixture.Expect(
            Packet.Request(FuseOpcode.Read, 2, ReadBody(offset: 0x10, length: 4)),
            Packet.Reply(0, new Packet().Raw([0x10, 0x11])),
            "read 2 7 16 4");
        fixture.FileSystem.Count = 0;
        fixture.Expect(Packet.Request(FuseOpcode.Read, 2, ReadBody(offset: 0x10, length: 4)), Packet.Reply(0), "read 2 7 16 4");
    }

    [Fact]
    public void Read_fills_the_whole_reply()
    {
        var fixture = new DispatcherFixture(payload: 4096);
        Assert.Equal(16 + 4096, fixture.Serve(Packet.Request(FuseOpcode.Read, 2, ReadBody(offset: 0, length: 4096))).Length);
        Assert.Equal(Packet.Reply(-5), fixture.Serve(Packet.Request(FuseOpcode.Read, 2, ReadBody(offset: 0, length: 4097))));
        // Seen by a check, not by running into the end of the buffer.
        Assert.Null(Assert.Single(fixture.Faults).Exception);
    }

    [Theory]
    [InlineData(-1)]
    [InlineData(5)]
    [InlineData(int.MinValue)]
    public void A_count_that_cannot_be_is_EIO_and_is_reported(int count)
    {
        var fixture = new DispatcherFixture { FileSystem = { Count = count } };
        fixture.Expect(Packet.Request(FuseOpcode.Read, 2, ReadBody(offset: 0, length: 4)), Packet.Reply(-5), "read 2 7 0 4");
        fixture.Expect(Packet.Request(FuseOpcode.Write, 2, WriteBody("abcd"u8)), Packet.Reply(-5), "write 2 7 16 61626364 4 0");
        Assert.Equal(2, fixture.Faults.Count);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(DataSync)]
    public void Write_passes_payload_and_flags(int flags)
    {
        var fixture = new DispatcherFixture();
        fixture.Expect(
            Packet.Request(FuseOpcode.Write, 2, WriteBody("abcd"u8, (uint)flags)),
            Packet.Reply(0, new Packet().U32(4).U32(0)),
            $"write 2 7 16 61626364 4 {flags:x}");
    }

    [Fact]
    public void Write_tells_how_much_was_taken()
    {
        var fixture = new DispatcherFixture { FileSystem = { Count = 3 } };
        fixture.Expect(
            Packet.Request(FuseOpcode.Write, 2, WriteBody("abcd"u8)),
            Packet.Reply(0, new Packet().U32(3).U32(0)),
            "write 2 7 16 61626364 4 0");
    }

    [Theory]
    [InlineData(0u, "sync 2 7 False")]
    [InlineData(1u, "sync 2 7 True")]
    public void Fsync_tells_whether_only_data_is_meant(uint flags, string call)
    {
        var fixture = new DispatcherFixture();
        fixture.Expect(Packet.Request(FuseOpcode.FSync, 2, new Packet().U64(7).U32(flags).U32(0)), Packet.Reply(0), call);
    }

    [Fact]
    public void Fallocate_passes_range_and_mode()
    {
        var fixture = new DispatcherFixture();
        fixture.Expect(
            Packet.Request(FuseOpcode.FAllocate, 2, new Packet().U64(7).U64(4096).U64(512).U32(3).U32(0)),
            Packet.Reply(0),
            "allocate 2 7 4096 512 3");
        fixture.Expect(
            Packet.Request(FuseOpcode.FAllocate, 2, new Packet().U64(7).U64(long.MaxValue).U64(1).U32(3).U32(0)),
            Packet.Reply(-27));
    }

    [Fact]
    public void Lseek_gives_the_offset()
    {
        var fixture = new DispatcherFixture { FileSystem = { Found = 0x1_0000_0000 } };
        fixture.Expect(
            Packet.Request(FuseOpcode.LSeek, 2, new Packet().U64(7).U64(512).U32(3).U32(0)),
            Packet.Reply(0, new Packet().U64(0x1_0000_0000)),
            "seek 2 7 512 3");
        fixture.Expect(Packet.Request(FuseOpcode.LSeek, 2, new Packet().U64(7).U64(512).U32(0).U32(0)), Packet.Reply(-22));
        fixture.Expect(Packet.Request(FuseOpcode.LSeek, 2, new Packet().U64(7).I64(-1).U32(4).U32(0)), Packet.Reply(-6));
    }

    [Fact]
    public void An_offset_beyond_a_file_is_refused_before_the_file_system_sees_it()
    {
        var fixture = new DispatcherFixture();
        Packet read = new Packet().U64(7).I64(-4096).U32(4).U32(0).U64(0).U32(0).U32(0);
        fixture.Expect(Packet.Request(FuseOpcode.Read, 2, read), Packet.Reply(-22));
        Packet write = new Packet().U64(7).I64(long.MinValue).U32(4).U32(0).U64(0).U32(0).U32(0).Text("abcd");
        fixture.Expect(Packet.Request(FuseOpcode.Write, 2, write), Packet.Reply(-22));
    }

    [Theory]
    [InlineData(Errno.ENOSPC, -28)]
    [InlineData(Errno.EROFS, -30)]
    [InlineData(Errno.EDQUOT, -122)]
    public void An_error_number_reaches_the_kernel(Errno errno, int error)
    {
        var fixture = new DispatcherFixture { FileSystem = { Result = errno } };
        fixture.Expect(Packet.Request(FuseOpcode.Write, 2, WriteBody("abcd"u8)), Packet.Reply(error), "write 2 7 16 61626364 4 0");
        Assert.Empty(fixture.Faults);
    }

    internal static Packet ReadBody(ulong offset, uint length) => new Packet().U64(7).U64(offset).U32(length).U32(0).U64(0).U32(0x8000).U32(0);

    internal static Packet WriteBody(ReadOnlySpan<byte> data, uint flags = 0)
        => new Packet().U64(7).U64(16).U32((uint)data.Length).U32(0).U64(0).U32(flags).U32(0).Raw(data);
}
