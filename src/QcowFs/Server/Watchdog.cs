// Names requests that hang, in the log: a disk that does not answer, or a wait of the machine for itself, is else seen from outside only
// as programs that hang. The channels note when a request begins all the same, so serving pays nothing for this.
using System.Globalization;
using QcowFs.Fuse;

namespace QcowFs.Server;

/// <summary>Copies the requests in hand, as <see cref="FuseSession.CopyRequestsInFlight"/> does.</summary>
internal delegate int CopyRequests(Span<FuseRequestInFlight> destination);

/// <summary>Looks at the requests in hand now and then. Thread-safe.</summary>
internal sealed class Watchdog : IDisposable
{
    /// <summary>A request in hand for so long is stuck.</summary>
    public static readonly TimeSpan Limit = TimeSpan.FromSeconds(30);

    private const int MostRequests = 256; // as many as threads
    private static readonly TimeSpan Interval = TimeSpan.FromSeconds(5);

    private readonly CopyRequests _copy;
    private readonly Action<string> _log;
    private readonly ITimer _timer;
    private readonly Lock _gate = new(); // guards _named
    private readonly Dictionary<ulong, string> _named = [];

    /// <param name="copy">The requests in hand.</param>
    /// <param name="log">Told one line for each request that is stuck, and one when it is answered.</param>
    /// <param name="time">The clock.</param>
    public Watchdog(CopyRequests copy, Action<string> log, TimeProvider time)
    {
        _copy = copy;
        _log = log;
        _timer = time.CreateTimer(_ => Look(), null, Interval, Interval);
    }

    public void Dispose() => _timer.Dispose();

    private void Look()
    {
        lock (_gate)
        {
            FuseRequestInFlight[] requests = new FuseRequestInFlight[MostRequests];
            int count = _copy(requests);
            HashSet<ulong> inHand = [];
            foreach (FuseRequestInFlight request in requests.AsSpan(0, count))
            {
                inHand.Add(request.Unique);
                if (request.Age < Limit || _named.ContainsKey(request.Unique)) continue;
                string name = string.Create(CultureInfo.InvariantCulture, $"{request.Opcode} of node {request.Node} (request {request.Unique})");
                _named.Add(request.Unique, name);
                _log(string.Create(CultureInfo.InvariantCulture, $"{name} is stuck: in hand for {request.Age.TotalSeconds:0} s; see dmesg for the image's disk"));
            }
            foreach ((ulong unique, string name) in _named.Where(n => !inHand.Contains(n.Key)).ToList())
            {
                _log($"{name} was answered at last");
                _named.Remove(unique);
            }
        }
    }
}
