// The journal in a small scope, exhaustively: every sequence of a few operations on two blocks, crashed at every instant of its last
// operation in every way in which the unsynced writes can survive. What is wrong with the protocol shows in few steps.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Testing;
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests;

public sealed class JournalModelTests(ITestOutputHelper output)
{
    [Fact]
    public void One_unit_per_block() => new JournalModel(new Geometry("cluster_size=512", 1024), "awdsc").All(length: 4, output.WriteLine);

    [Fact]
    public void Two_units_per_block() => new JournalModel(new Geometry("cluster_size=1024", 2048), "abwdsc").All(length: 3, output.WriteLine);

    [Fact]
    public void Two_units_per_block_over_a_backing() =>
        new JournalModel(new Geometry("cluster_size=1024", 2048, InitialContent.Backing), "abds").All(length: 4, output.WriteLine);

    /// <summary>Writes of content that is there already, overwrites and discards of the owner and of the other: I11 at every crash.</summary>
    [Fact]
    public void One_unit_per_block_with_hits() =>
        new JournalModel(new Geometry("cluster_size=512", 1024), "xXYDsc", shares: true).All(length: 3, output.WriteLine);

    [Fact]
    public void Two_units_per_block_with_hits() =>
        new JournalModel(new Geometry("cluster_size=1024", 2048), "xXds", shares: true).All(length: 3, output.WriteLine);

    /// <summary>What begins with an owner that is durable, which can then be rewritten in place without a sync.</summary>
    [Fact]
    public void Hits_of_a_durable_owner() =>
        new JournalModel(new Geometry("cluster_size=512", 1024), "yYdDs", shares: true).All(length: 3, output.WriteLine, after: "xs");
}

/// <summary>All sequences over an alphabet: a, b write the halves of block 0 (the same bytes where it has one sector), w all of block 1,
/// d discards block 0, D block 1, s syncs, c checkpoints, i is the idle timer; x and y write one of two contents to block 0, X and Y to
/// block 1.</summary>
internal sealed class JournalModel(Geometry geometry, string alphabet, bool shares = false)
{
    // After so many crash states one is gone on with: the same writes again, and a clean close.
    private const int GoOnWithOneIn = 16;

    private readonly PreparedImage _prepared = SimulatedImages.Prepare(geometry);
    private readonly int _block = geometry.Size / 2;
    private ulong _ids;

    /// <summary>Crash states that were judged.</summary>
    public long States { get; private set; }

    public void All(int length, Action<string>? log, string after = "")
    {
        char[] sequence = new char[length];
        long sequences = 0;
        Extend(0);
        log?.Invoke($"{geometry} {alphabet}: {sequences} sequences of up to {length}{(after == "" ? "" : " after " + after)}, {States} crash states");

        void Extend(int count)
        {
            foreach (char operation in alphabet)
            {
                // A journal exists after the first write; what comes before it is not its matter.
                if (count == 0 && after == "" && operation is 's' or 'c' or 'd' or 'D' or 'i')
                    continue;
                sequence[count] = operation;
                string text = after + new string(sequence, 0, count + 1);
                sequences++;
                Crash(text);
                if (count + 1 < length)
                    Extend(count + 1);
            }
        }
    }

