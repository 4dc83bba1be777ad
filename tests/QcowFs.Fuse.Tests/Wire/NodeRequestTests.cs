// Byte for byte: names, attributes, references, statfs.
using QcowFs.Native;

namespace QcowFs.Fuse.Tests.Wire;

public sealed class NodeRequestTests
{
    private static readonly FuseAttributes Sample = new()
    {
        Inode = 77,
        Mode = 0x8180,
        Links = 3,
        Uid = 1000,
        Gid = 1001,
        Size = 0x1_2345_6789,
        Blocks = 99,
        BlockSize = 65536,
        AccessTime = DateTimeOffset.UnixEpoch.AddSeconds(100),
        ModifyTime = DateTimeOffset.UnixEpoch.AddSeconds(200).AddTicks(1234567),
        ChangeTime = DateTimeOffset.UnixEpoch.AddTicks(-1),
        Valid = TimeSpan.FromSeconds(2.5),
    };

    /// <summary>struct fuse_attr of <see cref="Sample"/>.</summary>
    private static byte[] SampleBytes => new Packet()
        .U64(77).U64(0x1_2345_6789).U64(99)
        .I64(100).I64(200).I64(-1)
        .U32(0).U32(123456700).U32(999999900)
        .U32(0x8180).U32(3).U32(1000).U32(1001).U32(0).U32(65536).U32(0).Bytes;

    [Fact]
    public void Lookup_gives_the_entry()
    {
        var fixture = new DispatcherFixture();
        fixture.FileSystem.Entry = new FuseEntry
        {
            Node = 5,
            Generation = 9,
            EntryValid = TimeSpan.FromSeconds(1.25),
            Attributes = Sample,
        };
        fixture.Expect(
            Packet.Request(FuseOpcode.Lookup, 1, new Packet().Name("disk.qcow2.raw")),
            Packet.Reply(0, new Packet().U64(5).U64(9).U64(1).U64(2).U32(250000000).U32(500000000).Raw(SampleBytes)),
            "lookup 1 disk.qcow2.raw");
    }

    [Fact]
    public void Lookup_of_a_name_that_is_not_there_is_ENOENT()
    {
        var fixture = new DispatcherFixture { FileSystem = { Result = Errno.ENOENT } };
        fixture.Expect(Packet.Request(FuseOpcode.Lookup, 1, new Packet().Name("x")), Packet.Reply(-2), "lookup 1 x");
    }

    [Fact]
    public void A_time_that_was_not_set_is_1970_and_a_negative_validity_is_none()
    {
        var fixture = new DispatcherFixture();
        fixture.FileSystem.Entry = new FuseEntry { Node = 5, EntryValid = TimeSpan.FromSeconds(-1) };
        fixture.Expect(
            Packet.Request(FuseOpcode.Lookup, 1, new Packet().Name("x")),
            Packet.Reply(0, new Packet().U64(5).Zeros(120)),
            "lookup 1 x");
    }

    [Fact]
    public void Forget_and_batch_forget_have_no_reply()
    {
        var fixture = new DispatcherFixture();
        fixture.Expect(Packet.Request(FuseOpcode.Forget, 8, new Packet().U64(3)), [], "forget 8 3");
        fixture.Expect(
            Packet.Request(FuseOpcode.BatchForget, 0, new Packet().U32(2).U32(0).U64(8).U64(1).U64(9).U64(7)),
            [],
            "forget 8 1", "forget 9 7");
    }

    [Fact]
    public void Getattr_passes_the_handle_only_where_it_is_meant()
    {
        var fixture = new DispatcherFixture { FileSystem = { Attributes = Sample } };
        byte[] reply = Packet.Reply(0, new Packet().U64(2).U32(500000000).U32(0).Raw(SampleBytes));
        fixture.Expect(Packet.Request(FuseOpcode.GetAttr, 2, new Packet().U32(1).U32(0).U64(44)), reply, "getattr 2 44");
        fixture.Expect(Packet.Request(FuseOpcode.GetAttr, 2, new Packet().U32(0).U32(0).U64(44)), reply, "getattr 2 0");
    }

