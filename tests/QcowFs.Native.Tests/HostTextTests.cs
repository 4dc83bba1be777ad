// File names survive the way to text and back, whatever bytes they hold.
using System.Text;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Native.Tests;

public sealed class HostTextTests
{
    [Fact]
    public void Any_bytes_survive()
    {
        ulong seed = Seeds.Between(1, 1).Single();
        Random random = new((int)seed);
        for (int round = 0; round < 20_000; round++)
        {
            byte[] name = new byte[random.Next(12)];
            random.NextBytes(name);
            // Mostly text, so that sequences of several bytes are met whole, cut and mixed up.
            if (random.Next(2) == 0) name = [.. Encoding.UTF8.GetBytes("a\u00e9\u20ac\U0001F600"[random.Next(3)..]), .. name];
            Assert.Equal(name, HostText.Encode(HostText.Decode(name)));
        }
    }

    [Theory]
    [InlineData("disk.qcow2")]
    [InlineData("\u00e9\u20ac\U0001F600")]
    [InlineData("")]
    public void Text_stays_as_it_is(string text)
    {
        Assert.Equal(text, HostText.Decode(Encoding.UTF8.GetBytes(text)));
        Assert.Equal(Encoding.UTF8.GetBytes(text), HostText.Encode(text));
        Assert.Equal(text, HostText.Show(text));
        Assert.False(HostText.HasEscapes(text));
    }

    [Fact]
    public void Other_bytes_are_shown_as_numbers()
    {
        Assert.Equal("x\\xff\\x80y", HostText.Show(HostText.Decode([(byte)'x', 0xFF, 0x80, (byte)'y'])));
        Assert.Equal("\\xed\\xa0\\x80", HostText.Show(HostText.Decode([0xED, 0xA0, 0x80]))); // a surrogate is no UTF-8
    }

    [Fact]
    public void Users_and_groups_are_found_by_name()
    {
        Assert.Equal(0u, Libc.FindUser("root"));
        Assert.Equal(0u, Libc.FindGroup("root"));
        Assert.Null(Libc.FindUser("there is no such user"));
        Assert.Null(Libc.FindGroup("there is no such group"));
    }
}
