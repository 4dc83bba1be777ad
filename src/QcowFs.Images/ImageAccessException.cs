// The typed fault of an image that may be fine but cannot be had: missing, not permitted, in use by somebody else.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>An image file cannot be opened. The message is one line: what is wrong; what to do.</summary>
public sealed class ImageAccessException : Exception
{
    /// <summary>Creates the fault.</summary>
    /// <param name="file">The path as the user gave it, or as an image states it.</param>
    /// <param name="errno">The host's error number.</param>
    /// <param name="problem">What is wrong.</param>
    /// <param name="advice">What the person can do.</param>
    public ImageAccessException(string file, Errno errno, string problem, string advice)
        : base($"{file}: {problem}; {advice}")
    {
        File = file;
        Errno = errno;
        Problem = problem;
        Advice = advice;
    }

    /// <summary>The file's path.</summary>
    public string File { get; }

    /// <summary>The host's error number.</summary>
    public Errno Errno { get; }

    /// <summary>What is wrong.</summary>
    public string Problem { get; }

    /// <summary>What to do.</summary>
    public string Advice { get; }

    /// <summary>Says what a failure to open a file means to a person.</summary>
    internal static ImageAccessException Of(StorageException fault, bool writable)
    {
        string reason = ErrnoText.Describe(fault.Errno);
        (string problem, string advice) = fault.Errno switch
        {
            Errno.ENOENT or Errno.ENOTDIR => (reason, "check the path"),
            Errno.EISDIR => (reason, "name an image file"),
            Errno.EACCES or Errno.EPERM => (reason, $"run as a user who may {(writable ? "write" : "read")} the file"),
            Errno.EROFS => (reason, "open it read-only"),
            Errno.EEXIST => (reason, "name a file that does not exist yet"),
            Errno.EOPNOTSUPP when fault.Operation == "direct I/O" =>
                ("the file system cannot do direct I/O", "use --cache=host"),
            Errno.EOPNOTSUPP => ("it is neither a regular file nor a block device", "name an image file"),
            _ => ($"{fault.Operation} failed: {reason}", "see the host's log"),
        };
        return new ImageAccessException(fault.Path, fault.Errno, problem, advice);
    }
}
