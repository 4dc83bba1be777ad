// Requests that no kernel sends: every length is checked, nothing is thrown, nothing outside the message is looked at.
using FsCheck;
using FsCheck.Fluent;
using QcowFs.Native;

namespace QcowFs.Fuse.Tests.Wire;

public sealed class HostileRequestTests
{
    /// <summary>Every opcode with a body, and the body that is just long enough.</summary>
    public static TheoryData<FuseOpcode, int> Bodies => new()
    {
        { FuseOpcode.Lookup, 2 },
        { FuseOpcode.Forget, 8 },
        { FuseOpcode.BatchForget, 8 },
        { FuseOpcode.GetAttr, 16 },
        { FuseOpcode.SetAttr, 88 },
        { FuseOpcode.Open, 8 },
        { FuseOpcode.Read, 40 },
        { FuseOpcode.Write, 40 },
        { FuseOpcode.Release, 24 },
        { FuseOpcode.Flush, 24 },
        { FuseOpcode.FSync, 16 },
        { FuseOpcode.ReadDir, 40 },
        { FuseOpcode.ReadDirPlus, 40 },
        { FuseOpcode.ReleaseDir, 24 },
        { FuseOpcode.FAllocate, 32 },
        { FuseOpcode.LSeek, 24 },
    };

    [Theory]
    [MemberData(nameof(Bodies))]
    public void A_body_that_is_too_short_is_EIO_at_every_length(FuseOpcode opcode, int size)
    {
        bool hasReply = opcode is not (FuseOpcode.Forget or FuseOpcode.BatchForget);
        for (int length = 0; length < size; length++)
        {
            var fixture = new DispatcherFixture();
            // Names: no NUL; the rest: too short.
            byte[] body = opcode == FuseOpcode.Lookup ? [.. Enumerable.Repeat((byte)'x', length)] : new byte[length];
            fixture.Expect(Packet.Request(opcode, 1, new Packet().Raw(body)), hasReply ? Packet.Reply(-5) : []);
            FuseFault fault = Assert.Single(fixture.Faults);
            Assert.Equal((opcode, null), (fault.Opcode, fault.Exception));
        }
    }

    [Fact]
    public void An_empty_name_is_EIO()
        => new DispatcherFixture().Expect(Packet.Request(FuseOpcode.Lookup, 1, new Packet().Name("")), Packet.Reply(-5));

    [Theory]
    [InlineData(0u)]
    [InlineData(3u)]
    [InlineData(5u)]
    [InlineData(uint.MaxValue)]
    public void A_write_whose_length_is_not_that_of_its_payload_is_EIO(uint claimed)
    {
        var fixture = new DispatcherFixture();
        Packet body = new Packet().U64(7).U64(0).U32(claimed).U32(0).U64(0).U32(0).U32(0).Text("abcd");
        fixture.Expect(Packet.Request(FuseOpcode.Write, 2, body), Packet.Reply(-5));
    }

    [Theory]
    [InlineData(2u)]
    [InlineData(0x1000_0000u)]
    [InlineData(uint.MaxValue)]
    public void A_batch_that_claims_more_than_it_holds_forgets_nothing(uint claimed)
    {
        var fixture = new DispatcherFixture();
        fixture.Expect(Packet.Request(FuseOpcode.BatchForget, 0, new Packet().U32(claimed).U32(0).U64(8).U64(1)), []);
        // Seen by a check, not by running into the end of the message.
        Assert.Null(Assert.Single(fixture.Faults).Exception);
    }

