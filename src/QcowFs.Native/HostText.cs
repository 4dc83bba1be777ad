// File names of the host as text. A name is bytes; most are UTF-8, and nothing makes them so. Bytes that are not become lone low
// surrogates (U+DC80 to U+DCFF), which no UTF-8 decodes to, so that every name survives the way to text and back.
using System.Buffers;
using System.Runtime.InteropServices;
using System.Runtime.InteropServices.Marshalling;
using System.Text;

namespace QcowFs.Native;

/// <summary>Turns file names into text and back without loss.</summary>
public static class HostText
{
    private const char EscapeBase = '\uDC00';
    private const char FirstEscape = '\uDC80';
    private const char LastEscape = '\uDCFF';

    /// <summary>The text of a name.</summary>
    public static string Decode(ReadOnlySpan<byte> name)
    {
        StringBuilder? text = null;
        ReadOnlySpan<byte> rest = name;
        Span<char> units = stackalloc char[2];
        while (!rest.IsEmpty)
        {
            if (Rune.DecodeFromUtf8(rest, out Rune rune, out int length) == OperationStatus.Done)
            {
                text?.Append(units[..rune.EncodeToUtf16(units)]);
                rest = rest[length..];
                continue;
            }
            text ??= new StringBuilder(Encoding.UTF8.GetString(name[..^rest.Length]));
            text.Append((char)(EscapeBase + rest[0]));
            rest = rest[1..];
        }
        return text?.ToString() ?? Encoding.UTF8.GetString(name);
    }

    /// <summary>The name of a text.</summary>
    public static byte[] Encode(string text)
    {
        if (!HasEscapes(text)) return Encoding.UTF8.GetBytes(text);
        var name = new ArrayBufferWriter<byte>(text.Length * 3);
        int at = 0;
        while (at < text.Length)
        {
            int start = at;
            while (at < text.Length && !IsEscape(text, at)) at++;
            Encoding.UTF8.GetBytes(text.AsSpan(start, at - start), name);
            for (; at < text.Length && IsEscape(text, at); at++) name.Write([(byte)(text[at] - EscapeBase)]);
        }
        return name.WrittenSpan.ToArray();
    }

    /// <summary>Whether the text stands for a name that is not UTF-8.</summary>
    public static bool HasEscapes(string text)
    {
        for (int i = 0; i < text.Length; i++)
            if (IsEscape(text, i)) return true;
        return false;
    }

    /// <summary>The text as people and JSON can be shown it: each byte that is not UTF-8 as \xNN.</summary>
    public static string Show(string text)
    {
        if (!HasEscapes(text)) return text;
        StringBuilder shown = new(text.Length + 8);
        for (int i = 0; i < text.Length; i++)
        {
            if (IsEscape(text, i)) shown.Append($"\\x{text[i] - EscapeBase:x2}");
            else shown.Append(text[i]);
        }
        return shown.ToString();
    }

    private static bool IsEscape(string text, int at) =>
        text[at] is >= FirstEscape and <= LastEscape && (at == 0 || !char.IsHighSurrogate(text[at - 1]));
}

/// <summary>Hands paths to the C library by <see cref="HostText"/>.</summary>
[CustomMarshaller(typeof(string), MarshalMode.ManagedToUnmanagedIn, typeof(HostPathMarshaller))]
public static unsafe class HostPathMarshaller
{
    /// <summary>The path as bytes with a NUL behind; free it after the call.</summary>
    public static byte* ConvertToUnmanaged(string? path)
    {
        if (path is null) return null;
        byte[] name = HostText.Encode(path);
        var copy = (byte*)NativeMemory.Alloc((nuint)name.Length + 1);
        name.CopyTo(new Span<byte>(copy, name.Length));
        copy[name.Length] = 0;
        return copy;
    }

    /// <summary>Frees what <see cref="ConvertToUnmanaged"/> made.</summary>
    public static void Free(byte* path) => NativeMemory.Free(path);
}
