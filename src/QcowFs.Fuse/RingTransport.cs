// All rings of a connection. They are made, and their threads wait, before INIT is answered: from the moment that the kernel is told of
// rings it holds every request back until each of its queues has an entry, so by then nothing may be left that can fail.
using QcowFs.Native;

namespace QcowFs.Fuse;

internal sealed class RingTransport : IDisposable
{
    // One job sends all its requests on one processor, so this is its depth. Bounded by memory: entries whose payload was once large.
    private const int MostDepth = 32, LeastDepth = 4, MostEntries = 128;
    private const int StackSize = 1 << 20;

    private readonly RingChannel[] _channels;
    private readonly RingBacklog _backlog;

    private RingTransport(RingChannel[] channels, RingBacklog backlog)
    {
        _channels = channels;
        _backlog = backlog;
    }

    /// <summary>The channels, one for each processor that this process may use, which serve all queues between them.</summary>
    public IReadOnlyList<RingChannel> Channels => _channels;

    /// <summary>Where requests go that may wait.</summary>
    public RingBacklog Backlog => _backlog;

    /// <summary>Makes rings for all queues of the connection of <paramref name="device"/>; null where <paramref name="errno"/> says why there
    /// are none, and nothing is left of them.</summary>
    public static RingTransport? TryCreate(
        FuseDevice device, Dispatcher dispatcher, FuseSessionOptions options, Action<Errno> refused, Action<Channel> ended, out Errno errno)
    {
        int queues = Processors.Possible().Count;
        HashSet<int> online = [.. Processors.Online()];
        errno = queues == 0 ? Errno.ENOENT : Errno.None;
        if (queues == 0) return null; // no sysfs: who has too few queues gets no request at all
        int depth = Math.Clamp(MostEntries / Math.Max(online.Count, 1), LeastDepth, MostDepth);
        int threads = Math.Clamp(Environment.ProcessorCount, 1, queues);
        var backlog = new RingBacklog(queues * depth);
        var channels = new List<RingChannel>(threads);
        for (int thread = 0; thread < threads && errno == Errno.None; thread++)
        {
            // A processor that is not there needs an entry all the same; should it come, it has one.
            int[] own = [.. Enumerable.Range(0, queues).Where(queue => queue % threads == thread)];
            int? processor = own.Count(online.Contains) == 1 ? own.Single(online.Contains) : null;
            ushort[] places = [.. own.SelectMany(queue => Enumerable.Repeat((ushort)queue, online.Contains(queue) ? depth : 1))];
            var entries = new RingEntries(places, options.MaxPayload - options.RingPayloadCut, options.ResidentMemory);
            var channel = new RingChannel(device.Descriptor, entries, processor, backlog, dispatcher, options, refused, ended);
            channels.Add(channel);
            errno = TryStart(channel, thread);
        }
        var transport = new RingTransport([.. channels], backlog);
        if (errno == Errno.None) return transport;
        transport.Abandon();
        return null;
    }

    /// <summary>From now on workers serve everything, or no longer.</summary>
    public void HandOverAll(bool all)
    {
        _backlog.TakesAll = all;
        if (!all) return;
        foreach (RingChannel channel in _channels) channel.AwaitHandler();
    }

    /// <summary>Lets the threads serve; INIT has been answered.</summary>
    public void Begin()
    {
        foreach (RingChannel channel in _channels) channel.Begin();
    }

    /// <summary>Ends threads that have not begun.</summary>
    public void Abandon()
    {
        foreach (RingChannel channel in _channels) channel.Abandon();
        Dispose();
    }

    /// <summary>Frees rings and memory, which no thread uses any more.</summary>
    public void Dispose()
    {
        foreach (RingChannel channel in _channels) channel.Dispose();
        _backlog.Dispose();
    }

    private static Errno TryStart(RingChannel channel, int number)
    {
        try
        {
            channel.Start(number, StackSize);
        }
        catch (OutOfMemoryException)
        {
            return Errno.ENOMEM; // a limit on threads
        }
        return channel.AwaitPrepared();
    }
}
