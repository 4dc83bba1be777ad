// One line for every way a command can end: `FILE: what is wrong; what to do`.
using QcowFs.Fuse;
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs;

/// <summary>Words for faults.</summary>
internal static class ErrorLine
{
    /// <summary>The line, without the program's name and newline.</summary>
    public static string For(Exception fault)
    {
        string line = fault switch
        {
            CommandFailure or ServerFailure or ImageFormatException or ImageInUseException => fault.Message,
            ImageOptionException => $"{fault.Message}; see \"qcowfs create --help\"",
            StorageException storage => $"{storage.Path}: {Problem(storage)}; {Advice(storage)}",
            FuseMountException mount => $"{mount.Path}: {mount.Message}; {mount.Advice}",
            FuseProtocolException => $"/dev/fuse: {fault.Message}; use a kernel with FUSE 7.31 or newer",
            _ => $"internal error: {fault.GetType().Name}: {fault.Message}; please report it",
        };
        return HostText.Show(line.ReplaceLineEndings(" "));
    }

    private static string Problem(StorageException fault) =>
        fault is { Operation: "open" } ? ErrnoText.Describe(fault.Errno)
        : IsNoFile(fault) ? "neither a regular file nor a block device"
        : $"{fault.Operation}{(fault.Offset < 0 ? "" : $" at byte {fault.Offset}")} failed: {ErrnoText.Describe(fault.Errno)}";

    /// <summary>The open of a pipe, socket or terminal, which <see cref="HostFiles"/> refuses with the reason as the operation.</summary>
    private static bool IsNoFile(StorageException fault) => fault.Operation.StartsWith("open (", StringComparison.Ordinal);

    private static string Advice(StorageException fault) => fault.Errno switch
    {
        Errno.EOPNOTSUPP when IsNoFile(fault) => "give an image file",
        Errno.ENOENT or Errno.ENOTDIR => "check the path",
        Errno.EISDIR => "give an image file",
        Errno.EACCES or Errno.EPERM => "run as a user who has access to it",
        Errno.EROFS or Errno.ETXTBSY => "leave out --writable",
        Errno.EEXIST => "remove it first, or choose another name",
        Errno.ENOSPC or Errno.EDQUOT => "free space on the host",
        Errno.EMFILE or Errno.ENFILE => "close other files, or raise the limit",
        Errno.ELOOP => "give the path of the file itself",
        Errno.EOPNOTSUPP => "choose a regular file or a block device on a file system that can do it",
        _ => "see the host's log (dmesg)",
    };
}
