// The order of single writes and syncs, held against the writer's rules as they are made. Cheaper than crashes, and it cannot miss: no
// choice of what a crash leaves has to hit the one that tells.
using System.Buffers.Binary;
using QcowFs.Images.Engine;
using QcowFs.Images.Metadata;
using QcowFs.Images.Vhdx;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxOrderTests
{
    private const long HeaderAreaEnd = 1 << 20;

    /// <summary>W2 to W5, through a ring that is full most of the time.</summary>
    [Fact]
    public void Every_entry_keeps_the_rings_rules()
    {
        SimulatedDisk disk = VhdxRingTests.NewDisk();
        RingWatch watch = new(disk);
        Assert.Equal(VhdxRingTests.Rounds, VhdxRingTests.Work(disk));
        Assert.True(watch.Entries > VhdxRingTests.Rounds, "the ring was never full");
    }

    /// <summary>C1: where the pages of one commit need several entries, none of the table's is in an earlier one than a sector bitmap's.</summary>
    [Fact]
    public void Pages_of_bitmaps_are_logged_before_those_of_the_table()
    {
        PreparedVhdx prepared = VhdxImages.Prepare(VhdxKind.Differencing);
        SimulatedDisk disk = new();
        disk.Create("image", [.. prepared.File, .. new byte[4 << 20]]);
        using SimulatedStorage file = disk.Open("image");
        VhdxLayout layout = VhdxLayout.Read(file);
        VhdxState state = new()
        {
            Layout = layout,
            File = file,
            Cache = new MetadataCache(file, VhdxLimits.SectorSize, 4 << 20),
            Epoch = new ReaderEpoch(),
            Latch = new FailureLatch(null),
            Space = VhdxSpace.Scan(layout, file),
            Guids = new VhdxImages.CountedGuids(1),
            DurableLength = file.Length,
        };
        VhdxCommit commit = new(state, 0);
        commit.BeginUse();
        RingWatch watch = new(disk);
        int bitmapPages = commit.PagesPerEntry + 10;
        Change(state, layout.Regions.Bat.Offset);
        for (int i = 0; i < bitmapPages; i++)
            Change(state, prepared.File.Length + (i * VhdxLimits.SectorSize));
        commit.Run(static () => false);
        Region bat = layout.Regions.Bat;
        Assert.True(watch.Targets.Count > 1, "one entry held all");
        Assert.Equal(bitmapPages + 1, watch.Targets.Sum(targets => targets.Count));
        Assert.All(watch.Targets.SkipLast(1), targets => Assert.DoesNotContain(targets, offset => offset >= bat.Offset && offset < bat.End));
    }

    /// <summary>P1 and P2: nothing is written before what is there was synced, nothing but headers before both have a new file write
    /// GUID.</summary>
    [Fact]
    public void A_replay_syncs_and_renews_the_file_write_guid_before_anything_else()
    {
        SimulatedDisk disk = new();
        disk.Create("image", new LogFile().With(new LogItem(7, LogFile.Maps(2))).Bytes);
        byte[] before = disk.Content("image");
        using SimulatedStorage file = disk.Open("image");
        file.Write(LogFile.RingOffset, before.AsSpan(LogFile.RingOffset, 2 * LogFile.Sector)); // what a process that died left unsynced
        bool home = false;
        disk.BeforeCall = call =>
        {
            if ((call.Kind & StorageCalls.Changes) == StorageCalls.None)
                return;
            Assert.True(disk.Pending.All(change => change.FirstSector * 512 < HeaderAreaEnd || home), "P1: a write before the entries are durable");
            if (call.Offset < HeaderAreaEnd)
                return;
            home = true;
            byte[] durable = disk.DurableContent("image");
            foreach (int at in new[] { 0x10000, 0x20000 })
                Assert.False(durable.AsSpan(at + 16, 16).SequenceEqual(before.AsSpan(at + 16, 16)), "P2: the file write GUID is the old one");
        };
        Assert.NotNull(VhdxReplay.Run(file, new VhdxImages.CountedGuids(1)));
        Assert.True(home);
    }

    private static void Change(VhdxState state, long offset)
    {
        using PinnedPages pins = new(state.Cache);
        MetadataPage page = pins.Add(offset);
        lock (state.Cache.Gate)
        {
            state.Cache.BeginChange(page, CommitStage.Links);
            page.EndChange();
        }
    }

    /// <summary>Looks at each entry when it is about to be synced.</summary>
    private sealed class RingWatch
    {
        private readonly SimulatedDisk _disk;
        private readonly Region _ring;
        private readonly SimulatedStorage _file;
        private long _written = -1; // where in the ring the entry that is not yet synced begins
        private long _tail = -1; // of the newest durable entry
        private long _head;
        private ulong _sequence;

        public RingWatch(SimulatedDisk disk)
        {
            _disk = disk;
            _file = disk.Open("image", readOnly: true);
            _ring = VhdxLayout.LogRegionOf(VhdxHeaders.Read(_file).Current);
            disk.BeforeCall = Watch;
        }

        public int Entries { get; private set; }

        /// <summary>What the data descriptors of each entry name.</summary>
        public List<List<long>> Targets { get; } = [];

        private void Watch(StorageCall call)
        {
            if (call.Kind == StorageCalls.Write && call.Offset >= _ring.Offset && call.Offset < _ring.End)
                WatchWrite(call.Offset - _ring.Offset, call.Length);
            else if (call.Kind == StorageCalls.Sync && _written >= 0)
                WatchSync();
        }

        private void WatchWrite(long start, long length)
        {
            if (_written < 0)
                _written = start;
            bool isLive = _tail >= 0 && Sectors(start, length).Any(at => (at - _tail + _ring.Length) % _ring.Length < (_head - _tail + _ring.Length) % _ring.Length);
            Assert.False(isLive, $"W2: {length} bytes at {start} of the ring overwrite what lies between tail {_tail} and head {_head}");
        }

        private void WatchSync()
        {
            byte[] head = new byte[VhdxLimits.SectorSize];
            _file.Read(_ring.Offset + _written, head);
            Assert.True(LogEntryHeader.TryParse(head, _ring.Length, out LogEntryHeader entry));
            Assert.True(_sequence == 0 || entry.Sequence == _sequence + 1, $"W5: entry {entry.Sequence} follows {_sequence}");
            if (entry.Tail == _written)
            {
                Assert.True(_disk.Pending.All(change => IsRing(change) || change.FirstSector * 512 < HeaderAreaEnd),
                    "W3, W4: the tail moves past entries whose pages are not durable in their places");
            }

            Assert.NotEqual((_written + entry.Length) % _ring.Length, entry.Tail); // W4: the head never meets the tail
            Targets.Add(ReadTargets(entry, head));
            _sequence = entry.Sequence;
            _tail = entry.Tail;
            _head = (_written + entry.Length) % _ring.Length;
            _written = -1;
            Entries++;
        }

        private List<long> ReadTargets(LogEntryHeader entry, byte[] head)
        {
            List<long> targets = [];
            for (int i = 0; i < entry.DescriptorCount; i++)
            {
                long at = LogEntryHeader.Size + (i * (long)LogDescriptor.Size);
                byte[] descriptor = new byte[LogDescriptor.Size];
                _file.Read(_ring.Offset + ((_written + at) % _ring.Length), descriptor);
                targets.Add(BinaryPrimitives.ReadInt64LittleEndian(descriptor.AsSpan(16)));
            }

            Assert.NotEmpty(head);
            return targets;
        }

        private bool IsRing(PendingChange change) => change.FirstSector * 512 >= _ring.Offset && change.FirstSector * 512 < _ring.End;

        private static IEnumerable<long> Sectors(long start, long length)
        {
            for (long at = start; at < start + length; at += VhdxLimits.SectorSize)
                yield return at;
        }
    }
}
