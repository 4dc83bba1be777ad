// The typed fault of a wrong option for a new image: wrong usage, not a fault of any file.
namespace QcowFs.Images;

/// <summary>An option for a new image is unknown, malformed, or contradicts another.</summary>
public sealed class ImageOptionException : Exception
{
    /// <summary>Creates the fault.</summary>
    /// <param name="option">The option as the user wrote it.</param>
    /// <param name="problem">What is wrong and what would be right.</param>
    public ImageOptionException(string option, string problem)
        : base($"{option}: {problem}")
    {
        Option = option;
        Problem = problem;
    }

    /// <summary>The option.</summary>
    public string Option { get; }

    /// <summary>What is wrong and what would be right.</summary>
    public string Problem { get; }
}
