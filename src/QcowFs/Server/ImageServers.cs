// Images that a server has mounted: who wants to change or check one asks the server, which has it locked.
using System.Text.Json;
using QcowFs.Images;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>Finds the server that has an image open, and asks it.</summary>
internal static class ImageServers
{
    /// <summary>Does a piece of work on an image: here, or where a server of ours has it open, there.</summary>
    /// <param name="path">The image.</param>
    /// <param name="here">The work where nobody else has the image.</param>
    /// <param name="command">The server's word for the work.</param>
    /// <param name="arguments">Writes the rest of the request.</param>
    /// <returns>The server's answer, or null where the work was done here.</returns>
    public static JsonElement? Run(string path, Action here, string command, Action<Utf8JsonWriter> arguments)
    {
        // A mount that covers the image hides its file: only its server still has it. Its files are not asked about.
        if (Libc.Canonical(path, out string canonical) == Errno.None && MountTable.FindTop(canonical) is { IsOurs: true } covering)
        {
            return Ask(covering, path, null, command, arguments)
                ?? throw new CommandFailure(path, "the server that has it mounted does not answer", $"run \"qcowfs umount {path}\"");
        }
        try
        {
            here();
            return null;
        }
        catch (ImageInUseException)
        {
            if (Libc.Status(path, 0, out StatxData facts) == Errno.None && AskAll(path, facts, command, arguments) is { } answer) return answer;
            throw;
        }
    }

    private static JsonElement? AskAll(string path, in StatxData facts, string command, Action<Utf8JsonWriter> arguments)
    {
        uint uid = Libc.GetUserId();
        (ulong, ulong) file = (((ulong)facts.DeviceMajor << 32) | facts.DeviceMinor, facts.Inode);
        foreach (MountEntry mount in MountTable.Read())
        {
            if (!mount.IsOurs || (uid != 0 && mount.UserId != uid)) continue;
            if (Ask(mount, path, file, command, arguments) is { } answer) return answer;
        }
        return null;
    }

    /// <summary>Null where nobody answers, or the server does not have the image.</summary>
    private static JsonElement? Ask(
        MountEntry mount, string path, (ulong Device, ulong Inode)? file, string command, Action<Utf8JsonWriter> arguments)
    {
        using JsonDocument? answer = ControlClient.Ask(mount, json =>
        {
            json.WriteStartObject();
            json.WriteString("command", command);
            json.WriteString("path", HostText.Show(path));
            if (file is { } identity)
            {
                json.WriteNumber("device", identity.Device);
                json.WriteNumber("inode", identity.Inode);
            }
            arguments(json);
            json.WriteEndObject();
        });
        if (answer is null || answer.RootElement.TryGetProperty("no-such-image", out _)) return null;
        if (answer.RootElement.TryGetProperty("failure", out JsonElement failure)) throw new ServerFailure(failure.GetString()!);
        return answer.RootElement.Clone();
    }
}
