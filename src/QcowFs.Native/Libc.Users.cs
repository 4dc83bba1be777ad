// Users and groups by name.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

public static unsafe partial class Libc
{
    // struct passwd and struct group both begin with two pointers.
    private const int NumberAt = 16;

    private static readonly Lock Naming = new(); // the functions below share a buffer of libc's

    /// <summary>The number of a user, or null where there is no such user.</summary>
    public static uint? FindUser(string name)
    {
        lock (Naming)
        {
            byte* entry = GetUserByName(name);
            return entry is null ? null : *(uint*)(entry + NumberAt);
        }
    }

    /// <summary>The number of a group, or null where there is no such group.</summary>
    public static uint? FindGroup(string name)
    {
        lock (Naming)
        {
            byte* entry = GetGroupByName(name);
            return entry is null ? null : *(uint*)(entry + NumberAt);
        }
    }

    [LibraryImport(LibraryName, EntryPoint = "getpwnam", StringMarshalling = StringMarshalling.Utf8)]
    private static partial byte* GetUserByName(string name);

    [LibraryImport(LibraryName, EntryPoint = "getgrnam", StringMarshalling = StringMarshalling.Utf8)]
    private static partial byte* GetGroupByName(string name);
}
