// A session over a socket that stands in for the device.
using Microsoft.Win32.SafeHandles;
using QcowFs.Fuse.Tests.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse.Tests.Sessions;

public sealed class SessionTests : IDisposable
{
    private static readonly TimeSpan HangLimit = TimeSpan.FromSeconds(30);

    private readonly FakeKernel _kernel = new();
    private readonly RecordingFileSystem _fileSystem = new();
    private readonly List<FuseFault> _faults = [];
    private FuseSession? _session;

    public void Dispose()
    {
        _kernel.HangUp();
        if (_session is { ThreadCount: > 0 }) Assert.True(_session.WaitForEnd(HangLimit, out _));
        _session?.Dispose();
        _kernel.Dispose();
    }

    [Fact]
    public void INIT_is_answered_with_64_bytes_and_the_session_serves()
    {
        FuseSession session = Start();
        Assert.Equal(45, session.Connection.Minor);
        Assert.Equal(2, session.ThreadCount);
        (int error, byte[] body) = _kernel.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0x20, 2));
        Assert.Equal((0, "2021"), (error, Convert.ToHexString(body)));
        Assert.Equal(["read 2 7 32 2"], _fileSystem.Calls);
    }

    [Fact]
    public void A_kernel_of_a_newer_major_asks_again()
    {
        _session = new FuseSession(_fileSystem, _kernel.Server, new FuseSessionOptions());
        _kernel.Send(FakeKernel.Init(major: 8));
        _kernel.Send(FakeKernel.Init());
        _session.Start();
        byte[] first = _kernel.Receive();
        Assert.Equal((16 + 64, 7), (first.Length, BitConverter.ToInt32(first, 16)));
        Assert.Equal(0, BitConverter.ToInt32(first, 16 + 12));
        byte[] second = _kernel.Receive();
        Assert.Equal((16 + 64, 7), (second.Length, BitConverter.ToInt32(second, 16)));
        Assert.Equal(1 << 20, BitConverter.ToInt32(second, 16 + 20));
    }

    [Fact]
    public void A_kernel_that_is_too_old_is_refused_in_words()
    {
        _session = new FuseSession(_fileSystem, _kernel.Server, new FuseSessionOptions());
        _kernel.Send(FakeKernel.Init(minor: 19));
        FuseProtocolException exception = Assert.Throws<FuseProtocolException>(() => _session.Start());
        Assert.Equal("the kernel speaks FUSE 7.19; 7.31 (Linux 5.4) or newer is needed", exception.Message);
        Assert.Equal(Packet.Reply(-71, unique: 1), _kernel.Receive());
    }

    [Fact]
    public void A_connection_that_does_not_begin_with_INIT_is_refused()
    {
        _session = new FuseSession(_fileSystem, _kernel.Server, new FuseSessionOptions());
        _kernel.Send(Packet.Request(FuseOpcode.GetAttr, 1, new Packet().Zeros(16)));
        Assert.Throws<FuseProtocolException>(() => _session.Start());
        Assert.Equal(Packet.Reply(-5), _kernel.Receive());
    }

    [Fact]
    public void A_connection_that_ends_before_INIT_says_so()
    {
        _session = new FuseSession(_fileSystem, _kernel.Server, new FuseSessionOptions());
        _kernel.HangUp();
        Assert.Throws<FuseProtocolException>(() => _session.Start());
    }

    [Fact]
    public void The_end_of_the_connection_ends_every_channel_and_closes_nothing_early()
    {
        FuseSession session = Start(new FuseSessionOptions { Threads = 5 });
        Assert.Equal(5, session.ThreadCount);
        Assert.False(session.HasEnded);
        _kernel.HangUp();
        Assert.True(session.WaitForEnd(HangLimit, out FuseSessionEnd end));
        Assert.Equal(FuseSessionEnd.Closed, end);
        Assert.True(session.HasEnded);
        Assert.Empty(_faults);
    }

    [Fact]
    public void Disposing_before_the_end_lets_the_channels_finish()
    {
        FuseSession session = Start();
        session.Dispose();
        Assert.Equal(0, _kernel.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2)).Error);
        _kernel.HangUp();
        Assert.True(session.WaitForEnd(HangLimit, out _));
        Assert.True(_kernel.Server.IsClosed);
    }

    [Fact]
    public void An_exception_does_not_end_the_session()
    {
        Start();
        _fileSystem.Throws = new InvalidDataException("broken");
        for (int i = 0; i < 10; i++) Assert.Equal(-5, _kernel.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2)).Error);
        _fileSystem.Throws = null;
        Assert.Equal(0, _kernel.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2)).Error);
        Assert.Equal(10, Faults);
    }

    [Fact]
    public void Rubbish_does_not_end_the_session()
    {
        Start();
        _kernel.Send([1]);
        _kernel.Send(new byte[39]);
        _kernel.Send(Packet.Request(FuseOpcode.Interrupt, 0, new Packet().U64(2)));
        Assert.Equal(0, _kernel.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2)).Error);
        // Each was taken by some channel, which need not be the one that answered.
        Assert.True(SpinWait.SpinUntil(() => Faults == 2, HangLimit), $"{Faults} faults");
    }

    [Fact]
    public void Requests_that_block_get_more_threads_up_to_the_most()
    {
        const int most = 6;
        FuseSession session = Start(new FuseSessionOptions { MaxThreads = most });
        using var entered = new CountdownEvent(most);
        using var go = new ManualResetEventSlim();
        _fileSystem.BeforeTransfer = () =>
        {
            if (entered.CurrentCount > 0) entered.Signal();
            Assert.True(go.Wait(HangLimit));
        };
        for (ulong i = 0; i < most + 2; i++) _kernel.Send(Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2), unique: 100 + (i * 2)));
        Assert.True(entered.Wait(HangLimit), "the session did not grow");
        Assert.Equal(most, session.ThreadCount);

        // Meanwhile the table says what is in hand.
        var inFlight = new FuseRequestInFlight[64];
        int count = session.CopyRequestsInFlight(inFlight);
        Assert.Equal(most, count);
        Assert.All(inFlight[..count], request => Assert.Equal((FuseOpcode.Read, 2ul), (request.Opcode, request.Node)));
        Assert.Equal(count, inFlight[..count].Select(request => request.Unique).Distinct().Count());
        Assert.Equal(2, session.CopyRequestsInFlight(new FuseRequestInFlight[2]));

        _fileSystem.BeforeTransfer = null;
        go.Set();
        for (int i = 0; i < most + 2; i++) Assert.Equal(16 + 2, _kernel.Receive().Length);
        Assert.Equal(most, session.ThreadCount);
        Assert.True(SpinWait.SpinUntil(() => session.CopyRequestsInFlight(inFlight) == 0, HangLimit), "an answered request is still in the table");
        Assert.Equal(0, _kernel.Ask(FuseOpcode.Flush, 2, new Packet().Zeros(24)).Error);
    }

    [Fact]
    public void Requests_one_after_the_other_need_no_more_threads()
    {
        FuseSession session = Start(new FuseSessionOptions { MaxThreads = 16 });
        for (int i = 0; i < 2000; i++) _kernel.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2));
        Assert.Equal(2, session.ThreadCount);
    }

    [Fact]
    public void Requests_that_each_wait_a_little_get_more_threads()
    {
        const int outstanding = 8;
        FuseSession session = Start(new FuseSessionOptions { MaxThreads = 4 });
        using var never = new ManualResetEventSlim();
        _fileSystem.BeforeTransfer = () => never.Wait(TimeSpan.FromMilliseconds(1));
        byte[] request = Packet.Request(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2));
        for (int i = 0; i < outstanding; i++) _kernel.Send(request);
        // Ten thousand requests of a millisecond each: far more than growing needs, and an end if it does not come.
        for (int i = 0; i < 10_000 && session.ThreadCount < 4; i++)
        {
            _kernel.Receive();
            _kernel.Send(request);
        }
        Assert.Equal(4, session.ThreadCount);
    }

    [Fact]
    public void A_fixed_number_of_threads_stays()
    {
        FuseSession session = Start(new FuseSessionOptions { Threads = 1 });
        for (int i = 0; i < 200; i++) _kernel.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 2));
        Assert.Equal((1, 1), (session.ThreadCount, session.DeviceCount));
    }

    [Fact]
    public void Notifications_are_laid_out_as_the_kernel_reads_them()
    {
        FuseSession session = Start();
        Assert.Equal(Errno.None, session.InvalidateInode(5, 4096, 8192));
        Assert.Equal(new Packet().U32(40).U32(2).U64(0).U64(5).U64(4096).U64(8192).Bytes, _kernel.Receive());
        Assert.Equal(Errno.None, session.InvalidateEntry(1, "disk"u8));
        Assert.Equal(new Packet().U32(16 + 16 + 5).U32(3).U64(0).U64(1).U32(4).U32(0).Name("disk").Bytes, _kernel.Receive());
        Assert.Throws<ArgumentException>(() => session.InvalidateEntry(1, default));
        Assert.Throws<ArgumentException>(() => session.InvalidateEntry(1, new byte[1025]));
    }

    [Fact]
    public void A_connection_that_was_begun_elsewhere_is_carried_on_without_INIT_on_every_descriptor()
    {
        using var second = new FakeKernel();
        var connection = new FuseConnection
        {
            Minor = 40,
            KernelMinor = 40,
            Offered = FuseFeatures.None,
            Enabled = FuseFeatures.None,
            MaxWrite = 65536,
            MaxPages = 16,
            MaxReadahead = 0,
            MaxBackground = 64,
        };
        SafeFileHandle[] devices = [_kernel.Server, second.Server];
        _session = FuseSession.Resume(_fileSystem, devices, connection, new FuseSessionOptions { Threads = 2 });
        _session.Start();
        Assert.Equal((2, 2), (_session.ThreadCount, _session.DeviceCount));
        Assert.Equal(0, _kernel.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 65536)).Error);
        Assert.Equal(0, second.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 65536)).Error);
        Assert.Equal(-5, second.Ask(FuseOpcode.Read, 2, FileRequestTests.ReadBody(0, 65537)).Error);
        second.HangUp();
        Assert.Throws<ArgumentException>(() => FuseSession.Resume(
            _fileSystem, devices, connection with { Enabled = FuseFeatures.OverIoUring }, new FuseSessionOptions()));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(4095)]
    [InlineData(4096 * 257)]
    public void A_payload_that_is_not_whole_pages_is_refused(int payload)
        => Assert.Throws<ArgumentOutOfRangeException>(() => new FuseSession(_fileSystem, _kernel.Server, new FuseSessionOptions { MaxPayload = payload }));

    private FuseSession Start(FuseSessionOptions? options = null)
    {
        _kernel.Send(FakeKernel.Init());
        options = (options ?? new FuseSessionOptions()) with { MaxPayload = 65536, Report = Note };
        _session = new FuseSession(_fileSystem, _kernel.Server, options);
        _session.Start();
        Assert.Equal(16 + 64, _kernel.Receive().Length);
        return _session;
    }

    private int Faults
    {
        get { lock (_faults) return _faults.Count; }
    }

    private void Note(FuseFault fault)
    {
        lock (_faults) _faults.Add(fault);
    }
}
