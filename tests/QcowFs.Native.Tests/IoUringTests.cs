// The ring itself, without any FUSE.
using Xunit;

namespace QcowFs.Native.Tests;

public sealed unsafe class IoUringTests
{
    [SkippableFact]
    public void A_message_wakes_who_waits()
    {
        using IoUring ring = Create(4);
        var waker = new Thread(() => Assert.Equal(Errno.None, ring.Wake(42)));
        waker.Start();
        IoUringCompletion completion;
        while (!ring.TryTake(out completion)) Assert.Equal(Errno.None, ring.Enter(wait: true));
        waker.Join();
        Assert.Equal(new IoUringCompletion(42, 0), completion);
        Assert.False(ring.HasCompletion);
    }

    /// <summary>/dev/null takes any command; also far beyond the size of the queues.</summary>
    [SkippableFact]
    public void Each_command_has_one_completion_with_its_tag()
    {
        using IoUring ring = Create(4);
        for (ulong round = 0; round < 40; round++)
        {
            for (ulong i = 0; i < 4; i++)
            {
                Span<byte> data = ring.Prepare(1, (round * 4) + i, null, 0);
                Assert.Equal(IoUring.CommandBytes, data.Length);
                Assert.True(data.IndexOfAnyExcept((byte)0) < 0);
                data.Fill(0xFF);
            }
            List<ulong> tags = [];
            while (tags.Count < 4)
            {
                Assert.Equal(Errno.None, ring.Enter(wait: true));
                while (ring.TryTake(out IoUringCompletion completion))
                {
                    Assert.Equal(0, completion.Result);
                    tags.Add(completion.Tag);
                }
            }
            Assert.Equal([round * 4, (round * 4) + 1, (round * 4) + 2, (round * 4) + 3], tags.Order());
        }
    }

    [SkippableFact]
    public void A_file_that_is_none_makes_no_ring()
    {
        Create(1).Dispose();
        Assert.Null(IoUring.TryCreate(4, int.MaxValue, out Errno errno));
        Assert.Equal(Errno.EBADF, errno);
    }

    [Theory]
    [InlineData("0\n", new[] { 0 })]
    [InlineData("0-3\n", new[] { 0, 1, 2, 3 })]
    [InlineData("0-1,8,10-11\n", new[] { 0, 1, 8, 10, 11 })]
    [InlineData("", new int[0])]
    public void A_list_of_processors_is_read(string list, int[] members) => Assert.Equal(members, Processors.Parse(list).Order());

    [Fact]
    public void This_machine_has_the_processors_that_it_uses()
    {
        Assert.True(Processors.Possible().Count >= Processors.Online().Count);
        Assert.InRange(Environment.ProcessorCount, 1, Processors.Online().Count);
    }

    private static IoUring Create(int entries)
    {
        int file = Libc.Open("/dev/null", Libc.O_RDWR | Libc.O_CLOEXEC, 0);
        IoUring? ring = IoUring.TryCreate(entries, file, out Errno errno);
        _ = Libc.Close(file); // the ring holds it
        Skip.If(ring is null && errno is Errno.EPERM or Errno.EINVAL, $"io_uring is not to be had: {errno}");
        Assert.NotNull(ring);
        return ring;
    }
}
