// INIT with every kind of kernel.
using QcowFs.Fuse.Wire;

namespace QcowFs.Fuse.Tests.Wire;

public sealed class NegotiationTests
{
    private const uint Extended = 1u << 30;

    [Fact]
    public void A_new_kernel_that_offers_everything_gets_what_is_wanted_and_nothing_else()
    {
        byte[] body = new Packet().U32(7).U32(45).U32(131072).U32(uint.MaxValue).U32(uint.MaxValue).Zeros(44).Bytes;
        Assert.Equal(64, body.Length);
        Negotiation.Outcome outcome = Negotiation.Answer(body, new FuseSessionOptions(), false, out InitOut reply, out FuseConnection? connection);
        Assert.Equal(Negotiation.Outcome.Agreed, outcome);
        Assert.Equal((7u, 45u, 131072u), (reply.Major, reply.Minor, reply.MaxReadahead));
        // ASYNC_READ, BIG_WRITES, AUTO_INVAL_DATA, DO_READDIRPLUS, READDIRPLUS_AUTO, ASYNC_DIO, PARALLEL_DIROPS, ABORT_ERROR, MAX_PAGES, INIT_EXT
        const uint expected = (1u << 0) | (1u << 5) | (1u << 12) | (1u << 13) | (1u << 14) | (1u << 15) | (1u << 18) | (1u << 21) | (1u << 22) | (1u << 30);
        Assert.Equal(expected, reply.Flags);
        Assert.Equal((1u << 3) | (1u << 5), reply.Flags2); // HAS_EXPIRE_ONLY, PASSTHROUGH
        Assert.Equal((128, 96), (reply.MaxBackground, reply.CongestionThreshold));
        Assert.Equal((1u << 20, 1u, 256), (reply.MaxWrite, reply.TimeGranularity, reply.MaxPages));
        Assert.Equal((1u, 0), (reply.MaxStackDepth, reply.MapAlignment));
        Assert.Equal(45, connection!.Minor);
        Assert.Equal(ulong.MaxValue, (ulong)connection.Offered);
    }

    [Fact]
    public void Three_features_are_never_on()
    {
        byte[] body = new Packet().U32(7).U32(45).U32(0).U32(uint.MaxValue).U32(uint.MaxValue).Zeros(44).Bytes;
        Negotiation.Answer(body, new FuseSessionOptions(), false, out _, out FuseConnection? connection);
        const FuseFeatures never = FuseFeatures.WritebackCache | FuseFeatures.DirectIoAllowMap | FuseFeatures.AtomicTruncate;
        Assert.Equal(FuseFeatures.None, connection!.Enabled & never);
    }

    [Fact]
    public void A_stack_depth_is_stated_only_with_passthrough()
    {
        byte[] body = new Packet().U32(7).U32(45).U32(0).U32(uint.MaxValue).U32(uint.MaxValue & ~(1u << 5)).Zeros(44).Bytes;
        Negotiation.Answer(body, new FuseSessionOptions(), false, out InitOut reply, out FuseConnection? connection);
        Assert.Equal((1u << 3, 0u), (reply.Flags2, reply.MaxStackDepth));
        Assert.False(connection!.Enabled.HasFlag(FuseFeatures.Passthrough));
    }

    [Fact]
    public void The_oldest_kernel_has_a_short_INIT_and_no_second_word()
    {
        byte[] body = new Packet().U32(7).U32(31).U32(65536).U32((1u << 0) | (1u << 22)).Bytes;
        Negotiation.Outcome outcome = Negotiation.Answer(body, new FuseSessionOptions(), false, out InitOut reply, out FuseConnection? connection);
        Assert.Equal(Negotiation.Outcome.Agreed, outcome);
        Assert.Equal((31u, (1u << 0) | (1u << 22), 0u), (reply.Minor, reply.Flags, reply.Flags2));
        Assert.Equal(FuseFeatures.AsyncRead | FuseFeatures.MaxPages, connection!.Enabled);
    }

    [Fact]
    public void The_second_word_is_meant_only_with_INIT_EXT()
    {
        byte[] without = new Packet().U32(7).U32(36).U32(0).U32(0).U32(uint.MaxValue).Zeros(44).Bytes;
        Negotiation.Answer(without, new FuseSessionOptions(), false, out _, out FuseConnection? connection);
        Assert.Equal(FuseFeatures.None, connection!.Offered);
        byte[] truncated = new Packet().U32(7).U32(36).U32(0).U32(Extended).Zeros(3).Bytes;
        Negotiation.Answer(truncated, new FuseSessionOptions(), false, out _, out connection);
        Assert.Equal(FuseFeatures.InitExtended, connection!.Offered);
    }

    [Theory]
    [InlineData(8u, 0u)]
    [InlineData(9u, 99u)]
    [InlineData(uint.MaxValue, 0u)]
    public void A_newer_major_is_told_ours(uint major, uint minor)
    {
        byte[] body = new Packet().U32(major).U32(minor).U32(0).U32(0).Bytes;
        Assert.Equal(Negotiation.Outcome.AskAgain, Negotiation.Answer(body, new FuseSessionOptions(), false, out InitOut reply, out _));
        Assert.Equal((7u, 0u, 0u), (reply.Major, reply.Flags, reply.MaxWrite));
    }

    [Theory]
    [InlineData(7u, 30u)]
    [InlineData(7u, 0u)]
    [InlineData(6u, 99u)]
    [InlineData(0u, 0u)]
    public void An_older_protocol_is_refused(uint major, uint minor)
    {
        byte[] body = new Packet().U32(major).U32(minor).U32(0).U32(0).Bytes;
        Assert.Equal(Negotiation.Outcome.TooOld, Negotiation.Answer(body, new FuseSessionOptions(), false, out _, out _));
    }

    [Fact]
    public void A_newer_minor_speaks_the_newest_that_is_known()
    {
        byte[] body = new Packet().U32(7).U32(99).U32(0).U32(0).Bytes;
        Negotiation.Answer(body, new FuseSessionOptions(), false, out InitOut reply, out FuseConnection? connection);
        Assert.Equal((45u, 45, 99), (reply.Minor, connection!.Minor, connection.KernelMinor));
    }

    [Fact]
    public void Any_short_INIT_is_malformed()
    {
        for (int length = 0; length < 16; length++)
            Assert.Equal(Negotiation.Outcome.Malformed, Negotiation.Answer(new byte[length], new FuseSessionOptions(), false, out _, out _));
    }

    [Theory]
    [InlineData(0, 1, 1)]
    [InlineData(1, 1, 1)]
    [InlineData(64, 64, 48)]
    [InlineData(1_000_000, 65535, 49151)]
    public void Background_requests_are_bounded_by_the_field(int asked, int background, int congestion)
    {
        byte[] body = new Packet().U32(7).U32(45).U32(0).U32(0).Bytes;
        Negotiation.Answer(body, new FuseSessionOptions { MaxBackground = asked }, false, out InitOut reply, out _);
        Assert.Equal((background, congestion), (reply.MaxBackground, reply.CongestionThreshold));
    }
}
