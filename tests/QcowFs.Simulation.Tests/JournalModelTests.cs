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
}

/// <summary>All sequences over an alphabet: a, b write the halves of block 0 (the same bytes where it has one sector), w all of block 1,
/// d discards block 0, s syncs, c checkpoints, i is the idle timer.</summary>
internal sealed class JournalModel(Geometry geometry, string alphabet)
{
    private readonly PreparedImage _prepared = SimulatedImages.Prepare(geometry);
    private readonly int _block = geometry.Size / 2;
    private ulong _ids;

    /// <summary>Crash states that were judged.</summary>
    public long States { get; private set; }

    public void All(int length, Action<string>? log)
    {
        char[] sequence = new char[length];
        long sequences = 0;
        Extend(0);
        log?.Invoke($"{geometry} {alphabet}: {sequences} sequences of up to {length}, {States} crash states");

        void Extend(int count)
        {
            foreach (char operation in alphabet)
            {
                // A journal exists after the first write; what comes before it is not its matter.
                if (count == 0 && operation is 's' or 'c' or 'd' or 'i')
                    continue;
                sequence[count] = operation;
                string text = new(sequence, 0, count + 1);
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
                CrashRun.Judge(survivor, model, _prepared, $"{geometry} {sequence} instant {instant} {choice}");
            }

            DiskModel kept = model.Clone();
            kept.Sync(acknowledged);
            CrashRun.Judge(disk.Kill(), kept, _prepared, $"{geometry} {sequence} instant {instant} kill");
        }
    }

    /// <summary>Runs a sequence and gives the instants of its last operation. Returns the model's mark of what was acknowledged.</summary>
    private long Run(SimulatedDisk disk, string sequence, DiskModel model, ref long first, ref long last)
    {
        long acknowledged = model.Mark;
        try
        {
            using CowImage image = SimulatedImages.Open(disk, _prepared, journal: new JournalOptions { RingBytes = 32 << 10, NewId = () => new UInt128(1, ++_ids) });
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
            case 'd':
                model.Zero(0, _block);
                image.Discard(0, _block);
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