    [Theory]
    [InlineData(0u, "handle=0 size= mode= uid= gid= times=False")]
    [InlineData(1u << 0, "handle=0 size= mode=420 uid= gid= times=False")]
    [InlineData(1u << 1, "handle=0 size= mode= uid=1 gid= times=False")]
    [InlineData(1u << 2, "handle=0 size= mode= uid= gid=2 times=False")]
    [InlineData(1u << 3, "handle=0 size=4096 mode= uid= gid= times=False")]
    [InlineData((1u << 3) | (1u << 6), "handle=44 size=4096 mode= uid= gid= times=False")]
    [InlineData(1u << 4, "handle=0 size= mode= uid= gid= times=True")]
    [InlineData(1u << 5, "handle=0 size= mode= uid= gid= times=True")]
    [InlineData(1u << 7, "handle=0 size= mode= uid= gid= times=True")]
    [InlineData(1u << 8, "handle=0 size= mode= uid= gid= times=True")]
    [InlineData(1u << 9, "handle=0 size= mode= uid= gid= times=False")]
    [InlineData(1u << 10, "handle=0 size= mode= uid= gid= times=True")]
    public void Setattr_passes_what_is_meant(uint valid, string expected)
    {
        var fixture = new DispatcherFixture { FileSystem = { Attributes = Sample } };
        Packet body = new Packet().U32(valid).U32(0).U64(44).U64(4096).U64(0)
            .U64(1).U64(2).U64(3).U32(4).U32(5).U32(6).U32(420).U32(0).U32(1).U32(2).U32(0);
        Assert.Equal(88, body.Length);
        fixture.Expect(
            Packet.Request(FuseOpcode.SetAttr, 2, body),
            Packet.Reply(0, new Packet().U64(2).U32(500000000).U32(0).Raw(SampleBytes)),
            "setattr 2 " + expected);
    }

    [Fact]
    public void Statfs_gives_the_facts()
    {
        var fixture = new DispatcherFixture();
        fixture.FileSystem.Facts = new FuseStatFs
        {
            BlockSize = 65536,
            FragmentSize = 4096,
            Blocks = 1,
            BlocksFree = 2,
            BlocksAvailable = 3,
            Files = 4,
            FilesFree = 5,
            NameLength = 255,
        };
        fixture.Expect(
            Packet.Request(FuseOpcode.StatFs, 1),
            Packet.Reply(0, new Packet().U64(1).U64(2).U64(3).U64(4).U64(5).U32(65536).U32(255).U32(4096).U32(0).Zeros(24)),
            "statfs 1");
    }

    [Fact]
    public void Opcodes_that_need_no_file_system_are_answered_by_the_library()
    {
        var fixture = new DispatcherFixture();
        fixture.Expect(Packet.Request(FuseOpcode.Access, 1, new Packet().U32(4).U32(0)), Packet.Reply(0));
        fixture.Expect(Packet.Request(FuseOpcode.FSyncDir, 1, new Packet().U64(1).U32(0).U32(0)), Packet.Reply(0));
        fixture.Expect(Packet.Request(FuseOpcode.Destroy, 0), Packet.Reply(0));
        fixture.Expect(Packet.Request(FuseOpcode.SyncFs, 1, new Packet().U64(0)), Packet.Reply(0), "sync 1 0 False");
        fixture.Expect(Packet.Request(FuseOpcode.Interrupt, 0, new Packet().U64(4)), []);
        fixture.Expect(Packet.Request(FuseOpcode.NotifyReply, 0, new Packet().Zeros(40)), []);
        foreach (FuseOpcode opcode in new[]
        {
            FuseOpcode.MkNod, FuseOpcode.MkDir, FuseOpcode.Symlink, FuseOpcode.Link, FuseOpcode.Unlink, FuseOpcode.RmDir, FuseOpcode.Rename, FuseOpcode.Rename2,
            FuseOpcode.Create,
        })
        {
            fixture.Expect(Packet.Request(opcode, 1, new Packet().Zeros(64)), Packet.Reply(-1));
        }
        fixture.Expect(Packet.Request(FuseOpcode.ReadLink, 1), Packet.Reply(-22));
        fixture.Expect(Packet.Request(FuseOpcode.IoCtl, 2, new Packet().Zeros(32)), Packet.Reply(-25));
        fixture.Expect(Packet.Request(FuseOpcode.TmpFile, 1, new Packet().Zeros(32)), Packet.Reply(-95));
        Assert.Empty(fixture.Faults);
    }

    [Fact]
    public void What_no_node_implements_is_ENOSYS_so_that_the_kernel_stops_asking()
    {
        var fixture = new DispatcherFixture();
        foreach (FuseOpcode opcode in new[]
        {
            FuseOpcode.GetXAttr, FuseOpcode.SetXAttr, FuseOpcode.ListXAttr, FuseOpcode.RemoveXAttr, FuseOpcode.GetLk, FuseOpcode.SetLk, FuseOpcode.SetLkW,
            FuseOpcode.BMap, FuseOpcode.Poll, FuseOpcode.CopyFileRange, FuseOpcode.SetupMapping, FuseOpcode.RemoveMapping, FuseOpcode.Statx, (FuseOpcode)999,
        })
        {
            fixture.Expect(Packet.Request(opcode, 1, new Packet().Zeros(64)), Packet.Reply(-38));
        }
        Assert.Empty(fixture.Faults);
    }
}
