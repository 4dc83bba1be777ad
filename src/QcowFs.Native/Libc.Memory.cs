// Memory that stays: locking and populating pages.
using System.Runtime.InteropServices;

namespace QcowFs.Native;

public static unsafe partial class Libc
{
    private const int MCL_CURRENT = 1;
    private const int MCL_FUTURE = 2;
    private const int MCL_ONFAULT = 4;
    private const int MADV_POPULATE_READ = 22;

    /// <summary>Keeps every page of the process, once it has been touched, from being taken away again; mappings to come as well. EPERM or
    /// ENOMEM where the user may not.</summary>
    public static Errno LockMemoryOnceTouched() => LockAll(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0 ? Errno.None : LastErrno;

    /// <summary>Touches every page of a mapping for reading (Linux 5.14).</summary>
    public static Errno Populate(ulong start, ulong length) => Advise((void*)start, (nuint)length, MADV_POPULATE_READ) == 0 ? Errno.None : LastErrno;

    [LibraryImport(LibraryName, EntryPoint = "mlockall", SetLastError = true)]
    private static partial int LockAll(int flags);

    [LibraryImport(LibraryName, EntryPoint = "madvise", SetLastError = true)]
    private static partial int Advise(void* start, nuint length, int advice);
}
