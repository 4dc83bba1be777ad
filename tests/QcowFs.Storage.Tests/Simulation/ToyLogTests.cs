// The proof that the simulator catches what it is for: a small write-ahead log is right, and each of its syncs left out is found.
using QcowFs.Testing;
using Xunit;
using Xunit.Sdk;

namespace QcowFs.Storage.Tests.Simulation;

public sealed class ToyLogTests
{
    private const int Rounds = 6;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Right_log_survives_every_crash(bool twoFiles) => Run(ToyLog.AllSyncs, twoFiles);

    [Theory]
    [InlineData(0, false)]
    [InlineData(1, false)]
    [InlineData(2, false)]
    [InlineData(0, true)]
    [InlineData(1, true)]
    [InlineData(2, true)]
    public void Log_with_a_missing_sync_is_caught(int missing, bool twoFiles) =>
        Assert.ThrowsAny<XunitException>(() => Run(ToyLog.AllSyncs & ~(1 << missing), twoFiles));

    // Before every call of the workload, and of the recovery after each crash (two levels), the model must agree.
    private static void Run(int syncs, bool twoFiles)
    {
        var disk = new SimulatedDisk();
        disk.Create("log", ToyLog.LogLength);
        if (twoFiles)
            disk.Create("data", ToyLog.DataLength);
        var model = new DiskModel(ToyLog.DataLength);
        ToyLog log = ToyLog.Open(disk, syncs);
        disk.BeforeCall = _ => CheckCrashes(disk, model, syncs, depth: 2);
        for (int round = 1; round <= Rounds; round++)
        {
            byte[] record = Record(round);
            int slot = round % ToyLog.Slots;
            model.Write(slot * ToyLog.RecordSize, record);
            log.Put(slot, record);
            model.Sync();
        }
        model.CheckLive(log.Data);
    }

    private static void CheckCrashes(SimulatedDisk disk, DiskModel model, int syncs, int depth)
    {
        foreach ((CrashChoice choice, SimulatedDisk crashed) in disk.EnumerateCrashes(64, seed: 3))
        {
            if (depth > 1)
                crashed.BeforeCall = _ => CheckCrashes(crashed, model, syncs, depth - 1);
            ToyLog recovered = ToyLog.Open(crashed, syncs);
            crashed.BeforeCall = null;
            try
            {
                model.CheckAfterCrash(recovered.Data);
                CheckWhole(recovered.Data);
            }
            catch (XunitException e)
            {
                throw new XunitException($"{choice}: {e.Message}", e);
            }
        }
    }

    // What a log is for beyond the promise of a disk: a slot holds one record, never half of one.
    private static void CheckWhole(IStorage data)
    {
        byte[] slot = new byte[ToyLog.RecordSize];
        for (int i = 0; i < ToyLog.Slots; i++)
        {
            data.Read(i * ToyLog.RecordSize, slot);
            Assert.True(Enumerable.Range(0, Rounds + 1).Any(round => Record(round).AsSpan().SequenceEqual(slot)), $"Slot {i} is torn.");
        }
    }

    private static byte[] Record(int round) => round == 0 ? new byte[ToyLog.RecordSize] : Pattern.Bytes((ulong)round, 0, ToyLog.RecordSize);

    /// <summary>Slots of two sectors each, changed whole by way of a log of one record: record, sync, header, sync, slot, sync, next.</summary>
    private sealed class ToyLog
    {
        public const int RecordSize = 1024;
        public const int Slots = 4;
        public const int AllSyncs = 7;
        public const int DataLength = Slots * RecordSize;
        public const int LogLength = LogData + 512;
        private const int LogData = 512 + RecordSize;

        private readonly SimulatedStorage _log;
        private readonly int _syncs;
        private readonly byte[] _header = new byte[512];

        private ToyLog(SimulatedDisk disk, int syncs)
        {
            _syncs = syncs;
            _log = disk.Open("log");
            // With one file the data follows the log in it, with two they lose power apart.
            Data = disk.Names.Contains("data") ? disk.Open("data") : new Shifted(_log, LogData, DataLength);
        }

        public IStorage Data { get; }

        public static ToyLog Open(SimulatedDisk disk, int syncs)
        {
            var log = new ToyLog(disk, syncs);
            log._log.Sync();
            log.Data.Sync();
            log._log.Read(0, log._header);
            if (log._header[0] == 1)
                log.Apply();
            return log;
        }

        public void Put(int slot, byte[] record)
        {
            _log.Write(512, record);
            Sync(0, _log);
            _header[0] = 1;
            _header[1] = (byte)slot;
            _log.Write(0, _header);
            Sync(1, _log);
            Apply();
        }

        private void Apply()
        {
            byte[] record = new byte[RecordSize];
            _log.Read(512, record);
            Data.Write(_header[1] * RecordSize, record);
            Sync(2, Data);
            _header[0] = 0;
            _log.Write(0, _header);
            _log.Sync();
        }

        private void Sync(int which, IStorage storage)
        {
            if ((_syncs >> which & 1) != 0)
                storage.Sync();
        }
    }

    /// <summary>A part of a storage as a storage.</summary>
    private sealed class Shifted(IStorage inner, long start, long length) : IStorage
    {
        public string Name => inner.Name;

        public long Length => length;

        public bool IsReadOnly => inner.IsReadOnly;

        public void Read(long offset, Span<byte> destination) => inner.Read(start + offset, destination);

        public void Write(long offset, ReadOnlySpan<byte> source) => inner.Write(start + offset, source);

        public void WriteZeroes(long offset, long length) => inner.WriteZeroes(start + offset, length);

        public void Discard(long offset, long length) => inner.Discard(start + offset, length);

        public void Reserve(long offset, long length) => inner.Reserve(start + offset, length);

        public void SetLength(long length) => throw new NotSupportedException();

        public void Sync() => inner.Sync();

        public void Dispose()
        {
            // The whole belongs to somebody else.
        }
    }
}
