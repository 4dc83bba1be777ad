// qcowfs create.
using QcowFs.CommandLine;
using QcowFs.Images;

namespace QcowFs.Commands;

/// <summary>Makes an image.</summary>
internal static class CreateCommand
{
    private static readonly Option Format = new("format", $"format of the new image: {ImageOptions.FormatList}", "FMT") { Short = 'f' };
    private static readonly Option Options = new("", "options of the format, under qemu-img's names", "k=v,...") { Short = 'o', Repeats = true };
    private static readonly Option Backing = new("backing", "backing file, seen from the image's directory", "BACKING") { Short = 'b' };
    private static readonly Option BackingFormat = new("backing-format", "its format; raw is never guessed", "FMT") { Short = 'F' };

    public static Command Table { get; } = new(
        "create", "make a new image", ["IMAGE", "[SIZE]"], [Format, Options, Backing, BackingFormat], Run)
    {
        Notes =
            """
            qcow2 options: compat, cluster_size, refcount_bits, extended_l2, compression_type, lazy_refcounts,
            preallocation, data_file, data_file_raw, as for qemu-img create. vhdx options: subformat (dynamic, fixed),
            block_size, log_size, block_state_zero, and logical_sector_size (512, 4096). add-cow options: image_file, the
            file that holds the data, seen from the image's directory, made if it is not there; image_fmt, its format
            (raw); cluster_size. Without SIZE the backing file's is taken.
            """,
    };

    private static int Run(ParsedLine line)
    {
        string format = line.Choice(Format, ImageOptions.FormatNames)
            ?? throw CommandFailure.Usage(Format.Display, "missing", $"state one of {ImageOptions.FormatList}");
        ImageRequest request = new()
        {
            Path = line.Operands[0],
            Format = format,
            Size = SizeOf(line),
            BackingName = line.Value(Backing),
            BackingFormat = line.Choice(BackingFormat, ImageOptions.FormatNames),
            Options = Split(line.Value(Options) ?? ""),
        };
        new ImageCreator(HostFileSystem.Instance).Create(request);
        return ExitCode.Done;
    }

    private static long SizeOf(ParsedLine line)
    {
        if (line.Operands.Count < 2) return -1;
        string text = line.Operands[1];
        return Sizes.TryParse(text, out long size)
            ? size
            : throw CommandFailure.Usage("SIZE", $"\"{text}\" is not a size", "give a number of bytes, or one with k, M, G or T");
    }

    /// <summary>Entries of the form k=v between commas; two commas stand for one, as in QEMU.</summary>
    private static List<KeyValuePair<string, string>> Split(string list)
    {
        List<KeyValuePair<string, string>> options = [];
        foreach (string part in list.Replace(",,", "\0", StringComparison.Ordinal).Split(',', StringSplitOptions.RemoveEmptyEntries))
        {
            string entry = part.Replace('\0', ',');
            int equals = entry.IndexOf('=', StringComparison.Ordinal);
            if (equals <= 0) throw CommandFailure.Usage($"-o {entry}", "has no value", "write it as name=value");
            options.Add(new(entry[..equals], entry[(equals + 1)..]));
        }
        return options;
    }
}
