// Power failures inside a repair: after each the guest reads what it read, the image is no worse than it was, and a repair from there
// ends where an undisturbed one ends.
using System.Buffers.Binary;
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class RepairTests
{
    private const string Small = "cluster_size=512";
    private const int Size = 96 << 10;
    private const int Sector = 512;

    public static TheoryData<string, InitialContent, RepairMode> Cases
    {
        get
        {
            TheoryData<string, InitialContent, RepairMode> cases = [];
            foreach (InitialContent content in (InitialContent[])[InitialContent.Full, InitialContent.Snapshot, InitialContent.Compressed])
            {
                foreach (string damage in (string[])["counts", "flags", "counts and flags", "no block", "block outside", "block twice", "blind"])
                    cases.Add(damage, content, RepairMode.All);
                cases.Add("too high", content, RepairMode.Leaks);
            }

            cases.Add("counts", InitialContent.Snapshot, RepairMode.Leaks);
            cases.Add("incomplete snapshot", InitialContent.Snapshot, RepairMode.All);
            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_crash_makes_nothing_worse(string damage, InitialContent content, RepairMode mode)
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry(Small, Size, content));
        for (ulong seed = 1; seed <= 2; seed++)
        {
            SimulatedDisk damaged = new();
            damaged.Create("image", Damage(prepared.File, damage, new Random((int)seed)));
            Trial trial = new(damaged, prepared, mode, $"{damage}, {content}, {mode}, seed {seed}");
            trial.CrashEverywhere(seed);
        }
    }

    // Opening a dirty image for writing repairs it first: whatever instant it crashes at, the mark is there or the counts are right.
    [Theory]
    [InlineData(InitialContent.Full)]
    [InlineData(InitialContent.Snapshot)]
    [InlineData(InitialContent.Compressed)]
    public void A_dirty_image_is_repaired_at_whatever_instant_its_opening_crashes(InitialContent content)
    {
        PreparedImage prepared = SimulatedImages.Prepare(new Geometry(Small, Size, content));
        byte[] bytes = Damage(prepared.File, "counts", new Random(1));
        bytes[Qcow2HeaderLayout.IncompatibleFeaturesAt + 7] = (byte)IncompatibleFeatures.Dirty;
        SimulatedDisk dirty = new();
        dirty.Create("image", bytes);
        bool opened = false;
        for (long at = 1; !opened; at++)
        {
            SimulatedDisk disk = dirty.Kill();
            disk.CrashAt(disk.Clock + at);
            try
            {
                SimulatedImages.Open(disk, prepared).Dispose();
                opened = true;
            }
            catch (SimulatedCrashException)
            {
                // As planned; disposing a disk that is off changes nothing.
            }

            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(20, seed: 1))
                JudgeDirty(survivor, prepared, $"{content}, crash at {at}, {choice}");
        }
    }

    private static void JudgeDirty(SimulatedDisk survivor, PreparedImage prepared, string where)
    {
        Qcow2Header header = Qcow2HeaderReader.Read(survivor.Open("image", readOnly: true));
        CheckReport report = Qcow2Checker.Check(survivor.Open("image", readOnly: true));
        Assert.True(header.IsDirty || report.ExitCode == 0, $"{where}: the mark fell before the counts were right");
        byte[] guest = new byte[Size];
        using (CowImage image = SimulatedImages.Open(survivor, prepared))
        {
            image.Read(0, guest);
            Assert.True(prepared.Guest.AsSpan().SequenceEqual(guest), $"{where}: the guest reads something else");
            image.Write(3000, guest.AsSpan(0, 5000));
            image.Close();
        }

        report = Qcow2Checker.Check(survivor.Crash(CrashChoice.Nothing).Open("image", readOnly: true));
        Assert.True(report.ExitCode == 0, $"{where}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
    }

    private static byte[] Damage(byte[] image, string damage, Random random)
    {
        byte[] bytes = (byte[])image.Clone();
        Qcow2Header header = Qcow2HeaderReader.Parse(bytes, "image");
        Span<byte> table = bytes.AsSpan((int)header.RefcountTableOffset, header.ClusterSize);
        if (damage.Contains("counts", StringComparison.Ordinal) || damage is "too high" or "blind")
            DamageCounts(bytes, header, random, onlyUp: damage == "too high");
        if (damage.Contains("flags", StringComparison.Ordinal))
            DamageFlags(bytes, header, random);
        if (damage == "no block")
            table[..8].Clear();
        if (damage == "block outside")
            BinaryPrimitives.WriteInt64BigEndian(table[16..], bytes.Length + 1024);
        if (damage == "block twice")
            table[..8].CopyTo(table[16..]);
        if (damage == "incomplete snapshot")
        {
            // The extra data becomes the end of the name.
            Span<byte> entry = bytes.AsSpan((int)header.SnapshotsOffset);
            BinaryPrimitives.WriteUInt16BigEndian(entry[14..], (ushort)(BinaryPrimitives.ReadUInt16BigEndian(entry[14..]) + entry[39]));
            entry[39] = 0;
        }

        if (damage == "blind")
            bytes[(int)header.L1Offset + 8 + 3] |= 0x80;
        if (header.Version >= 3)
            bytes[Qcow2HeaderLayout.IncompatibleFeaturesAt + 7] |= (byte)IncompatibleFeatures.Corrupt;
        return bytes;
    }

    private static void DamageCounts(byte[] bytes, Qcow2Header header, Random random, bool onlyUp)
    {
        int block = (int)BinaryPrimitives.ReadInt64BigEndian(bytes.AsSpan((int)header.RefcountTableOffset));
        for (int i = 0; i < header.RefcountsPerBlock; i++)
        {
            if (random.Next(8) != 0)
                continue;
            Span<byte> counts = bytes.AsSpan(block, header.ClusterSize);
            ulong count = RefcountEncoding.Get(counts, i, header.RefcountOrder);
            RefcountEncoding.Set(counts, i, header.RefcountOrder, onlyUp ? count + 1 : (ulong)random.Next(4));
        }
    }

    private static void DamageFlags(byte[] bytes, Qcow2Header header, Random random)
    {
        for (int i = 0; i < header.L1Size; i++)
        {
            Span<byte> l1 = bytes.AsSpan((int)header.L1Offset + i * L1Entry.Size);
            int table = (int)L1Entry.Read(l1).TableOffset;
            if (table == 0)
                continue;
            if (random.Next(4) == 0)
                l1[0] ^= 0x80;
            for (int at = table; at < table + header.ClusterSize; at += L2Entry.Size)
            {
                if (L2Entry.Read(bytes.AsSpan(at)).Raw != 0 && random.Next(8) == 0)
                    bytes[at] ^= 0x80;
            }
        }
    }

    /// <summary>One damaged image and one mode of repair.</summary>
    private sealed class Trial
    {
        private readonly SimulatedDisk _damaged;
        private readonly PreparedImage _prepared;
        private readonly RepairMode _mode;
        private readonly string _where;
        private readonly bool[] _readable;
        private readonly CheckReport _found;
        private readonly CheckReport _repaired;
        private readonly long _end;
        private int _number;

        public Trial(SimulatedDisk damaged, PreparedImage prepared, RepairMode mode, string where)
        {
            _damaged = damaged;
            _prepared = prepared;
            _mode = mode;
            _where = where;
            _readable = Readable(damaged, where);
            _found = Check(damaged);
            SimulatedDisk disk = damaged.Kill();
            _repaired = Repair(disk);
            _end = disk.Clock;
            JudgeEnd(disk, where);
        }

        /// <summary>Crashes the repair at each of its changes and syncs, and judges what may be left.</summary>
        public void CrashEverywhere(ulong seed)
        {
            Assert.True(_end > _damaged.Clock + 1, $"{_where}: nothing was repaired");
            for (long at = _damaged.Clock + 1; at <= _end; at++)
            {
                SimulatedDisk disk = _damaged.Kill();
                disk.CrashAt(at);
                Assert.Throws<SimulatedCrashException>(() => Repair(disk));
                foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(20, seed))
                    Judge(survivor, $"{_where}, crash at {at - _damaged.Clock}, {choice}");
            }
        }

        private void Judge(SimulatedDisk survivor, string where)
        {
            JudgeGuest(survivor, where);
            CheckReport report = Check(survivor);
            Assert.True(report.CheckErrors <= _found.CheckErrors, $"{where}: less can be checked");
            Assert.True(Count(report, "refcount-too-low") <= Count(_found, "refcount-too-low"), $"{where}: more counts are too low");

            // A count that was too low and became right shows a flag that was wrong all the time.
            // A new snapshot table is a leak until the header names it.
            string[] kinds = [.. _found.Findings.Select(f => f.Kind), "copied-wrong", "copied-missing", "leak"];
            Assert.Empty(report.Findings.Select(f => f.Kind).Except(kinds));

            SimulatedDisk again = survivor.Kill();
            Assert.True(Repair(again).ExitCode == _repaired.ExitCode, $"{where}: a second repair ends elsewhere");
            JudgeEnd(again, where);
            if (_number++ % 10 == 0)
                CrashAgain(survivor, again.Clock, where);
        }

        // A crash inside the repair of what a crash inside a repair left.
        private void CrashAgain(SimulatedDisk survivor, long end, string where)
        {
            for (long at = survivor.Clock + 1; at <= end; at += 1 + (_number % 4))
            {
                SimulatedDisk disk = survivor.Kill();
                disk.CrashAt(at);
                Assert.Throws<SimulatedCrashException>(() => Repair(disk));
                foreach ((CrashChoice choice, SimulatedDisk last) in disk.EnumerateCrashes(4, (ulong)at))
                {
                    SimulatedDisk third = last.Kill();
                    string there = $"{where}, then crash at {at - survivor.Clock}, {choice}";
                    Assert.True(Repair(third).ExitCode == _repaired.ExitCode, $"{there}: a third repair ends elsewhere");
                    JudgeEnd(third, there);
                }
            }
        }

        private void JudgeEnd(SimulatedDisk disk, string where)
        {
            SimulatedDisk durable = disk.Crash(CrashChoice.Nothing);
            JudgeGuest(durable, where + ", in the end");
            CheckReport report = Check(durable);
            Assert.True(report.ExitCode == _repaired.ExitCode, $"{where}: {string.Join("; ", report.Findings.Select(f => f.Message))}");
            bool marked = Qcow2HeaderReader.Read(durable.Open("image")).IsCorrupt;
            Assert.Equal(report.ExitCode is not (0 or 3), marked);
        }

        // Which sectors can be read; those hold what they held before the damage.
        private bool[] Readable(SimulatedDisk disk, string where)
        {
            bool[] readable = new bool[Size / Sector];
            byte[] bytes = new byte[Sector];
            using CowImage image = SimulatedImages.Open(disk.Kill(), _prepared, writable: false);
            for (int i = 0; i < readable.Length; i++)
            {
                try
                {
                    image.Read(i * Sector, bytes);
                }
                catch (ImageFormatException)
                {
                    continue;
                }

                readable[i] = true;
                Assert.True(_prepared.Guest.AsSpan(i * Sector, Sector).SequenceEqual(bytes), $"{where}: sector {i} reads as something else");
            }

            return readable;
        }

        private void JudgeGuest(SimulatedDisk disk, string where)
        {
            bool[] readable = Readable(disk, where);
            Assert.True(readable.Zip(_readable).All(now => now.First || !now.Second), $"{where}: sectors became unreadable");
        }

        private CheckReport Repair(SimulatedDisk disk)
        {
            using SimulatedStorage file = disk.Open("image");
            return Qcow2Repair.Run(file, _mode, windowClusters: 4096);
        }

        private static CheckReport Check(SimulatedDisk disk) => Qcow2Checker.Check(disk.Open("image", readOnly: true), windowClusters: 4096);

        private static int Count(CheckReport report, string kind) => report.Findings.Count(f => f.Kind == kind);
    }
}