    [Theory]
    [InlineData(0u)]
    [InlineData(39u)]
    [InlineData(79u)]
    [InlineData(81u)]
    [InlineData(uint.MaxValue)]
    public void A_header_whose_length_is_not_that_of_the_message_is_EIO(uint claimed)
    {
        var fixture = new DispatcherFixture();
        byte[] request = Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 4));
        BitConverter.TryWriteBytes(request, claimed);
        fixture.Expect(request, Packet.Reply(-5));
    }

    [Fact]
    public void A_message_without_a_whole_header_has_no_reply()
    {
        for (int length = 0; length < 40; length++)
        {
            var fixture = new DispatcherFixture();
            fixture.Expect(Packet.Request(FuseOpcode.Read, 2)[..length], []);
            Assert.Single(fixture.Faults);
        }
    }

    [Fact]
    public void A_second_INIT_is_refused()
        => new DispatcherFixture().Expect(Packet.Request(FuseOpcode.Init, 0, new Packet().U32(7).U32(31).U32(0).U32(0)), Packet.Reply(-5));

    [Fact]
    public void Any_bytes_are_answered_with_a_reply_that_the_kernel_can_read()
    {
        Arbitrary<(uint Opcode, byte[] Body)> requests =
            (from opcode in Gen.OneOf(Gen.Choose(0, 60).Select(n => (uint)n), Gen.Choose(int.MinValue, int.MaxValue).Select(n => unchecked((uint)n)))
             from length in Gen.Choose(0, 200)
             from body in Gen.ArrayOf(Gen.Elements<byte>(0, 0, 0, 1, 3, 0x7F, 0x80, 0xFF), length)
             select (opcode, body)).ToArbitrary();
        Prop.ForAll(requests, request =>
        {
            var fixture = new DispatcherFixture(payload: 4096) { FileSystem = { Listing = [("a", default), ("b", default)] } };
            byte[] reply = fixture.Serve(Packet.Request((FuseOpcode)request.Opcode, 1, new Packet().Raw(request.Body)));
            bool silent = request.Opcode is 2 or 36 or 41 or 42;
            if (silent) return reply.Length == 0;
            int error = BitConverter.ToInt32(reply, 4);
            return BitConverter.ToInt32(reply, 0) == reply.Length
                && BitConverter.ToUInt64(reply, 8) == 0x1122334455667788
                && error is <= 0 and > -512
                && (error == 0 || reply.Length == 16);
        }).QuickCheckThrowOnFailure();
    }

    [Fact]
    public void ENOSYS_of_a_file_system_never_reaches_the_kernel()
    {
        foreach (Errno errno in new[] { Errno.ENOSYS, (Errno)512, (Errno)(-5), (Errno)int.MinValue })
        {
            foreach ((FuseOpcode opcode, Packet body) in Implemented())
            {
                var fixture = new DispatcherFixture { FileSystem = { Result = errno } };
                Assert.Equal(Packet.Reply(-5), fixture.Serve(Packet.Request(opcode, 2, body)));
                Assert.Single(fixture.Faults);
            }
        }
    }

    [Fact]
    public void An_exception_is_mapped_once_reported_once_and_never_gets_out()
    {
        var thrown = new InvalidDataException("broken");
        foreach ((FuseOpcode opcode, Packet body) in Implemented())
        {
            var seen = new List<Exception>();
            var fixture = new DispatcherFixture(map: exception =>
            {
                seen.Add(exception);
                return Errno.ENOSPC;
            });
            fixture.FileSystem.Throws = thrown;
            Assert.Equal(Packet.Reply(-28), fixture.Serve(Packet.Request(opcode, 2, body)));
            Assert.Same(thrown, Assert.Single(seen));
            FuseFault fault = Assert.Single(fixture.Faults);
            Assert.Same(thrown, fault.Exception);
            Assert.Equal((opcode, "broken"), (fault.Opcode, fault.Message));
        }
    }

    [Fact]
    public void An_exception_of_an_operation_without_a_reply_is_reported()
    {
        foreach ((FuseOpcode opcode, Packet body) in new[] { (FuseOpcode.Forget, new Packet().U64(1)), (FuseOpcode.BatchForget, new Packet().U32(1).U32(0).U64(1).U64(1)) })
        {
            var fixture = new DispatcherFixture { FileSystem = { Throws = new InvalidDataException("broken") } };
            Assert.Empty(fixture.Serve(Packet.Request(opcode, 2, body)));
            Assert.Single(fixture.Faults);
        }
    }

    [Fact]
    public void A_mapping_or_a_log_that_throws_does_not_get_out_either()
    {
        static Errno Broken(Exception exception) => throw new InvalidOperationException("the mapping too");

        var fixture = new DispatcherFixture(map: Broken) { FileSystem = { Throws = new InvalidDataException("broken") } };
        byte[] request = Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 4));
        Assert.Equal(Packet.Reply(-5), fixture.Serve(request));
        Assert.Equal(2, fixture.Faults.Count);

        var silent = new DispatcherFixture(report: static _ => throw new InvalidOperationException("the log is full"))
        {
            FileSystem = { Throws = new InvalidDataException("broken") },
        };
        Assert.Equal(Packet.Reply(-5), silent.Serve(request));
        Assert.Equal(1, silent.Dispatcher.UnreportedFaults);
    }

    [Theory]
    [InlineData(Errno.None)]
    [InlineData(Errno.ENOSYS)]
    [InlineData((Errno)100000)]
    public void A_mapping_to_no_error_is_EIO(Errno mapped)
    {
        var fixture = new DispatcherFixture(map: _ => mapped) { FileSystem = { Throws = new InvalidDataException("broken") } };
        Assert.Equal(Packet.Reply(-5), fixture.Serve(Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 4))));
    }

    /// <summary>Every opcode that asks the file system and has a reply that can fail.</summary>
    private static IEnumerable<(FuseOpcode Opcode, Packet Body)> Implemented() =>
    [
        (FuseOpcode.Lookup, new Packet().Name("a")),
        (FuseOpcode.GetAttr, new Packet().Zeros(16)),
        (FuseOpcode.SetAttr, new Packet().Zeros(88)),
        (FuseOpcode.Open, new Packet().Zeros(8)),
        (FuseOpcode.Read, FileRequestTests.ReadBody(0, 4)),
        (FuseOpcode.Write, FileRequestTests.WriteBody("abcd"u8)),
        (FuseOpcode.StatFs, new Packet()),
        (FuseOpcode.FSync, new Packet().Zeros(16)),
        (FuseOpcode.Flush, new Packet().Zeros(24)),
        (FuseOpcode.OpenDir, new Packet().Zeros(8)),
        (FuseOpcode.ReadDir, FileRequestTests.ReadBody(0, 4096)),
        (FuseOpcode.ReadDirPlus, FileRequestTests.ReadBody(0, 4096)),
        (FuseOpcode.FAllocate, new Packet().Zeros(32)),
        (FuseOpcode.LSeek, new Packet().U64(0).U64(0).U32(3).U32(0)),
        (FuseOpcode.SyncFs, new Packet().Zeros(8)),
    ];
}
