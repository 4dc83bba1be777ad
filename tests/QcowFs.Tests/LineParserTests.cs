// The command line, word for word: what is understood, and the one line for each wrong usage.
using QcowFs.CommandLine;
using Xunit;

namespace QcowFs.Tests;

public sealed class LineParserTests
{
    private static readonly Option Flag = new("flag", "a flag") { Short = 'w' };
    private static readonly Option Other = new("other-flag", "another flag");
    private static readonly Option Required = new("format", "needs a value", "FMT") { Short = 'f' };
    private static readonly Option Optional = new("journal", "may have a value", "SIZE") { ValueIsOptional = true };
    private static readonly Option List = new("", "mount list", "name[=value],...") { Short = 'o' };

    private static readonly Command Table = new(
        "mount", "test", ["SOURCE", "MOUNTPOINT", "[MORE]"], [Flag, Other, Required, Optional, List], _ => 0)
    { ListOption = List };

    [Fact]
    public void Options_and_operands_may_mix()
    {
        ParsedLine line = Parse("a", "-w", "--format", "raw", "b");
        Assert.True(line.Has(Flag));
        Assert.Equal("raw", line.Value(Required));
        Assert.Equal(["a", "b"], line.Operands);
    }

    [Theory]
    [InlineData("--format=raw")]
    [InlineData("-fraw")]
    [InlineData("-f", "raw")]
    [InlineData("-wf", "raw")]
    [InlineData("-o", "format=raw")]
    [InlineData("-oformat=raw")]
    [InlineData("-f", "qcow2", "-f", "raw")] // the last one counts
    public void Forms_of_one_option(params string[] words) => Assert.Equal("raw", Parse(words).Value(Required));

    [Fact]
    public void An_optional_value_follows_only_an_equals_sign()
    {
        ParsedLine line = Parse("--journal", "disk.qcow2", "/mnt");
        Assert.True(line.Has(Optional));
        Assert.Null(line.Value(Optional));
        Assert.Equal(["disk.qcow2", "/mnt"], line.Operands);
        Assert.Equal("4M", Parse("--journal=4M").Value(Optional));
        Assert.Equal("4M", Parse("-o", "journal=4M").Value(Optional));
        Assert.True(Parse("-o", "journal").Has(Optional));
    }

    [Fact]
    public void Two_dashes_end_the_options_and_one_dash_is_an_operand()
    {
        Assert.Equal(["-", "-w", "--flag"], Parse("-", "--", "-w", "--flag").Operands);
    }

    [Fact]
    public void A_mount_list_takes_underscores_and_what_mount_itself_passes()
    {
        ParsedLine line = Parse("-o", "rw,other_flag,defaults,auto,noauto,user,nofail,_netdev,x-systemd.automount,nosuid,nodev,noexec,noatime,ro");
        Assert.True(line.Has(Other));
        Assert.False(line.Has(Flag));
        Assert.Equal(["nosuid", "nodev", "noexec", "noatime", "ro"], line.MountWords);
        Assert.True(Parse("-o", "other-flag").Has(Other));
    }

    [Theory]
    [InlineData("--frob: unknown option; see \"qcowfs mount --help\"", "--frob")]
    [InlineData("--frob: unknown option; see \"qcowfs mount --help\"", "--frob=3")]
    [InlineData("-x: unknown option; see \"qcowfs mount --help\"", "-wx")]
    [InlineData("-o frob_x: unknown option; see \"qcowfs mount --help\"", "-o", "frob_x=1")]
    [InlineData("-o help: unknown option; see \"qcowfs mount --help\"", "-o", "help")]
    [InlineData("--flag: takes no value; see \"qcowfs mount --help\"", "--flag=1")]
    [InlineData("-w: takes no value; see \"qcowfs mount --help\"", "-w=1")]
    [InlineData("-o flag: takes no value; see \"qcowfs mount --help\"", "-o", "flag=1")]
    [InlineData("--format: needs a value; see \"qcowfs mount --help\"", "--format")]
    [InlineData("--format: needs a value; see \"qcowfs mount --help\"", "--format=")]
    [InlineData("-o format: needs a value; see \"qcowfs mount --help\"", "-o", "format")]
    [InlineData("SOURCE: missing; see \"qcowfs mount --help\"")]
    [InlineData("MOUNTPOINT: missing; see \"qcowfs mount --help\"", "a")]
    [InlineData("d: one argument too many; see \"qcowfs mount --help\"", "a", "b", "c", "d")]
    [InlineData("--: unknown option; see \"qcowfs mount --help\"", "--=x")]
    public void Wrong_usage(string message, params string[] words)
    {
        CommandFailure failure = Assert.Throws<CommandFailure>(() => LineParser.RequireOperands(Parse(words)));
        Assert.Equal(message, failure.Message);
        Assert.Equal(64, failure.ExitCode);
    }

    [Theory]
    [InlineData("0", 0L)]
    [InlineData("4096", 4096L)]
    [InlineData("1k", 1024L)]
    [InlineData("1K", 1024L)]
    [InlineData("64M", 67108864L)]
    [InlineData("3G", 3221225472L)]
    [InlineData("1T", 1099511627776L)]
    [InlineData("8388607T", 9223370937343148032L)]
    [InlineData("8388608T", null)] // 2^63
    [InlineData("9223372036854775808", null)]
    [InlineData("", null)]
    [InlineData("k", null)]
    [InlineData("-1", null)]
    [InlineData("1.5G", null)]
    [InlineData("1Q", null)]
    [InlineData("1 M", null)]
    [InlineData("0x10", null)]
    public void Sizes_are_powers_of_1024(string text, long? bytes)
    {
        Assert.Equal(bytes is not null, Sizes.TryParse(text, out long parsed));
        if (bytes is not null) Assert.Equal(bytes, parsed);
    }

    [Theory]
    [InlineData(0, "0 B")]
    [InlineData(999, "999 B")]
    [InlineData(1000, "0.98 KiB")]
    [InlineData(1536, "1.5 KiB")]
    [InlineData(1L << 30, "1 GiB")]
    [InlineData(1234567890, "1.15 GiB")]
    [InlineData(long.MaxValue, "8 EiB")]
    public void Sizes_are_printed_in_binary_units(long bytes, string text) => Assert.Equal(text, Sizes.Describe(bytes));

    [Fact]
    public void Help_names_every_option_and_operand()
    {
        string help = Help.ForCommand(Table);
        foreach (string word in new[] { "-w, --flag", "-f, --format=FMT", "--journal[=SIZE]", "-o name[=value],...", "SOURCE MOUNTPOINT [MORE]", "--help" })
            Assert.Contains(word, help, StringComparison.Ordinal);
    }

    private static ParsedLine Parse(params string[] words) => LineParser.Parse(Table, words);
}
