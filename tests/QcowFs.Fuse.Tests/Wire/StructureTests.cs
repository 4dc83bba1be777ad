// Sizes of the structures are those of linux/fuse.h (7.45).
using System.Runtime.CompilerServices;
using QcowFs.Fuse.Wire;

namespace QcowFs.Fuse.Tests.Wire;

public sealed class StructureTests
{
    [Fact]
    public void Every_structure_has_the_size_that_the_kernel_gives_it()
    {
        (int Kernel, int Stated, int Real)[] sizes =
        [
            (40, InHeader.Size, Unsafe.SizeOf<InHeader>()),
            (16, OutHeader.Size, Unsafe.SizeOf<OutHeader>()),
            (16, InitIn.Size, Unsafe.SizeOf<InitIn>()),
            (64, InitOut.Size, Unsafe.SizeOf<InitOut>()),
            (88, Attributes.Size, Unsafe.SizeOf<Attributes>()),
            (104, AttributesOut.Size, Unsafe.SizeOf<AttributesOut>()),
            (16, GetAttributesIn.Size, Unsafe.SizeOf<GetAttributesIn>()),
            (88, SetAttributesIn.Size, Unsafe.SizeOf<SetAttributesIn>()),
            (128, EntryOut.Size, Unsafe.SizeOf<EntryOut>()),
            (8, ForgetIn.Size, Unsafe.SizeOf<ForgetIn>()),
            (8, BatchForgetIn.Size, Unsafe.SizeOf<BatchForgetIn>()),
            (16, ForgetOne.Size, Unsafe.SizeOf<ForgetOne>()),
            (8, OpenIn.Size, Unsafe.SizeOf<OpenIn>()),
            (16, OpenOut.Size, Unsafe.SizeOf<OpenOut>()),
            (16, BackingMap.Size, Unsafe.SizeOf<BackingMap>()),
            (24, ReleaseIn.Size, Unsafe.SizeOf<ReleaseIn>()),
            (24, FlushIn.Size, Unsafe.SizeOf<FlushIn>()),
            (40, ReadIn.Size, Unsafe.SizeOf<ReadIn>()),
            (40, WriteIn.Size, Unsafe.SizeOf<WriteIn>()),
            (8, WriteOut.Size, Unsafe.SizeOf<WriteOut>()),
            (16, FSyncIn.Size, Unsafe.SizeOf<FSyncIn>()),
            (32, AllocateIn.Size, Unsafe.SizeOf<AllocateIn>()),
            (24, SeekIn.Size, Unsafe.SizeOf<SeekIn>()),
            (8, SeekOut.Size, Unsafe.SizeOf<SeekOut>()),
            (80, StatFsOut.Size, Unsafe.SizeOf<StatFsOut>()),
            (24, DirectoryEntry.Size, Unsafe.SizeOf<DirectoryEntry>()),
            (152, DirectoryEntryPlus.Size, Unsafe.SizeOf<DirectoryEntryPlus>()),
            (24, RingCommandRequest.Size, Unsafe.SizeOf<RingCommandRequest>()),
            (288, RingEntryHead.Size, Unsafe.SizeOf<RingEntryHead>()),
            (24, InvalidateInodeOut.Size, Unsafe.SizeOf<InvalidateInodeOut>()),
            (16, InvalidateEntryOut.Size, Unsafe.SizeOf<InvalidateEntryOut>()),
        ];
        Assert.All(sizes, size =>
        {
            Assert.Equal(size.Kernel, size.Stated);
            Assert.Equal(size.Kernel, size.Real);
        });
    }

    [Fact]
    public void Payloads_of_reads_and_writes_begin_on_a_page()
    {
        foreach (int payload in new[] { 4096, 65536, 1 << 20 })
        {
            using var buffers = new ChannelBuffers(payload);
            unsafe
            {
                nuint page = (nuint)Environment.SystemPageSize;
                Assert.Equal(0u, (nuint)(buffers.Request + InHeader.Size + WriteIn.Size) % page);
                Assert.Equal(0u, (nuint)(buffers.Reply + OutHeader.Size) % page);
                Assert.True(buffers.RequestCapacity >= InHeader.Size + WriteIn.Size + payload);
                Assert.True(buffers.RequestCapacity >= 8192); // FUSE_MIN_READ_BUFFER
                Assert.Equal(OutHeader.Size + payload, buffers.ReplyCapacity);
                // The last bytes of both are there, and apart from each other.
                buffers.Request[buffers.RequestCapacity - 1] = 1;
                buffers.Reply[buffers.ReplyCapacity - 1] = 2;
                Assert.True(buffers.Request + buffers.RequestCapacity <= buffers.Reply);
            }
        }
    }
}
