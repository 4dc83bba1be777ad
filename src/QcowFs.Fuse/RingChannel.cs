// A channel on an io_uring: the requests that were sent on one or several processors, many at a time. One system call gives all
// replies that are ready and takes all requests that have come, or waits for the first.
//
// R1 The ring is used by its thread only. The kernel copies requests into entries, and replies out of them, in that thread's context, so
//    what others finish comes back to it: they push it to a list, and wake the thread where it sleeps.
// R2 The thread serves READ, WRITE without O_DSYNC, and GETATTR itself, and only while they are quick. All else, these where they were
//    held up lately, and everything while waits are expected, goes to workers: a handler that waits would hold up every request of its
//    processors.
// R3 An entry is committed exactly once for each request that came in it; the same command waits for the next one.
// R4 ENOTCONN and the like are the end of the connection. The memory of the entries outlives the thread, since workers may still use it.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal sealed unsafe class RingChannel : Channel, IDisposable
{
    private const ulong WakeTag = ulong.MaxValue;

    // Of a request that was held up, how many quick ones outweigh it; from where on requests go to workers; and how far it counts up.
    // So they do where more than one in nine is held up, and after the last of those for at most 64 more.
    private const int HeldUpWeight = 8, WorkersFrom = 8, MostReluctance = 64;

    /// <summary>A transfer that takes long to copy: with others beside it, several threads copy at once.</summary>
    private const int LargeTransfer = 128 << 10;

    private readonly RingEntries _entries;
    private readonly RingBacklog _backlog;
    private readonly int _file;
    private readonly ManualResetEventSlim _prepared = new(false);
    private readonly ManualResetEventSlim _begun = new(false);
    private readonly Action<Errno> _refused;
    private readonly bool _resident;
    private readonly int? _processor;
    private Thread? _thread;
    private IoUring? _ring;
    private Errno _failure;
    private volatile bool _abandoned;
    private int _live;
    private int _reluctance;
    private bool _registered;
    private RingPlacement? _placement;

    // Requests that workers have in hand. Used by the ring's thread.
    private int _handedOver;

    // What workers gave back, the last one first. Changed by Interlocked.
    private RingEntry? _givenBack;

    // 1 while the thread runs a handler, or is about to and looks once more whether it may.
    private int _serving;

    // 1 while the thread sleeps, or is about to and looks once more.
    private int _asleep;

    /// <param name="file">The connection's descriptor.</param>
    /// <param name="entries">Become the channel's.</param>
    /// <param name="processor">The processor that all its requests are sent on; null: several.</param>
    /// <param name="backlog">Where requests go that may wait.</param>
    /// <param name="dispatcher">Requests to replies.</param>
    /// <param name="options">The session's.</param>
    /// <param name="refused">Told where the kernel does not take the entries and goes on to use the device.</param>
    /// <param name="ended">Called when the thread returns, unless it was abandoned.</param>
    public RingChannel(
        int file, RingEntries entries, int? processor, RingBacklog backlog, Dispatcher dispatcher, FuseSessionOptions options, Action<Errno> refused, Action<Channel> ended)
        : base(dispatcher, options, null, ended)
    {
        _file = file;
        _entries = entries;
        _backlog = backlog;
        _refused = refused;
        _resident = options.ResidentMemory;
        _processor = processor;
    }

    /// <summary>Starts the thread. It makes its ring, and waits for <see cref="Begin"/> or <see cref="Abandon"/>.</summary>
    public void Start(int number, int stackSize)
    {
        _thread = new Thread(PrepareAndRun, stackSize) { IsBackground = true, Name = $"fuse-ring-{number}" };
        _thread.Start();
    }

    /// <summary>Waits until the thread has made its ring; or why it could not.</summary>
    public Errno AwaitPrepared()
    {
        _prepared.Wait();
        return _failure;
    }

    /// <summary>Lets the thread serve: INIT has been answered.</summary>
    public void Begin() => _begun.Set();

    /// <summary>Lets the thread return without having served, and waits for that; there may be none.</summary>
    public void Abandon()
    {
        _abandoned = true;
        _begun.Set();
        if (_thread is { IsAlive: true } thread) thread.Join();
    }

    /// <summary>Waits until the thread runs no handler that began before the backlog was told to take all.</summary>
    public void AwaitHandler()
    {
        Interlocked.MemoryBarrier();
        SpinWait.SpinUntil(() => Volatile.Read(ref _serving) == 0);
    }

    /// <summary>A worker has finished what it was handed. Callable from any thread, also when the connection is over.</summary>
    public void GiveBack(RingEntry entry)
    {
        RingEntry? first = Volatile.Read(ref _givenBack);
        while (true)
        {
            entry.Next = first;
            RingEntry? now = Interlocked.CompareExchange(ref _givenBack, entry, first);
            if (ReferenceEquals(now, first)) break;
            first = now;
        }
        if (Interlocked.Exchange(ref _asleep, 0) == 0 || _ring!.Wake(WakeTag) is not (var errno and not Errno.None)) return;
        Dispatcher.Report(in entry.Header, $"A ring's thread could not be woken: {ErrnoText.Describe(errno)}.", null);
    }

    /// <summary>Frees ring and memory: no thread uses them any more.</summary>
    public void Dispose()
    {
        _ring?.Dispose();
        _entries.Dispose();
        _prepared.Dispose();
        _begun.Dispose();
    }

    protected override bool ServeNext()
    {
        if (!_registered) Register();
        CommitGivenBack();
        if (Enter() is var errno && errno != Errno.None) return Ended(errno);
        int arrived = 0;
        while (_ring!.TryTake(out IoUringCompletion completion))
        {
            if (completion.Tag == WakeTag) continue;
            arrived++;
            if (!Take(_entries.All[completion.Tag], completion.Result)) return false;
        }
        _placement?.Note(arrived);
        return true;
    }

    protected override void Release()
    {
        // Workers may have requests of this ring in hand: the session frees it (R4).
    }

    private void PrepareAndRun()
    {
        _ring = IoUring.TryCreate(_entries.All.Length, _file, out _failure);
        _prepared.Set();
        _begun.Wait();
        if (_abandoned) return;
        if (_processor is { } processor) _placement = RingPlacement.TryCreate(processor);
        if (_resident) RunResident();
        else Run();
    }

    private void Register()
    {
        _registered = true;
        foreach (RingEntry entry in _entries.All) Prepare(RingCommand.Register, entry);
        _live = _entries.All.Length;
    }

    private void Prepare(RingCommand command, RingEntry entry)
    {
        bool registers = command == RingCommand.Register;
        Span<byte> data = _ring!.Prepare((uint)command, entry.Tag, registers ? entry.Vectors : null, registers ? 2 : 0);
        var request = new RingCommandRequest { CommitId = registers ? 0 : entry.CommitId, Queue = entry.Queue };
        Message.Write(data, in request);
    }

    /// <summary>Submits, and sleeps where nothing is to be done.</summary>
    private Errno Enter()
    {
        IoUring ring = _ring!;
        if (ring.HasCompletion) return ring.Enter(wait: false);
        Interlocked.Exchange(ref _asleep, 1); // a barrier: who gives back from here on sees it, or is seen
        if (Volatile.Read(ref _givenBack) is not null)
        {
            Volatile.Write(ref _asleep, 0);
            return Errno.None;
        }
        Errno errno = ring.Enter(wait: true);
        Volatile.Write(ref _asleep, 0);
        return errno;
    }

    private void CommitGivenBack()
    {
        if (Volatile.Read(ref _givenBack) is null) return;
        RingEntry? entry = Interlocked.Exchange(ref _givenBack, null);
        for (; entry is not null; entry = entry.Next)
        {
            _handedOver--;
            if (entry.MayBeQuick) Learn(entry.WasHeldUp);
            Prepare(RingCommand.CommitAndFetch, entry);
        }
    }

    /// <summary>What came of an entry: a request, or the end. False where the channel ends.</summary>
    private bool Take(RingEntry entry, int result)
    {
        if (result < 0) return Lose(entry, (Errno)(-result));
        entry.IsRegistered = true;
        entry.Begin();
        if (IsForWorkers(entry) || !TryServe(entry))
        {
            _handedOver++;
            _backlog.Add(this, entry);
        }
        return true;
    }

    /// <summary>Serves a request on this thread, unless waits are expected.</summary>
    private bool TryServe(RingEntry entry)
    {
        Interlocked.Exchange(ref _serving, 1); // a barrier: who expects waits from here on waits for us, or is seen
        bool serves = !_backlog.TakesAll;
        if (serves)
        {
            int length = Handle(in entry.Header, entry.Request, entry.Reply, timed: true, out bool heldUp);
            entry.Finish(length);
            Slot.End();
            Learn(heldUp);
            Prepare(RingCommand.CommitAndFetch, entry); // R3
        }
        Volatile.Write(ref _serving, 0);
        return serves;
    }

    private bool IsForWorkers(RingEntry entry) // R2
    {
        if (!entry.MayBeQuick || _reluctance >= WorkersFrom) return true;
        return entry.TransferSize >= LargeTransfer && (_handedOver > 0 || _ring!.HasCompletion);
    }

    private void Learn(bool heldUp) => _reluctance = heldUp ? Math.Min(_reluctance + HeldUpWeight, MostReluctance) : Math.Max(_reluctance - 1, 0);

    /// <summary>An entry failed.</summary>
    private bool Lose(RingEntry entry, Errno errno)
    {
        if (FuseDevice.IsEnd(errno) || errno == Errno.ECANCELED) return Ended(errno == Errno.ECANCELED ? Errno.ENODEV : errno);
        if (entry.IsRegistered)
        {
            // The kernel has ended the request with an error of its own. It keeps its side of the entry for good; a new one is on the same memory.
            Dispatcher.Undo(in entry.Header, entry.FinishedReply);
            Dispatcher.Report(in entry.Header, $"The kernel did not take the reply: {ErrnoText.Describe(errno)}.", null);
            entry.IsRegistered = false;
            Prepare(RingCommand.Register, entry);
            return true;
        }
        _refused(errno);
        return --_live > 0 || Ended(Errno.ENODEV);
    }
}
