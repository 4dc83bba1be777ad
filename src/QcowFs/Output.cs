// What commands print for programs.
using System.Text.Json;
using QcowFs.CommandLine;

namespace QcowFs;

/// <summary>The --json option and what it prints.</summary>
internal static class Output
{
    public static readonly Option Json = new("json", "print JSON");

    private static readonly JsonWriterOptions Indented = new() { Indented = true };

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
