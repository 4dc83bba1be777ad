// Sizes as people write and read them: k, M, G and T are powers of 1024.
namespace QcowFs.CommandLine;

/// <summary>Parses and prints sizes.</summary>
internal static class Sizes
{
    private const string Suffixes = "kMGT";

    /// <summary>A number of bytes, or one with a suffix in either case; false also where it does not fit.</summary>
    public static bool TryParse(string text, out long bytes)
    {
        bytes = 0;
        if (text.Length == 0) return false;
        int shift = 0;
        int suffix = Suffixes.IndexOf(text[^1], StringComparison.OrdinalIgnoreCase);
        ReadOnlySpan<char> digits = text;
        if (suffix >= 0)
        {
            shift = 10 * (suffix + 1);
            digits = digits[..^1];
        }
        if (!long.TryParse(digits, System.Globalization.NumberStyles.None, null, out long number)) return false;
        if (number > long.MaxValue >> shift) return false;
        bytes = number << shift;
        return true;
    }

    /// <summary>Three significant digits and a binary unit: "1.5 GiB", "512 B".</summary>
    public static string Describe(long bytes)
    {
        string[] units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        double value = bytes;
        int unit = 0;
        for (; value >= 1000 && unit < units.Length - 1; unit++) value /= 1024;
        string number = unit == 0 || value == Math.Floor(value) || value >= 100
            ? Math.Round(value).ToString("0")
            : value.ToString(value >= 10 ? "0.0" : "0.00").TrimEnd('0').TrimEnd('.');
        return $"{number} {units[unit]}";
    }
}
