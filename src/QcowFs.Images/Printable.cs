// Text that came out of an image goes into one-line messages only through here: it may hold line ends, terminal escapes, or be long.
using System.Text;

namespace QcowFs.Images;

internal static class Printable
{
    private const int LongestQuote = 200;

    /// <summary>The text in double quotes on one line: control characters as \xNN, cut where it is long.</summary>
    public static string Quote(string text)
    {
        StringBuilder quoted = new("\"");
        foreach (char c in text.AsSpan(0, Math.Min(text.Length, LongestQuote)))
        {
            if (char.IsControl(c) || c is '"' or '\\' or '\u2028' or '\u2029')
                quoted.Append("\\x").Append(((int)c).ToString("x2"));
            else
                quoted.Append(c);
        }

        return quoted.Append(text.Length > LongestQuote ? "...\"" : "\"").ToString();
    }
}
