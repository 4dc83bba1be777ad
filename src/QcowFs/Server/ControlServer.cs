// The server's end of the control socket. Only the user who mounted, and root, are listened to.
using System.Net.Sockets;
using System.Text.Json;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>Answers one request a connection, each on a thread of its own, since an unmount may take its time.</summary>
internal sealed class ControlServer : IDisposable
{
    private static readonly TimeSpan AnswerTimeout = TimeSpan.FromSeconds(10);

    private static readonly TimeSpan AcceptRetryInterval = TimeSpan.FromMilliseconds(100);

    private readonly Socket _listener;
    private readonly string _path;
    private readonly Action<JsonElement, Utf8JsonWriter> _answer;
    private readonly Lock _gate = new(); // guards _talking
    private readonly List<Thread> _talking = [];
    private readonly ManualResetEventSlim _closing = new(false);

    /// <summary>Listens at a path. <paramref name="answer"/> is called for each request and writes one object.</summary>
    public ControlServer(string path, Action<JsonElement, Utf8JsonWriter> answer)
    {
        _path = path;
        _answer = answer;
        _listener = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            File.Delete(path); // of a server that died: no live file system has our device number
            _listener.Bind(new UnixDomainSocketEndPoint(path));
            _listener.Listen(16);
        }
        catch (Exception fault) when (fault is SocketException or IOException or UnauthorizedAccessException or ArgumentException)
        {
            _listener.Dispose();
            throw new CommandFailure(path, "the control socket cannot be made", "set XDG_RUNTIME_DIR to a directory of yours");
        }
        new Thread(AcceptAll) { IsBackground = true, Name = "control" }.Start();
    }

    /// <summary>Takes no more requests and waits, within reason, until those in hand have their answer.</summary>
    public void Dispose()
    {
        _closing.Set();
        File.Delete(_path);
        _listener.Dispose();
        Thread[] talking;
        lock (_gate) talking = [.. _talking];
        foreach (Thread thread in talking) thread.Join(AnswerTimeout);
    }

    private void AcceptAll()
    {
        while (!_closing.IsSet)
        {
            Socket peer;
            try
            {
                peer = _listener.Accept();
            }
            catch (Exception fault) when (fault is SocketException or ObjectDisposedException)
            {
                // Out of descriptors, most likely: the mount matters more than a new request.
                if (_closing.Wait(AcceptRetryInterval)) return;
                continue;
            }
            Thread thread = new(() => Talk(peer)) { IsBackground = true, Name = "control request" };
            lock (_gate) _talking.Add(thread);
            thread.Start();
        }
    }

    private void Talk(Socket peer)
    {
        try
        {
            peer.ReceiveTimeout = peer.SendTimeout = (int)AnswerTimeout.TotalMilliseconds;
            if (!IsAllowed(peer)) return;
            using JsonDocument? request = ControlChannel.Receive(peer);
            if (request is not null) Answer(peer, request.RootElement);
        }
        catch (SocketException)
        {
            // The client has gone, or does not listen. What it asked for is done all the same.
            return;
        }
        finally
        {
            peer.Dispose();
            lock (_gate) _talking.Remove(Thread.CurrentThread);
        }
    }

    /// <summary>A request that meets a defect is answered too: it must not end the server, whose images others use.</summary>
    private void Answer(Socket peer, JsonElement request)
    {
        string line;
        try
        {
            ControlChannel.Send(peer, json => _answer(request, json));
            return;
        }
        catch (Exception fault) when (fault is not SocketException)
        {
            line = ErrorLine.For(fault);
        }
        ControlChannel.Send(peer, json =>
        {
            json.WriteStartObject();
            json.WriteString("failure", line);
            json.WriteEndObject();
        });
    }

    private static bool IsAllowed(Socket peer) =>
        ControlChannel.PeerOf(peer).User is var user && (user == 0 || user == Libc.GetUserId());
}
