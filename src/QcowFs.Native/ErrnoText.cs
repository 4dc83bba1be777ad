// Words for error numbers, as strerror(3) says them, without a call into libc's locale machinery.
namespace QcowFs.Native;

/// <summary>Says in words what an error number means.</summary>
public static class ErrnoText
{
    /// <summary>The text of strerror(3) in the C locale for the numbers this program meets, else the number's name.</summary>
    public static string Describe(Errno errno) => errno switch
    {
        Errno.EPERM => "operation not permitted",
        Errno.ENOENT => "no such file or directory",
        Errno.EIO => "input/output error",
        Errno.ENXIO => "no such device or address",
        Errno.EACCES => "permission denied",
        Errno.EBUSY => "device or resource busy",
        Errno.EEXIST => "file exists",
        Errno.ENODEV => "no such device",
        Errno.ENOTDIR => "not a directory",
        Errno.EISDIR => "is a directory",
        Errno.EINVAL => "invalid argument",
        Errno.EMFILE => "too many open files",
        Errno.ENFILE => "too many open files in the system",
        Errno.EFBIG => "file too large",
        Errno.ENOSPC => "no space left on device",
        Errno.EROFS => "read-only file system",
        Errno.ELOOP => "too many symbolic links",
        Errno.ENOMEM => "out of memory",
        Errno.EDQUOT => "disk quota exceeded",
        Errno.EOPNOTSUPP => "operation not supported",
        Errno.ENOTCONN => "transport endpoint is not connected",
        Errno.ETXTBSY => "text file busy",
        Errno.ENAMETOOLONG => "file name too long",
        Errno.EAGAIN => "resource temporarily unavailable",
        Errno.ECONNREFUSED => "connection refused",
        _ => Enum.IsDefined(errno) ? errno.ToString() : $"error {(int)errno}",
    };
}
