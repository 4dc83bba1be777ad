// A connection to the kernel while it is served: INIT, the channels, how many there are, and how it ends.
//
// S1 INIT is answered before any channel runs; the kernel sends nothing else before that.
// S2 Threads are added where requests wait for something (ChannelGrowth), and never taken away: asleep they cost next to nothing.
// S3 The session has ended when its last channel has. Descriptors, rings and their memory go then, never while a thread may still use
//    them.
using System.Diagnostics;
using Microsoft.Win32.SafeHandles;
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>Why a session ended.</summary>
public enum FuseSessionEnd
{
    /// <summary>The file system was unmounted and the last open file closed (ENODEV).</summary>
    Unmounted,
    /// <summary>The connection was aborted through fusectl or by umount -f (ECONNABORTED).</summary>
    Aborted,
    /// <summary>The other end of the transport was closed; a real device never says so.</summary>
    Closed,
    /// <summary>The device failed in a way that has been reported.</summary>
    Failed,
}

/// <summary>
/// Serves one file system over one connection. Threads are the session's own; <see cref="Start"/> returns when the mount answers.
/// A session is used once: started, waited for, disposed.
/// </summary>
public sealed unsafe class FuseSession : IDisposable
{
    private const int InitialThreads = 2;
    private const int StackSize = 1 << 20;

    private readonly FuseSessionOptions _options;
    private readonly IFuseFileSystem _fileSystem;
    private readonly Dispatcher _dispatcher;
    private readonly ManualResetEventSlim _ended = new(false);
    private readonly int _mostThreads;
    private readonly ChannelGrowth? _growth;
    private readonly Lock _growing = new();

    // Set before the channels start.
    private RingTransport? _rings;
    private ChannelGrowth? _workerGrowth;

    // Guarded by _growing; read without it as a snapshot. Devices that were handed in are used before any is cloned.
    private volatile Channel[] _channels = [];
    private volatile DeviceChannel[] _deviceChannels = [];
    private volatile RingWorker[] _workers = [];
    private readonly Queue<FuseDevice> _spare = new();
    private readonly List<FuseDevice> _devices = [];
    private FuseConnection? _connection;
    private bool _started;
    private bool _disposed;

    // Guarded by _growing: channels that have not ended, and those of them on rings.
    private int _live;
    private int _liveRings;

    // Guarded by _growing: a device has told the end of the connection.
    private bool _isEnding;

    // Whether the kernel has refused rings after all. Changed by Interlocked.
    private bool _ringsRefused;

    // Changed by Interlocked.
    private int _end = (int)FuseSessionEnd.Unmounted;

    /// <summary>A session on a new connection. The handle becomes the session's.</summary>
    public FuseSession(IFuseFileSystem fileSystem, SafeFileHandle device, FuseSessionOptions options)
        : this(fileSystem, [device], null, options)
    {
    }

    private FuseSession(
        IFuseFileSystem fileSystem, IReadOnlyList<SafeFileHandle> devices, FuseConnection? connection, FuseSessionOptions options)
    {
        ArgumentNullException.ThrowIfNull(fileSystem);
        ArgumentNullException.ThrowIfNull(options);
        ArgumentOutOfRangeException.ThrowIfZero(devices.Count);
        int page = Environment.SystemPageSize;
        if (options.MaxPayload < page || options.MaxPayload % page != 0 || options.MaxPayload / page > Negotiation.MostPages)
            throw new ArgumentOutOfRangeException(nameof(options), options.MaxPayload, "The payload is not 1 to 256 whole pages.");
        ArgumentOutOfRangeException.ThrowIfNegative(options.Threads);
        ArgumentOutOfRangeException.ThrowIfLessThan(options.MaxThreads, 1);
        _options = options;
        _connection = connection;
        _fileSystem = fileSystem;
        _dispatcher = new Dispatcher(fileSystem, options);
        _mostThreads = options.Threads > 0 ? options.Threads : options.MaxThreads;
        if (options.Threads == 0) _growth = new ChannelGrowth(() => _deviceChannels, TryAddDeviceChannel);
        foreach (SafeFileHandle device in devices)
        {
            var own = new FuseDevice(device);
            _devices.Add(own);
            _spare.Enqueue(own);
        }
    }

