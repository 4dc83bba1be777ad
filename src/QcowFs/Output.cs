// What commands print, for people and for programs.
using System.Text.Json;
using QcowFs.Native;

namespace QcowFs;

/// <summary>What commands print.</summary>
internal static class Output
{
    private static readonly JsonWriterOptions Indented = new() { Indented = true };

    /// <summary>Text for a terminal: names inside images may hold control characters, which must not reach it.</summary>
    public static string Safe(string text)
    {
        text = HostText.Show(text);
        foreach (char c in text)
            if (char.IsControl(c)) return string.Concat(text.Select(Escape));
        return text;

        static string Escape(char c) => char.IsControl(c) ? $"\\x{(int)c:x2}" : c.ToString();
    }

    /// <summary>Prints one JSON value and a newline, as it is written: a large map is never held as a whole.</summary>
    public static void WriteJson(Action<Utf8JsonWriter> write)
    {
        using Stream output = Console.OpenStandardOutput();
        using (BufferedStream buffered = new(output, 65536))
        {
            using (Utf8JsonWriter json = new(buffered, Indented)) write(json);
            buffered.WriteByte((byte)'\n');
        }
    }
}
