// The typed fault of an image that somebody else has open: it is fine, but cannot be had now.
namespace QcowFs.Images;

/// <summary>Another process uses the image file in a way that excludes ours. The message is one line: what is wrong; what to do.</summary>
public sealed class ImageInUseException : Exception
{
    /// <summary>Creates the fault.</summary>
    /// <param name="file">The file's path.</param>
    /// <param name="holder">The other process in words.</param>
    /// <param name="writes">Whether it is in the way because it writes; else because we would.</param>
    public ImageInUseException(string file, string holder, bool writes)
        : base($"{file}: the file is in use {(writes ? "for writing " : "")}by {holder}; stop it or unmount it first")
    {
        File = file;
        Holder = holder;
    }

    /// <summary>The file's path.</summary>
    public string File { get; }

    /// <summary>The other process in words.</summary>
    public string Holder { get; }
}
