// Talking to the server of a mount.
using System.Net.Sockets;
using System.Text.Json;

namespace QcowFs.Server;

/// <summary>One request to the server of a mount.</summary>
internal static class ControlClient
{
    /// <summary>Sends a request and waits for the answer, however long it takes; null where no server listens.</summary>
    public static JsonDocument? Ask(MountEntry mount, Action<Utf8JsonWriter> request)
    {
        string name = RuntimeDirectory.SocketName(mount.Device);
        foreach (string directory in RuntimeDirectory.CandidatesFor(mount.UserId, name))
        {
            using Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            try
            {
                socket.Connect(new UnixDomainSocketEndPoint($"{directory}/{name}"));
                ControlChannel.Send(socket, request);
                if (ControlChannel.Receive(socket) is { } answer) return answer;
            }
            catch (Exception fault) when (fault is SocketException or ArgumentException)
            {
                continue; // not there, or a name too long for a socket: try the next place
            }
        }
        return null;
    }

    /// <summary>Removes what a dead server left in the runtime directory.</summary>
    public static void RemoveStaleSocket(MountEntry mount)
    {
        string name = RuntimeDirectory.SocketName(mount.Device);
        foreach (string directory in RuntimeDirectory.CandidatesFor(mount.UserId, name))
        {
            string path = $"{directory}/{name}";
            if (File.Exists(path)) File.Delete(path);
        }
    }
}
