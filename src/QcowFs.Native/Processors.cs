// The processors of the machine, from sysfs.
using System.Text;

namespace QcowFs.Native;

/// <summary>Which processors there are. Read anew by each call.</summary>
public static unsafe class Processors
{
    private const string Folder = "/sys/devices/system/cpu/";

    /// <summary>Numbers of those that could ever be there, as far as the kernel knows; empty where it does not say.</summary>
    public static IReadOnlyCollection<int> Possible() => Parse(Read(Folder + "possible"));

    /// <summary>Numbers of those that are there now.</summary>
    public static IReadOnlyCollection<int> Online() => Parse(Read(Folder + "online"));

    /// <summary>The members of a list such as "0-3,8".</summary>
    internal static HashSet<int> Parse(string list)
    {
        HashSet<int> members = [];
        foreach (string range in list.Trim().Split(',', StringSplitOptions.RemoveEmptyEntries))
        {
            string[] ends = range.Split('-');
            for (int member = int.Parse(ends[0]); member <= int.Parse(ends[^1]); member++) members.Add(member);
        }
        return members;
    }

    private static string Read(string path)
    {
        const int mostBytes = 4096; // a page, as sysfs gives it
        int descriptor = Libc.Open(path, Libc.O_RDONLY | Libc.O_CLOEXEC, 0);
        if (descriptor < 0) return "";
        byte* text = stackalloc byte[mostBytes];
        nint length = Libc.Read(descriptor, text, mostBytes);
        _ = Libc.Close(descriptor);
        return length > 0 ? Encoding.ASCII.GetString(text, (int)length) : "";
    }
}
