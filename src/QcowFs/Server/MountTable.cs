// The kernel's list of mounts (/proc/PID/mountinfo). Reading it touches no mount, so it is safe whatever state a server is in.
using System.Text;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>One mount.</summary>
/// <param name="Id">Mount id, as in /proc/PID/fdinfo.</param>
/// <param name="Device">Device number of its files, "0:53". No two live file systems share one.</param>
/// <param name="MountPoint">Where it is.</param>
/// <param name="Type">File system type.</param>
/// <param name="Source">What is mounted, in the file system's words.</param>
/// <param name="Options">Options of the mount and of the file system, comma-separated.</param>
internal sealed record MountEntry(string Id, string Device, string MountPoint, string Type, string Source, string Options)
{
    public const string OurType = "fuse.qcowfs";

    public bool IsOurs => Type == OurType;

    /// <summary>The user who mounted, as a FUSE file system states it.</summary>
    public uint UserId
    {
        get
        {
            const string key = "user_id=";
            foreach (string option in Options.Split(','))
                if (option.StartsWith(key, StringComparison.Ordinal) && uint.TryParse(option.AsSpan(key.Length), out uint id)) return id;
            return 0;
        }
    }
}

/// <summary>Reads the list of mounts.</summary>
internal static class MountTable
{
    /// <summary>All mounts of a process's mount namespace, oldest first.</summary>
    public static List<MountEntry> Read(string process = "self")
    {
        List<MountEntry> entries = [];
        string text = HostText.Decode(File.ReadAllBytes($"/proc/{process}/mountinfo"));
        foreach (string line in text.Split('\n', StringSplitOptions.RemoveEmptyEntries))
            if (TryParse(line, out MountEntry? entry)) entries.Add(entry);
        return entries;
    }

    /// <summary>The mount on top at a canonical path, or null.</summary>
    public static MountEntry? FindTop(string path) => Read().FindLast(e => e.MountPoint == path);

    /// <summary>Parses one line: id, parent, device, root, mount point, options, tags..., "-", type, source, options.</summary>
    public static bool TryParse(string line, [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out MountEntry? entry)
    {
        entry = null;
        string[] fields = line.Split(' ');
        int dash = Array.IndexOf(fields, "-");
        if (dash < 6 || fields.Length < dash + 4) return false;
        entry = new MountEntry(
            fields[0], fields[2], Unescape(fields[4]), fields[dash + 1], Unescape(fields[dash + 2]), fields[5] + "," + fields[dash + 3]);
        return true;
    }

    /// <summary>The kernel writes blank, tab, newline and backslash as \ooo.</summary>
    private static string Unescape(string field)
    {
        if (!field.Contains('\\', StringComparison.Ordinal)) return field;
        StringBuilder text = new(field.Length);
        for (int i = 0; i < field.Length; i++)
        {
            if (field[i] == '\\' && i + 3 < field.Length)
            {
                text.Append((char)(((field[i + 1] - '0') << 6) | ((field[i + 2] - '0') << 3) | (field[i + 3] - '0')));
                i += 3;
            }
            else text.Append(field[i]);
        }
        return text.ToString();
    }
}