    /// <summary>Crashes at every instant of the sequence's last operation.</summary>
    public void Crash(string sequence)
    {
        (long first, long last) = (long.MaxValue, 0);
        SimulatedDisk rehearsal = SimulatedImages.DiskOf(_prepared);
        Run(rehearsal, sequence, new DiskModel(_prepared.Guest), ref first, ref last);
        for (long instant = first; instant <= last; instant++)
        {
            SimulatedDisk disk = SimulatedImages.DiskOf(_prepared);
            DiskModel model = new(_prepared.Guest);
            disk.CrashAt(instant);
            long acknowledged = Run(disk, sequence, model, ref first, ref last);
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(200, 1))
            {
                States++;
                Judge(survivor, model, $"{geometry} {sequence} instant {instant} {choice}");
                if (shares && States % GoOnWithOneIn == 0)
                    GoOn(survivor, model.Clone(), sequence, $"{geometry} {sequence} instant {instant} {choice}");
            }

            DiskModel kept = model.Clone();
            kept.Sync(acknowledged);
            Judge(disk.Kill(), kept, $"{geometry} {sequence} instant {instant} kill");
        }
    }

    private void Judge(SimulatedDisk disk, DiskModel model, string where)
    {
        CrashRun.Judge(disk, model, _prepared, where, harmlessAllowed: shares);
        if (shares && SharingImages.FindBrokenSharing(disk, _prepared) is { } broken)
            throw new InvalidOperationException($"{where}: {broken}");
    }

    /// <summary>The same writes again after a crash, and a clean close: nothing is leaked and no flag is missing.</summary>
    private void GoOn(SimulatedDisk disk, DiskModel model, string sequence, string where)
    {
        disk = disk.Kill();
        using (CowImage image = Open(disk))
        {
            model.Adopt(image);
            if (image.Map.Recovery is LeakCollector collector)
                image.Recover(commit => collector.Run(commit, windowClusters: 16));
            for (int i = 0; i < sequence.Length; i++)
                Do(image, model, sequence[i], (byte)(i + 1));
            image.Close();
        }

        model.Sync();
        Judge(disk.Crash(CrashChoice.Nothing), model, where + ", then closed");
        SharingModelTests.AssertClean(disk, where + ", then closed");
    }

    private CowImage Open(SimulatedDisk disk)
    {
        JournalOptions journal = new() { RingBytes = 32 << 10, NewId = () => new UInt128(1, ++_ids) };

        // Advice, whose own crashes are no matter of the journal's.
        return shares ? SharingImages.Open(disk, _prepared, journal: journal, indexDisk: new SimulatedDisk()) : SimulatedImages.Open(disk, _prepared, journal: journal);
    }

    /// <summary>Runs a sequence and gives the instants of its last operation. Returns the model's mark of what was acknowledged.</summary>
    private long Run(SimulatedDisk disk, string sequence, DiskModel model, ref long first, ref long last)
    {
        long acknowledged = model.Mark;
        try
        {
            using CowImage image = Open(disk);
            for (int i = 0; i < sequence.Length; i++)
            {
                if (i == sequence.Length - 1)
                    first = Math.Min(first, disk.Clock + 1);
                Do(image, model, sequence[i], (byte)(i + 1));
                acknowledged = model.Mark;
            }

            last = Math.Max(last, disk.Clock + 1);
        }
        catch (SimulatedCrashException)
        {
            // The crash that was asked for.
        }

        return acknowledged;
    }

    private void Do(CowImage image, DiskModel model, char operation, byte value)
    {
        int half = Math.Max(512, _block / 2);
        switch (operation)
        {
            case 'a':
                Write(0, half);
                break;
            case 'b':
                Write(_block - half, half);
                break;
            case 'w':
                Write(_block, _block);
                break;
            case 'x' or 'y':
                value = (byte)operation;
                Write(0, _block);
                break;
            case 'X' or 'Y':
                value = (byte)char.ToLowerInvariant(operation);
                Write(_block, _block);
                break;
            case 'd' or 'D':
                int discarded = operation == 'd' ? 0 : _block;
                model.Zero(discarded, _block);
                image.Discard(discarded, _block);
                break;
            case 'c':
                ((Qcow2BlockMap)image.Map).JournalCommit!.Settle();
                break;
            default:
                long mark = model.Mark;
                image.Sync();
                model.Sync(mark);
                break;
        }

        void Write(int offset, int length)
        {
            byte[] bytes = new byte[length];
            bytes.AsSpan().Fill(value);
            model.Write(offset, bytes);
            image.Write(offset, bytes);
        }
    }
}
