// What systemd is told about a server that it started (sd_notify(3)): one datagram to the socket that $NOTIFY_SOCKET names.
using System.Net.Sockets;
using System.Text;

namespace QcowFs.Server;

/// <summary>Speaks to the service manager, where there is one that listens.</summary>
internal static class ServiceNotice
{
    private const string Variable = "NOTIFY_SOCKET";

    private static readonly string? Address = TakeAddress();

    /// <summary>The mount answers.</summary>
    public static void Ready(string status) => Send($"READY=1\nSTATUS={status}");

    /// <summary>The mount is being given up; that takes as long as somebody has files of it open.</summary>
    public static void Stopping(string status) => Send($"STOPPING=1\nSTATUS={status}");

    private static void Send(string message)
    {
        if (Address is null) return;
        try
        {
            using Socket socket = new(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
            // A name that begins with @ is in the abstract namespace, where its first byte is 0.
            string path = Address[0] == '@' ? "\0" + Address[1..] : Address;
            socket.SendTo(Encoding.UTF8.GetBytes(message.ReplaceLineEndings("\n")), new UnixDomainSocketEndPoint(path));
        }
        catch (Exception fault) when (fault is SocketException or ArgumentException)
        {
            // A manager that does not listen has its own time limit; serving goes on.
            return;
        }
    }

    // Programs that we start are not what the manager waits for.
    private static string? TakeAddress()
    {
        string? address = Environment.GetEnvironmentVariable(Variable);
        Environment.SetEnvironmentVariable(Variable, null);
        return string.IsNullOrEmpty(address) || address[0] is not ('/' or '@') ? null : address;
    }
}
