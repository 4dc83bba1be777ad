// Replay: what counts, what is refused, and that it can be interrupted. The images here are made by the real writer, then damaged.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class JournalReplayTests
{
    private const int Cluster = 4096;
    private static readonly PreparedImage Prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096", 1 << 20));

    [Fact]
    public void What_was_synced_counts_after_a_power_failure_and_what_was_not_is_dropped()
    {
        (SimulatedDisk disk, DiskModel model) = Journaled(commits: 3, intents: 2);
        disk = disk.Crash(CrashChoice.Everything);
        JournalReplay replay = Plan(disk);
        Assert.Equal(3, replay.Replayed);
        Assert.False(replay.AfterKill);
        Assert.Equal(JournalVerdict.Unsynced, replay.Entries[^1].Verdict);
        Assert.Contains("3 journal records replayed, 1 that no sync had acknowledged dropped, from byte", replay.Summary);
        JournalFacts facts = replay.Describe();
        Assert.Equal(["replayed", "replayed", "replayed", "unsynced"], facts.Records.Select(r => r.Verdict));
        Assert.Equal(["commit", "commit", "commit", "intent"], facts.Records.Select(r => r.Kind));
        CrashRun.Judge(disk, model, Prepared, "power failure");
    }

    [Fact]
    public void Everything_counts_after_a_kill()
    {
        (SimulatedDisk disk, DiskModel model) = Journaled(commits: 2, intents: 3);
        disk = disk.Kill();
        model.Sync();
        JournalReplay replay = Plan(disk);
        Assert.True(replay.AfterKill);
        Assert.Equal(replay.Entries.Count, replay.Replayed);
        CrashRun.Judge(disk, model, Prepared, "kill");
    }

    [Fact]
    public void A_commit_whose_data_is_lost_was_never_acknowledged()
    {
        (SimulatedDisk disk, _) = Journaled(commits: 3, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        JournalCheckRange(Plan(disk), last: true, out long offset);
        Overwrite(disk, offset, [0xEE]);
        JournalReplay replay = Plan(disk);
        Assert.Equal(2, replay.Replayed);
        Assert.Equal(JournalVerdict.NotAcknowledged, replay.Entries[^1].Verdict);

        // A confirmed one counts whatever its data says since: the guest may have overwritten it.
        JournalCheckRange(replay, last: false, out offset);
        Overwrite(disk, offset, [0xEE]);
        Assert.Equal(2, Plan(disk).Replayed);
    }

    [Fact]
    public void A_mount_without_w_sees_what_a_replay_makes_and_changes_nothing()
    {
        (SimulatedDisk disk, _) = Journaled(commits: 4, intents: 2);
        foreach (SimulatedDisk left in new[] { disk.Kill(), disk.Crash(CrashChoice.Everything) })
        {
            byte[] before = left.Content("image");
            byte[] seen = ReadAll(left, writable: false);
            Assert.Equal(0, Qcow2Checker.Check(left.Open("image", readOnly: true)).Corruptions);
            Assert.Equal(before, left.Content("image"));
            Assert.Equal(seen, ReadAll(left, writable: true));
            Assert.False(Qcow2HeaderReader.Read(left.Open("image")).HasJournal);
        }
    }

    [Fact]
    public void A_repair_replays_and_makes_the_image_plain()
    {
        (SimulatedDisk disk, DiskModel model) = Journaled(commits: 4, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        model.Sync();
        CheckReport report = Qcow2Repair.Run(disk.Open("image"), RepairMode.All);
        Assert.Equal(0, report.ExitCode);
        Qcow2Header header = Qcow2HeaderReader.Read(disk.Open("image"));
        Assert.False(header.HasJournal);
        Assert.Null(header.FindExtension(HeaderExtensionType.Journal));
        SimulatedImages.JudgeByQemu(disk, Prepared, model.Current, "repaired");
    }

    /// <summary>Y5, Y6: a replay that is interrupted at any instant, in every way, is repeated with the same outcome.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_replay_can_be_interrupted(bool killed)
    {
        (SimulatedDisk disk, DiskModel model) = Journaled(commits: 3, intents: 2);
        SimulatedDisk left = killed ? disk.Kill() : disk.Crash(CrashChoice.Everything);
        DiskModel everything = model.Clone();
        everything.Sync();
        long end = left.Kill().Clock + 40;
        for (long instant = left.Clock + 1; instant < end; instant++)
        {
            SimulatedDisk replaying = left.Kill();
            replaying.CrashAt(instant);
            try
            {
                using CowImage image = SimulatedImages.Open(replaying, Prepared);
                end = instant; // the replay was over
            }
            catch (SimulatedCrashException)
            {
                // The crash that was asked for.
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in replaying.EnumerateCrashes(40, 3))
            {
                // What nobody synced may go in a power failure until the replay's decision is durable.
                bool isDecided = !Qcow2HeaderReader.Read(survivor.Open("image")).HasJournal || Plan(survivor).Superblock.Adopted != 0;
                CrashRun.Judge(survivor, killed && isDecided ? everything : model, Prepared, $"instant {instant} {choice}");
            }
        }
    }

    [Fact]
    public void A_chain_that_ends_before_what_was_acknowledged_is_refused()
    {
        (SimulatedDisk disk, _) = Journaled(commits: 3, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        Overwrite(disk, Plan(disk).Entries[1].HostOffset + 20, [0xEE]);
        AssertRefused(disk, "its records end with 1, but record 2 was acknowledged");
        Assert.Contains("data can be lost", Refusal(disk).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void One_whole_superblock_is_enough()
    {
        (SimulatedDisk disk, DiskModel model) = Journaled(commits: 2, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        long start = Plan(disk).Area.Start;
        Overwrite(disk, start + 50, [0xEE]);
        CrashRun.Judge(disk, model, Prepared, "one superblock");
        Overwrite(disk, start + JournalLayout.BlockSize + 50, [0xEE]);
        AssertRefused(disk, "neither copy of its superblock is whole");
    }

    [Fact]
    public void Superblocks_that_lie_are_refused()
    {
        AssertRefused(WithSuperblock(s => s with { VirtualSize = s.VirtualSize + 512 }), "it was written for another image");
        AssertRefused(WithSuperblock(s => s with { RingBytes = s.RingBytes * 2 }), "its ring is at byte");
        AssertRefused(WithSuperblock(s => s with { TailOffset = s.RingBytes }), "its tail is at byte");
        AssertRefused(WithSuperblock(s => s with { TailOffset = 1 }), "its tail is at byte");
        AssertRefused(WithSuperblock(s => s with { TailSequence = JournalLayout.MaxSequence + 1 }), "are impossible");
        AssertRefused(WithSuperblock(s => s with { FileLength = 1L << 40 }), "the image is cut short");
        AssertRefused(WithSuperblock(s => s with { Confirmed = 1000 }), "record 1000 was acknowledged");
        AssertRefused(WithSuperblock(s => s with { Generation = s.Generation - 1, Confirmed = 1 }, other: true), "disagree");
    }

    [Fact]
    public void A_file_that_is_cut_short_is_refused()
    {
        (SimulatedDisk disk, _) = Journaled(commits: 1, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        JournalArea area = Plan(disk).Area;
        using (SimulatedStorage file = disk.Open("image"))
            file.SetLength(area.Offset + area.Length - 4096);
        AssertRefused(disk, "the image is cut short");
    }

    [Theory]
    [InlineData(0, 1, "expected a multiple of the cluster size")]
    [InlineData(0, 4095, "expected a multiple of the cluster size")]
    [InlineData(8, 4096, "whole clusters with a ring of")]
    [InlineData(8, 1L << 40, "whole clusters with a ring of")]
    public void An_extension_out_of_bounds_is_refused(int at, long value, string problem)
    {
        (SimulatedDisk disk, _) = Journaled(commits: 1, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        HeaderExtension extension = Qcow2HeaderReader.Read(disk.Open("image")).FindExtension(HeaderExtensionType.Journal)!;
        byte[] bytes = new byte[8];
        BinaryPrimitives.WriteInt64BigEndian(bytes, value);
        Overwrite(disk, extension.DataOffset + at, bytes);
        AssertRefused(disk, problem);
    }

    [Theory]
    [InlineData(0L, "names 8 bytes at byte 0, which no record can")]
    [InlineData(-8L, "which no record can")]
    [InlineData(1L << 50, "which no record can")]
    [InlineData(-1L, "which no record can")] // the journal itself
    public void A_record_that_names_what_no_record_can_is_refused(long target, string problem)
    {
        (SimulatedDisk disk, _) = Journaled(commits: 1, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        JournalReplay replay = Plan(disk);
        RedoBuffer redo = new();
        redo.Add(target == -1 ? replay.Area.RingOffset : target, new byte[8]);
        Append(disk, replay, redo, []);
        AssertRefused(disk, problem);
    }

    /// <summary>Right in form, with the next sequence, in the place of the next record, but of another journal.</summary>
    [Fact]
    public void Stale_records_of_an_earlier_journal_are_none()
    {
        (SimulatedDisk disk, DiskModel model) = Journaled(commits: 2, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        JournalReplay replay = Plan(disk);
        RedoBuffer redo = new();
        redo.Add(Qcow2HeaderReader.Read(disk.Open("image")).L1Offset, new byte[8]);
        Append(disk, replay, redo, [], id: replay.Superblock.Id + 1);
        Assert.Equal(2, Plan(disk).Entries.Count);
        CrashRun.Judge(disk, model, Prepared, "stale");

        // With the id of this journal it would be one.
        Append(disk, replay, redo, []);
        Assert.Equal(3, Plan(disk).Entries.Count);
    }

    [Fact]
    public void Guest_data_that_imitates_records_is_data()
    {
        (SimulatedDisk disk, DiskModel model) = Journaled(commits: 2, intents: 0, (image, guest) =>
        {
            JournalReplay replay = Plan(((LatchedStorage)((JournaledFile)((Qcow2BlockMap)image.Map).State.File).Inner).Inner);
            byte[] record = new byte[8 * Cluster];
            ((Qcow2BlockMap)image.Map).State.File.Read(replay.Area.Start, record);
            guest.Write(64 * Cluster, record);
            image.Write(64 * Cluster, record);
            image.Sync();
            guest.Sync();
        });
        disk = disk.Crash(CrashChoice.Everything);
        Assert.Equal(3, Plan(disk).Replayed);
        CrashRun.Judge(disk, model, Prepared, "imitation");
    }

    /// <summary>J9: an older record must not be written over what a freed block holds now.</summary>
    [Fact]
    public void A_revoked_block_that_holds_data_now_is_left_alone()
    {
        (SimulatedDisk disk, _) = Journaled(commits: 1, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        JournalReplay replay = Plan(disk);
        long end = disk.Open("image").Length;
        Overwrite(disk, end, Enumerable.Repeat((byte)7, 2 * Cluster).ToArray());
        RedoBuffer redo = new();
        redo.Add(end + 8, [1, 1, 1, 1, 1, 1, 1, 1]);
        redo.Add(end + Cluster + 8, [1, 1, 1, 1, 1, 1, 1, 1]);
        Append(disk, replay, redo, []);
        redo.Clear();
        redo.Add(end + Cluster + 16, [2, 2, 2, 2, 2, 2, 2, 2]);
        Append(disk, Plan(disk), redo, [new JournalRange(end, Cluster), new JournalRange(end + Cluster, Cluster)]);
        Plan(disk).Apply();
        byte[] content = disk.Content("image").AsSpan((int)end).ToArray();
        Assert.All(content.AsSpan(0, Cluster + 16).ToArray(), b => Assert.Equal(7, b));

        // A revoke acts on earlier records, not on its own.
        Assert.Equal(2, content[Cluster + 16]);
    }

    /// <summary>The largest journal, full: it is read twice, in large pieces, and little else is.</summary>
    [Fact]
    public void A_full_journal_is_read_twice()
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry("cluster_size=4096,preallocation=metadata", 4 << 20));
        CountingStorage file = new();
        file.Write(0, prepared.File);
        int records = FullJournal.Make(file, JournalLayout.MaxRingBytes);
        Assert.Equal(JournalLayout.MaxRingBytes / JournalLayout.BlockSize, records);
        file.Reset();
        JournalReplay replay = Plan(file);
        Assert.Equal(records, replay.Replayed);
        Assert.InRange(file.BytesRead, JournalLayout.MaxRingBytes, JournalLayout.MaxRingBytes + (1 << 20));
        Assert.InRange(file.Reads, 64, 80);
        replay.Apply();
        Assert.InRange(file.BytesRead, 2 * JournalLayout.MaxRingBytes, (2 * JournalLayout.MaxRingBytes) + (2 << 20));
        Assert.InRange(file.Reads, 128, 160);
        Assert.Equal(2, file.Syncs);
    }

    [Fact]
    public void A_journal_needs_version_3_and_room_in_the_header()
    {
        PreparedImage old = SimulatedImages.Prepare(new Geometry("cluster_size=4096,compat=0.10", 1 << 20));
        Qcow2Header header = Qcow2HeaderReader.Parse(old.File, "disk");
        Assert.Equal("a journal needs version 3 of the format, the image is version 2", JournalHeader.FindObstacle(header));
        Assert.Contains("compat=1.1", JournalHeader.AdviceFor(header, "disk"));
        header = Qcow2HeaderReader.Parse(Prepared.File, "disk");
        Assert.Null(JournalHeader.FindObstacle(header));
        header = header with { Extensions = [.. header.Extensions, new HeaderExtension((HeaderExtensionType)0x12345678, new byte[Cluster - header.ExtensionsEnd - 16])] };
        Assert.Equal("the header has no room for the journal's extension", JournalHeader.FindObstacle(header));
    }

    /// <summary>Counts what a replay costs.</summary>
    private sealed class CountingStorage : IStorage
    {
        private readonly MemoryStorage _memory = new("disk");

        public string Name => _memory.Name;

        public long Length => _memory.Length;

        public bool IsReadOnly => false;

        public long Reads { get; private set; }

        public long BytesRead { get; private set; }

        public long Syncs { get; private set; }

        public void Reset() => Reads = BytesRead = Syncs = 0;

        public void Read(long offset, Span<byte> destination)
        {
            Reads++;
            BytesRead += destination.Length;
            _memory.Read(offset, destination);
        }

        public void Write(long offset, ReadOnlySpan<byte> source) => _memory.Write(offset, source);

        public void WriteZeroes(long offset, long length) => _memory.WriteZeroes(offset, length);

        public void Discard(long offset, long length) => _memory.Discard(offset, length);

        public void Reserve(long offset, long length) => _memory.Reserve(offset, length);

        public void SetLength(long length) => _memory.SetLength(length);

        public void Sync() => Syncs++;

        public void Dispose() => _memory.Dispose();
    }

    private static void JournalCheckRange(JournalReplay replay, bool last, out long offset)
    {
        IReadOnlyList<JournalRecordFacts> records = replay.Describe().Records;
        JournalRecordFacts record = last ? records.Last(r => r.Checks.Count > 0) : records.First(r => r.Checks.Count > 0);
        offset = record.Checks[0].Offset;
    }

    /// <summary>A disk with a journal of some commits, and then some changes that nobody synced.</summary>
    private static (SimulatedDisk Disk, DiskModel Model) Journaled(int commits, int intents, Action<CowImage, DiskModel>? more = null)
    {
        SimulatedDisk disk = SimulatedImages.DiskOf(Prepared);
        DiskModel model = new(Prepared.Guest);
        using CowImage image = SimulatedImages.Open(disk, Prepared, cacheSize: 1 << 20, journal: new JournalOptions { RingBytes = 256 << 10, NewId = static () => 4711 });
        for (int i = 0; i < commits + intents; i++)
        {
            byte[] bytes = new byte[700];
            bytes.AsSpan().Fill((byte)(i + 1));
            model.Write(i * 5 * Cluster, bytes);
            image.Write(i * 5 * Cluster, bytes);
            if (i >= commits)
                continue;
            image.Sync();
            model.Sync();
        }

        more?.Invoke(image, model);
        return (disk.Kill(), model);
    }

    private static JournalReplay Plan(SimulatedDisk disk) => Plan(disk.Open("image"));

    private static JournalReplay Plan(IStorage file) => JournalReplay.Plan(Qcow2HeaderReader.Read(file), file);

    private static void Append(SimulatedDisk disk, JournalReplay replay, RedoBuffer redo, IReadOnlyList<JournalRange> revokes, UInt128? id = null)
    {
        JournalContent content = new(JournalRecordKind.Commit, 0, false, revokes, []);
        JournalEntry last = replay.Entries[^1];
        long next = last.HostOffset + (JournalLayout.BlocksFor(last.Header.Length) * JournalLayout.BlockSize);

        // A ring that begins where the next record belongs.
        JournalArea area = new(next - JournalLayout.RingStart, JournalLayout.RingStart + JournalLayout.MinRingBytes);
        JournalSuperblock superblock = replay.Superblock with { Id = id ?? replay.Superblock.Id, TailSequence = last.Header.Sequence + 1 };
        _ = new JournalRing(disk.Open("image"), area, superblock).Append(content, redo);
    }

    private static SimulatedDisk WithSuperblock(Func<JournalSuperblock, JournalSuperblock> change, bool other = false)
    {
        (SimulatedDisk disk, _) = Journaled(commits: 1, intents: 0);
        disk = disk.Crash(CrashChoice.Everything);
        JournalReplay replay = Plan(disk);
        JournalSuperblock changed = change(replay.Superblock with { Generation = replay.Superblock.Generation + (other ? 1UL : 0UL) });
        byte[] sector = new byte[JournalLayout.SuperblockSize];
        changed.WriteTo(sector);
        long copy = (long)(replay.Superblock.Generation + (other ? 1UL : 0UL)) % JournalLayout.SuperblockCopies;
        Overwrite(disk, replay.Area.Start + (copy * JournalLayout.BlockSize), sector);
        return disk;
    }

    private static void Overwrite(SimulatedDisk disk, long offset, byte[] bytes)
    {
        using SimulatedStorage file = disk.Open("image");
        file.Write(offset, bytes);
        file.Sync();
    }

    private static byte[] ReadAll(SimulatedDisk disk, bool writable)
    {
        using CowImage image = SimulatedImages.Open(disk, Prepared, writable);
        byte[] bytes = new byte[image.Length];
        image.Read(0, bytes);
        return bytes;
    }

    private static ImageFormatException Refusal(SimulatedDisk disk) =>
        Assert.Throws<ImageFormatException>(() => SimulatedImages.Open(disk, Prepared));

    /// <summary>Refused for reading, writing, checking and repairing, with nothing of it replayed.</summary>
    private static void AssertRefused(SimulatedDisk disk, string problem)
    {
        byte[] before = disk.Content("image");
        Assert.Contains(problem, Refusal(disk).Message, StringComparison.Ordinal);
        Assert.Throws<ImageFormatException>(() => SimulatedImages.Open(disk, Prepared, writable: false));
        Assert.Throws<ImageFormatException>(() => Qcow2Checker.Check(disk.Open("image", readOnly: true)));
        Assert.Throws<ImageFormatException>(() => Qcow2Repair.Run(disk.Open("image"), RepairMode.All));
        Assert.Equal(before, disk.Content("image"));
    }
}
