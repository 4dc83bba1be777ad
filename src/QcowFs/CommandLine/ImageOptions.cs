// The options that every command on an image file shares.
using QcowFs.Images;

namespace QcowFs.CommandLine;

/// <summary>Format, references and JSON; and the door to images.</summary>
internal static class ImageOptions
{
    /// <summary>The names of the formats, the plainest first.</summary>
    public static string[] FormatNames { get; } = [.. ImageOpener.FormatNames.OrderBy(name => name != "raw")];

    /// <summary>The same for people.</summary>
    public static string FormatList => string.Join(", ", FormatNames);

    public static readonly Option Format = new("format", $"state the format: {FormatList}; raw is never guessed", "FMT") { Short = 'f' };

    public static readonly Option References = new(
        "allow-references", "which files named inside the image may be opened: none, dir (its directory and below), all", "WHICH");

    public static readonly Option Json = new("json", "print JSON");

    /// <summary>Opens images of this machine.</summary>
    public static ImageOpener Opener { get; } = new(HostFileSystem.Instance);

    /// <summary>The stated format, or null.</summary>
    public static string? FormatOf(ParsedLine line) => line.Choice(Format, FormatNames);

    /// <summary>The stated policy, or the usual one.</summary>
    public static ReferencePolicy ReferencesOf(ParsedLine line) => line.Choice(References, "none", "dir", "all") switch
    {
        "none" => ReferencePolicy.None,
        "all" => ReferencePolicy.All,
        _ => ReferencePolicy.Directory,
    };
}
