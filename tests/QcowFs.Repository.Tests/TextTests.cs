// All text is plain ASCII with Unix line ends, so that it reads the same in every tool.
using Xunit;

namespace QcowFs.Repository.Tests;

public sealed class TextTests
{
    private static readonly string[] TextFiles = ["*.cs", "*.csproj", "*.props", "*.targets", "*.txt", "*.md", "*.sh", "*.json", "*.1", "*.8", "Makefile", ".editorconfig", "*.service"];

    public static TheoryData<string> Patterns => [.. TextFiles];

    [Theory]
    [MemberData(nameof(Patterns))]
    public void Text_is_ASCII(string pattern) => Findings.AreNone(
        from path in Repository.Files(pattern)
        from finding in OtherBytes(File.ReadAllBytes(Repository.Absolute(path)))
        select $"{path}:{finding}");

    [Fact]
    public void Other_bytes_are_found()
    {
        Assert.Equal(["2: byte 0xC3"], OtherBytes("a\n\u00E9\n"u8));
        Assert.Equal(["1: byte 0x0D"], OtherBytes("a\r\n"u8));
        Assert.Equal(["1: byte 0xEF"], OtherBytes("\uFEFFa"u8));
        Assert.Empty(OtherBytes("a\tb\n~"u8));
    }

    // The first bad byte of each line is enough.
    private static List<string> OtherBytes(ReadOnlySpan<byte> text)
    {
        List<string> findings = [];
        int line = 1;
        int last = 0;
        foreach (byte value in text)
        {
            if (value is not ((byte)'\n' or (byte)'\t' or (>= 0x20 and < 0x7f)) && last != line)
            {
                findings.Add($"{line}: byte 0x{value:X2}");
                last = line;
            }

            line += value == (byte)'\n' ? 1 : 0;
        }

        return findings;
    }
}