    /// <summary>A session on a connection that was begun elsewhere: descriptors of it, which become the session's, and what was agreed
    /// on. No INIT is awaited.</summary>
    public static FuseSession Resume(
        IFuseFileSystem fileSystem, IReadOnlyList<SafeFileHandle> devices, FuseConnection connection, FuseSessionOptions options)
    {
        ArgumentNullException.ThrowIfNull(devices);
        ArgumentNullException.ThrowIfNull(connection);
        ArgumentNullException.ThrowIfNull(options);
        if (connection.Enabled.HasFlag(FuseFeatures.OverIoUring))
            throw new ArgumentException("A connection over io_uring ends with the rings that it began with.", nameof(connection));
        return new FuseSession(fileSystem, devices, connection, options with { MaxPayload = connection.MaxWrite });
    }

    /// <summary>What was agreed on with the kernel; meant after <see cref="Start"/>.</summary>
    public FuseConnection Connection => _connection ?? throw new InvalidOperationException("The session has not started.");

    /// <summary>Whether the session has started and is over.</summary>
    public bool HasEnded => _ended.IsSet;

    /// <summary>Channel threads by now.</summary>
    public int ThreadCount
    {
        get { lock (_growing) return _channels.Length; }
    }

    /// <summary>Descriptors of the connection by now; fewer than threads where they are shared.</summary>
    public int DeviceCount
    {
        get { lock (_growing) return _devices.Count; }
    }

    /// <summary>How requests come; meant after <see cref="Start"/>.</summary>
    public FuseTransport Transport => _rings is not null && !Volatile.Read(ref _ringsRefused) ? FuseTransport.IoUring : FuseTransport.Device;

    /// <summary>Tells that handlers are going to wait for somebody, for as long as that may take, or no longer. When it returns, a request that
    /// waits holds up no other, whatever the transport: over io_uring every request goes to a worker. Callable from any thread that serves
    /// no request.</summary>
    public void ExpectWaits(bool expected) => _rings?.HandOverAll(expected);

    /// <summary>Faults that could not be told because <see cref="FuseSessionOptions.Report"/> threw.</summary>
    public long UnreportedFaults => _dispatcher.UnreportedFaults;

    /// <summary>Agrees with the kernel and starts the threads. When it returns, the mount answers.</summary>
    /// <exception cref="FuseProtocolException">The kernel is too old, or ended the connection.</exception>
    public FuseConnection Start()
    {
        if (_started) throw new InvalidOperationException("A session is started once.");
        _started = true;
        try
        {
            _connection ??= new Handshake(_devices[0], _options, TryPrepareRings).Perform();
            _fileSystem.Connected(_connection.Enabled.HasFlag(FuseFeatures.Passthrough) ? new BackingFiles(_devices[0]) : null);
            AddFirstChannels();
        }
        catch
        {
            _rings?.Abandon();
            _rings = null;
            throw;
        }
        _growth?.Start();
        _workerGrowth?.Start();
        return _connection;
    }

    /// <summary>Waits until the connection is over and no request is in hand any more.</summary>
    public FuseSessionEnd WaitForEnd()
    {
        _ended.Wait();
        return (FuseSessionEnd)Volatile.Read(ref _end);
    }

    /// <summary>Waits at most <paramref name="timeout"/>; false where the connection is not over by then.</summary>
    public bool WaitForEnd(TimeSpan timeout, out FuseSessionEnd end)
    {
        bool ended = _ended.Wait(timeout);
        end = (FuseSessionEnd)Volatile.Read(ref _end);
        return ended;
    }

    /// <summary>Tells the kernel to drop cached attributes and, from <paramref name="offset"/> on, cached pages of a node
    /// (<paramref name="length"/> 0: to the end; a negative offset: attributes only). ENOENT says that the kernel does not hold the
    /// node, which is as good. It waits for reads of those pages, so it is never called by a thread that a read may depend on.</summary>
    public Errno InvalidateInode(ulong node, long offset, long length)
    {
        var body = new InvalidateInodeOut { Node = node, Offset = offset, Length = length };
        Span<byte> message = stackalloc byte[OutHeader.Size + InvalidateInodeOut.Size];
        Message.Write(message[OutHeader.Size..], in body);
        return Notify(NotifyCode.InvalidateInode, message);
    }

