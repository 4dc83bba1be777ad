// The wire of the control socket: one line of JSON each way. Both sides use this.
using System.Buffers;
using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text.Json;

namespace QcowFs.Server;

/// <summary>Sends and receives lines of JSON over a local stream socket.</summary>
internal static class ControlChannel
{
    // Requests are a few words; answers list the images of a mount.
    private const int LongestLine = 8 << 20;

    /// <summary>Writes one object as a line.</summary>
    public static void Send(Socket socket, Action<Utf8JsonWriter> write)
    {
        ArrayBufferWriter<byte> line = new();
        using (Utf8JsonWriter json = new(line)) write(json);
        line.Write("\n"u8);
        for (ReadOnlySpan<byte> rest = line.WrittenSpan; !rest.IsEmpty;) rest = rest[socket.Send(rest)..];
    }

    /// <summary>struct ucred of the other side: process (0 where ours cannot see it), user.</summary>
    public static (int Process, uint User) PeerOf(Socket socket)
    {
        const int socketLevel = 1;
        const int peerCredentials = 17;
        Span<byte> credentials = stackalloc byte[12]; // and the group
        socket.GetRawSocketOption(socketLevel, peerCredentials, credentials);
        return (BinaryPrimitives.ReadInt32LittleEndian(credentials), BinaryPrimitives.ReadUInt32LittleEndian(credentials[4..]));
    }

    /// <summary>Reads one line; null where the other side closed before its end or sent no JSON.</summary>
    public static JsonDocument? Receive(Socket socket)
    {
        ArrayBufferWriter<byte> line = new();
        while (line.WrittenCount < LongestLine)
        {
            int count = socket.Receive(line.GetSpan(4096));
            if (count == 0) return null;
            line.Advance(count);
            if (line.WrittenSpan[^1] != (byte)'\n') continue;
            try
            {
                return JsonDocument.Parse(line.WrittenMemory);
            }
            catch (JsonException)
            {
                return null;
            }
        }
        return null;
    }
}
