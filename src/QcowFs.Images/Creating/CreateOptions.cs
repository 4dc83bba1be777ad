// The -o options of a new image: each format takes the ones that it knows, and what is left over is an error.
using System.Globalization;

namespace QcowFs.Images;

/// <summary>How much of a new image's space is made at once.</summary>
internal enum Preallocation
{
    /// <summary>None.</summary>
    Off,
    /// <summary>All metadata, as if everything were written; the data stays a hole.</summary>
    Metadata,
    /// <summary>Metadata, and host space for the data is reserved.</summary>
    Reserve,
    /// <summary>Metadata, and zeros are written for the data.</summary>
    Full,
}

/// <summary>Options by name. Used by one thread.</summary>
internal sealed class CreateOptions
{
    private readonly Dictionary<string, string> _options = [];

    /// <summary>The backing image as it was read, its file closed again; null where there is none.</summary>
    public IImageLayer? Backing { get; set; }

    public CreateOptions(IEnumerable<KeyValuePair<string, string>> options)
    {
        foreach ((string key, string value) in options)
            _options[key] = value;
    }

    /// <summary>Throws for the first option that nobody took.</summary>
    public void RequireEmpty(string format)
    {
        if (_options.Count > 0)
            throw new ImageOptionException(_options.Keys.Min()!, $"the format {format} has no such option");
    }

    public string? Take(string key) => _options.Remove(key, out string? value) ? value : null;

    public bool TakeSwitch(string key) => TakeChoice(key, "off", "off", "on") == "on";

    public string TakeChoice(string key, string fallback, params ReadOnlySpan<string> choices)
    {
        string value = Take(key) ?? fallback;
        return choices.Contains(value) ? value : throw new ImageOptionException(key,
            $"{Printable.Quote(value)} is not one of {string.Join(", ", choices)}");
    }

    public long TakeSize(string key, long fallback) => Take(key) is { } text ? ParseSize(key, text) : fallback;

    public long TakeNumber(string key, long fallback)
    {
        string? text = Take(key);
        if (text is null)
            return fallback;
        return long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out long number) ? number
            : throw new ImageOptionException(key, $"{Printable.Quote(text)} is not a number");
    }

    public Preallocation TakePreallocation(bool withMetadata)
    {
        string value = withMetadata ? TakeChoice("preallocation", "off", "off", "metadata", "falloc", "full")
            : TakeChoice("preallocation", "off", "off", "falloc", "full");
        return value switch
        {
            "metadata" => Preallocation.Metadata,
            "falloc" => Preallocation.Reserve,
            "full" => Preallocation.Full,
            _ => Preallocation.Off,
        };
    }

    /// <summary>A size in bytes, with k, M, G, T (or K, P, E, B) for powers of 1024.</summary>
    private static long ParseSize(string key, string text)
    {
        int shift = text.Length == 0 ? 0 : "BKMGTPE".IndexOf(char.ToUpperInvariant(text[^1]), StringComparison.Ordinal) * 10;
        string digits = shift >= 0 && text.Length > 0 && !char.IsAsciiDigit(text[^1]) ? text[..^1] : text;
        return long.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out long number)
            && number <= long.MaxValue >> Math.Max(shift, 0) ? number << Math.Max(shift, 0)
            : throw new ImageOptionException(key, $"{Printable.Quote(text)} is not a size such as 64k or 2M");
    }
}
