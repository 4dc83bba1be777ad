// The typed fault of a bad image: refused with words that a person can act on.
namespace QcowFs.Images;

/// <summary>An image breaks its format's rules or a limit. The message is one line: what is wrong where; what to do.</summary>
public sealed class ImageFormatException : Exception
{
    /// <summary>Creates the fault.</summary>
    /// <param name="file">The image's path as the user gave it.</param>
    /// <param name="structure">The structure in the format's own words: "header", "L1 table".</param>
    /// <param name="offset">Byte offset in the file, or -1 where none applies.</param>
    /// <param name="problem">What was found and what was expected.</param>
    /// <param name="advice">What the person can do.</param>
    public ImageFormatException(string file, string structure, long offset, string problem, string advice)
        : base($"{file}: {structure}{(offset < 0 ? "" : $" at byte {offset}")}: {problem}; {advice}")
    {
        File = file;
        Structure = structure;
        Offset = offset;
        Problem = problem;
        Advice = advice;
    }

    /// <summary>The image's path.</summary>
    public string File { get; }

    /// <summary>The broken structure.</summary>
    public string Structure { get; }

    /// <summary>Byte offset in the file, or -1.</summary>
    public long Offset { get; }

    /// <summary>What was found and expected.</summary>
    public string Problem { get; }

    /// <summary>What to do.</summary>
    public string Advice { get; }
}