    /// <summary>Tells the kernel to drop a name, so that it is looked up again. ENOENT says that it was not held. It takes the lock of
    /// the parent directory, so it is never called while a request on that directory is being served by the same thread.</summary>
    public Errno InvalidateEntry(ulong parent, ReadOnlySpan<byte> name)
    {
        if (name.IsEmpty || name.Length > DirectoryEntry.MaxNameLength)
            throw new ArgumentException("A name is 1 to 1,024 bytes.", nameof(name));
        var body = new InvalidateEntryOut { Parent = parent, NameLength = (uint)name.Length };
        Span<byte> message = stackalloc byte[OutHeader.Size + InvalidateEntryOut.Size + name.Length + 1];
        Message.Write(message[OutHeader.Size..], in body);
        name.CopyTo(message[(OutHeader.Size + InvalidateEntryOut.Size)..]);
        message[^1] = 0;
        return Notify(NotifyCode.InvalidateEntry, message);
    }

    /// <summary>Copies the requests in hand, without stopping any, and gives their number; at most as many as there is room for.
    /// Callable from any thread at any time.</summary>
    public int CopyRequestsInFlight(Span<FuseRequestInFlight> destination)
    {
        int count = 0;
        foreach (Channel channel in _channels)
        {
            if (count == destination.Length) break;
            if (channel.Slot.TryRead(_options.Time, out destination[count])) count++;
        }
        return count;
    }

    /// <summary>Closes the descriptors: at once where no thread runs, else when the last channel has ended (S3). A mount that nobody
    /// serves any more answers ENOTCONN, so unmount first.</summary>
    public void Dispose()
    {
        lock (_growing)
        {
            if (_disposed) return;
            _disposed = true;
            if (_live > 0) return;
            CloseDevices();
            _growth?.Dispose();
            _workerGrowth?.Dispose();
        }
    }

    /// <summary>A channel's thread is about to return.</summary>
    private void ChannelEnded(Channel channel)
    {
        FuseSessionEnd end = channel.End switch
        {
            Errno.None => FuseSessionEnd.Closed,
            Errno.ECONNABORTED => FuseSessionEnd.Aborted,
            _ => FuseDevice.IsEnd(channel.End) ? FuseSessionEnd.Unmounted : FuseSessionEnd.Failed,
        };
        // The reason that says most stands, whichever channel met it.
        int current;
        while ((current = Volatile.Read(ref _end)) < (int)end && Interlocked.CompareExchange(ref _end, (int)end, current) != current)
        {
        }
        lock (_growing)
        {
            _live--;
            _isEnding |= channel is DeviceChannel;
            if (channel is RingChannel && --_liveRings == 0) _rings!.Backlog.Close();
            if (_live > 0) return;
            if (_disposed) CloseDevices();
        }
        _growth?.Dispose();
        _workerGrowth?.Dispose();
        _ended.Set();
    }

    private int FirstThreads => _options.Threads > 0 ? _options.Threads : Math.Min(InitialThreads, _mostThreads);

    private void AddFirstChannels()
    {
        lock (_growing)
        {
            if (_rings is null)
            {
                while (_deviceChannels.Length < FirstThreads) AddDeviceChannel();
                return;
            }
            // FORGET and INTERRUPT come over the device all the same, and everything else if the kernel refuses the entries.
            AddDeviceChannel();
            while (_workers.Length < FirstThreads) AddWorker();
            _channels = [.. _channels, .. _rings.Channels];
            _live += _rings.Channels.Count;
            _liveRings = _rings.Channels.Count;
            _rings.Begin();
        }
    }

    private bool TryAddDeviceChannel() => TryAdd(() => !_isEnding && _deviceChannels.Length < _mostThreads, AddDeviceChannel);

    private bool TryAddWorker() => TryAdd(() => _liveRings > 0 && _workers.Length < _mostThreads, AddWorker);

