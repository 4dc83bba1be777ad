// Byte for byte: listings.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse.Tests.Wire;

public sealed class DirectoryRequestTests
{
    private static readonly FuseEntry Directory = Entry(1, 0x4000 | 0x1C0);

    [Fact]
    public void Opendir_and_releasedir_pass_the_handle()
    {
        var fixture = new DispatcherFixture { FileSystem = { Opened = new FuseOpenResult { Handle = 6, Flags = FuseOpenFlags.CacheDirectory } } };
        fixture.Expect(
            Packet.Request(FuseOpcode.OpenDir, 1, new Packet().U32(0x18800).U32(0)),
            Packet.Reply(0, new Packet().U64(6).U32(8).U32(0)),
            "opendir 1");
        fixture.Expect(Packet.Request(FuseOpcode.ReleaseDir, 1, new Packet().U64(6).U32(0).U32(0).U64(0)), Packet.Reply(0), "releasedir 1 6");
    }

    [Fact]
    public void Readdir_gives_names_padded_to_eight_bytes()
    {
        var fixture = new DispatcherFixture { FileSystem = { Listing = [(".", Directory), ("abcdefgh", Entry(5, 0x8180))] } };
        fixture.Expect(
            Packet.Request(FuseOpcode.ReadDir, 1, Body(0, 4096)),
            Packet.Reply(0, new Packet()
                .U64(1001).U64(1).U32(1).U32(4).Text(".").Zeros(7)
                .U64(1005).U64(2).U32(8).U32(8).Text("abcdefgh")),
            "readdir 1 6 0 False");
    }

    [Fact]
    public void Readdirplus_gives_entries_and_takes_no_reference_to_the_dot_entries()
    {
        var fixture = new DispatcherFixture { FileSystem = { Listing = [(".", Directory), ("..", Directory), ("abc", Entry(5, 0x8180))] } };
        byte[] attributes = new Packet().U64(1005).U64(10).U64(0).Zeros(36).U32(0x8180).U32(1).U32(0).U32(0).U32(0).U32(0).U32(0).Bytes;
        Assert.Equal(88, attributes.Length);
        fixture.Expect(
            Packet.Request(FuseOpcode.ReadDirPlus, 1, Body(0, 4096)),
            Packet.Reply(0, new Packet()
                .Zeros(128).U64(1001).U64(1).U32(1).U32(4).Text(".").Zeros(7)
                .Zeros(128).U64(1001).U64(2).U32(2).U32(4).Text("..").Zeros(6)
                .U64(5).U64(0).U64(3).U64(4).U32(0).U32(0).Raw(attributes).U64(1005).U64(3).U32(3).U32(8).Text("abc").Zeros(5)),
            "readdir 1 6 0 True");
    }

    [Fact]
    public void A_listing_ends_where_the_next_entry_does_not_fit_and_goes_on_there()
    {
        var fixture = new DispatcherFixture { FileSystem = { Listing = [("a", Entry(5, 0x8180)), ("b", Entry(6, 0x8180)), ("c", Entry(7, 0x8180))] } };
        byte[] two = fixture.Serve(Packet.Request(FuseOpcode.ReadDir, 1, Body(0, (2 * 32) + 31)));
        Assert.Equal(16 + (2 * 32), two.Length);
        byte[] rest = fixture.Serve(Packet.Request(FuseOpcode.ReadDir, 1, Body(2, 4096)));
        Assert.Equal(Packet.Reply(0, new Packet().U64(1007).U64(3).U32(1).U32(8).Text("c").Zeros(7)), rest);
        Assert.Equal(Packet.Reply(0), fixture.Serve(Packet.Request(FuseOpcode.ReadDir, 1, Body(3, 4096))));
    }

    [Fact]
    public void A_size_beyond_the_reply_is_served_in_smaller_pieces()
    {
        var fixture = new DispatcherFixture(payload: 100) { FileSystem = { Listing = [.. Enumerable.Range(0, 9).Select(i => ($"{i}", Entry(5, 0x8180)))] } };
        Assert.Equal(16 + (3 * 32), fixture.Serve(Packet.Request(FuseOpcode.ReadDir, 1, Body(0, uint.MaxValue))).Length);
    }

    [Theory]
    [InlineData("")]
    [InlineData("a/b")]
    [InlineData("a\0b")]
    public void A_name_that_would_fail_the_whole_listing_in_the_kernel_is_EIO_and_is_reported(string name)
    {
        var fixture = new DispatcherFixture { FileSystem = { Listing = [(name, Entry(5, 0x8180))] } };
        Assert.Equal(Packet.Reply(-5), fixture.Serve(Packet.Request(FuseOpcode.ReadDir, 1, Body(0, 4096))));
        Assert.IsType<ArgumentException>(Assert.Single(fixture.Faults).Exception);
    }

    [Fact]
    public void A_listing_that_fails_gives_its_references_back()
    {
        var fixture = new DispatcherFixture { FileSystem = { Listing = [("..", Directory), ("a", Entry(5, 0x8180)), ("b", Entry(6, 0x8180))], Result = Errno.EIO } };
        fixture.Expect(
            Packet.Request(FuseOpcode.ReadDirPlus, 1, Body(0, 4096)),
            Packet.Reply(-5),
            "readdir 1 6 0 True", "forget 5 1", "forget 6 1");
        fixture.Expect(Packet.Request(FuseOpcode.ReadDir, 1, Body(0, 4096)), Packet.Reply(-5), "readdir 1 6 0 False");
    }

    [Fact]
    public void A_reply_that_nobody_waits_for_any_more_is_undone()
    {
        var fixture = new DispatcherFixture { FileSystem = { Entry = Entry(5, 0x8180), Listing = [(".", Directory), ("a", Entry(5, 0x8180)), ("b", Entry(6, 0x8180))] } };
        fixture.FileSystem.Opened = new FuseOpenResult { Handle = 9 };
        AssertUndone(Packet.Request(FuseOpcode.Lookup, 1, new Packet().Name("a")), "forget 5 1");
        AssertUndone(Packet.Request(FuseOpcode.ReadDirPlus, 1, Body(0, 4096)), "forget 5 1", "forget 6 1");
        AssertUndone(Packet.Request(FuseOpcode.ReadDir, 1, Body(0, 4096)));
        AssertUndone(Packet.Request(FuseOpcode.Open, 3, new Packet().U32(0).U32(0)), "release 3 9");
        AssertUndone(Packet.Request(FuseOpcode.OpenDir, 1, new Packet().U32(0).U32(0)), "releasedir 1 9");
        AssertUndone(Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 4)));
        fixture.FileSystem.Result = Errno.ENOENT;
        AssertUndone(Packet.Request(FuseOpcode.Lookup, 1, new Packet().Name("a")));

        void AssertUndone(byte[] request, params string[] calls)
        {
            byte[] reply = fixture.Serve(request);
            fixture.FileSystem.Calls.Clear();
            Assert.True(Message.TryRead(request, out InHeader header));
            fixture.Dispatcher.Undo(in header, reply);
            Assert.Equal(calls, fixture.FileSystem.Calls);
        }
    }

    private static Packet Body(ulong offset, uint length) => new Packet().U64(6).U64(offset).U32(length).U32(0).U64(0).U32(0).U32(0);

    private static FuseEntry Entry(ulong node, uint mode) => new()
    {
        Node = node,
        EntryValid = TimeSpan.FromSeconds(3),
        Attributes = new FuseAttributes { Inode = 1000 + node, Size = 10, Mode = mode, Links = 1, Valid = TimeSpan.FromSeconds(4) },
    };
}
