// Talking to the server of a mount.
using System.Net.Sockets;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>One request to the server of a mount.</summary>
internal static class ControlClient
{
    // From its last answer on a server has nothing to do but to end.
    private static readonly TimeSpan EndLimit = TimeSpan.FromSeconds(10);

    /// <summary>Sends a request and waits for the answer, however long it takes; null where no server listens.</summary>
    /// <param name="mount">Whose server.</param>
    /// <param name="request">Writes the request.</param>
    /// <param name="isLast">Tells of an answer whether the server ends with it. Then its end is waited for, within reason, so that what
    /// it held, such as the file system that the image lies on, is free when this returns.</param>
    public static JsonDocument? Ask(MountEntry mount, Action<Utf8JsonWriter> request, Predicate<JsonElement>? isLast = null)
    {
        string name = RuntimeDirectory.SocketName(mount.Device);
        foreach (string directory in RuntimeDirectory.CandidatesFor(mount.UserId, name))
        {
            using Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            try
            {
                socket.Connect(new UnixDomainSocketEndPoint($"{directory}/{name}"));
                // Before the request, while the process is certainly there.
                using SafeFileHandle server = new(Libc.OpenProcess(ControlChannel.PeerOf(socket).Process), ownsHandle: true);
                ControlChannel.Send(socket, request);
                if (ControlChannel.Receive(socket) is not { } answer) continue;
                if (isLast is not null && isLast(answer.RootElement) && !server.IsInvalid)
                    _ = Libc.WaitForEnd((int)server.DangerousGetHandle(), (int)EndLimit.TotalMilliseconds);
                return answer;
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