    /// <summary>Adds a thread, unless the session has begun to end or has enough; false where there will be no more.</summary>
    private bool TryAdd(Func<bool> mayAdd, Action add)
    {
        lock (_growing)
        {
            if (!mayAdd()) return false;
            try
            {
                add();
            }
            catch (OutOfMemoryException exception)
            {
                // No memory for buffers, or a limit on threads: those that run go on serving.
                _dispatcher.Report(default, $"The session stays at {_channels.Length} threads: {exception.Message}", exception);
                return false;
            }
            return mayAdd();
        }
    }

    /// <summary>Called with _growing held, so a channel that ends at once is counted before it is counted out.</summary>
    private void AddDeviceChannel()
    {
        var buffers = new ChannelBuffers(_options.MaxPayload, _options.ResidentMemory);
        var channel = new DeviceChannel(NextDevice(), buffers, _dispatcher, _options, _growth, ChannelEnded);
        try
        {
            StartChannel(channel, $"fuse-{_deviceChannels.Length}");
        }
        catch
        {
            buffers.Dispose();
            throw;
        }
        _deviceChannels = [.. _deviceChannels, channel];
        _growth?.Added();
    }

    /// <summary>Called with _growing held.</summary>
    private void AddWorker()
    {
        var worker = new RingWorker(_rings!.Backlog, _dispatcher, _options, _workerGrowth, ChannelEnded);
        StartChannel(worker, $"fuse-worker-{_workers.Length}");
        _workers = [.. _workers, worker];
        _workerGrowth?.Added();
    }

    /// <summary>Called with _growing held.</summary>
    private void StartChannel(Channel channel, string name)
    {
        new Thread(_options.ResidentMemory ? channel.RunResident : channel.Run, StackSize) { IsBackground = true, Name = name }.Start();
        _channels = [.. _channels, channel];
        _live++;
    }

    /// <summary>Makes rings where they are wanted, told whether the kernel offers them; false where there are none.</summary>
    private bool TryPrepareRings(bool offered)
    {
        if (!WantsRings) return false;
        if (!offered)
        {
            if (_options.Transport == FuseTransport.IoUring)
                RefuseRings("the kernel does not offer it; it is there since Linux 6.14, and on where /sys/module/fuse/parameters/enable_uring is Y");
            return false;
        }
        _rings = RingTransport.TryCreate(_devices[0], _dispatcher, _options, RingsRefused, ChannelEnded, out Errno errno);
        if (_rings is null) RefuseRings(ErrnoText.Describe(errno));
        if (_rings is not null && _options.Threads == 0) _workerGrowth = new ChannelGrowth(() => _workers, TryAddWorker);
        return _rings is not null;
    }

    /// <summary>Something that stands in for the device has no rings.</summary>
    private bool WantsRings => _devices[0].IsCharacterDevice && _options.Transport switch
    {
        FuseTransport.IoUring => true,
        FuseTransport.Automatic => !_options.ResidentMemory,
        _ => false,
    };

    /// <summary>The kernel does not take an entry: it goes on over the device. Called on a ring's thread.</summary>
    private void RingsRefused(Errno errno)
    {
        if (Interlocked.Exchange(ref _ringsRefused, true)) return;
        RefuseRings(ErrnoText.Describe(errno));
        while (_deviceChannels.Length < FirstThreads && TryAddDeviceChannel())
        {
            // As many as a session on the device begins with.
        }
    }

    private void RefuseRings(string reason) => _options.TransportRefused?.Invoke(reason);

    /// <summary>Called with _growing held.</summary>
    private FuseDevice NextDevice()
    {
        if (_spare.TryDequeue(out FuseDevice? spare)) return spare;
        if (!_options.CloneDevice || _devices[0].TryClone() is not { } clone) return _devices[_deviceChannels.Length % _devices.Count];
        _devices.Add(clone);
        return clone;
    }

    /// <summary>Called with _growing held.</summary>
    private void CloseDevices()
    {
        _rings?.Dispose();
        foreach (FuseDevice device in _devices) device.Dispose();
    }

    private Errno Notify(NotifyCode code, Span<byte> message)
    {
        var header = new OutHeader { Length = (uint)message.Length, Error = (int)code };
        Message.Write(message, in header);
        Debug.Assert(_started, "the kernel takes notifications only after INIT");
        fixed (byte* start = message) return _devices[0].Send(start, message.Length);
    }
}
