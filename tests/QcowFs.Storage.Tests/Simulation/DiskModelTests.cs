// The model must allow what the promise allows, and nothing more.
using QcowFs.Testing;
using Xunit;
using Xunit.Sdk;

namespace QcowFs.Storage.Tests.Simulation;

public sealed class DiskModelTests : IDisposable
{
    private const int Sector = 512;

    private readonly DiskModel _model = new(4 * Sector);
    private readonly MemoryStorage _disk = new(length: 4 * Sector);

    public void Dispose() => _disk.Dispose();

    [Fact]
    public void Live_disk_must_hold_the_last_write()
    {
        _model.Write(10, [1, 2, 3]);
        Assert.Throws<FailException>(() => _model.CheckLive(_disk));
        _model.CheckAfterCrash(_disk);
        _disk.Write(10, [1, 2, 3]);
        _model.CheckLive(_disk);
        _model.CheckAfterCrash(_disk);
    }

    [Fact]
    public void Sync_forbids_the_old_value()
    {
        _model.Write(0, [1]);
        _model.Sync();
        Assert.Throws<FailException>(() => _model.CheckAfterCrash(_disk));
        _disk.Write(0, [1]);
        _model.CheckAfterCrash(_disk);
    }

    [Fact]
    public void Sync_that_began_before_a_write_says_nothing_about_it()
    {
        _model.Write(0, [1]);
        long mark = _model.Mark;
        _model.Write(0, [2]);
        _model.Sync(mark);
        Assert.Throws<FailException>(() => _model.CheckAfterCrash(_disk));
        _disk.Write(0, [1]);
        _model.CheckAfterCrash(_disk);
        _disk.Write(0, [2]);
        _model.CheckAfterCrash(_disk);
        _disk.Write(0, [1]);
        _model.Sync();
        Assert.Throws<FailException>(() => _model.CheckAfterCrash(_disk));
    }

    [Fact]
    public void Every_value_since_the_sync_is_allowed_and_no_mixture()
    {
        _model.Write(0, [1, 1]);
        _model.Write(0, [2, 2]);
        foreach (byte value in new byte[] { 0, 1, 2 })
        {
            _disk.Write(0, [value, value]);
            _model.CheckAfterCrash(_disk);
        }
        _disk.Write(0, [1, 2]);
        Assert.Throws<FailException>(() => _model.CheckAfterCrash(_disk));
    }

    [Fact]
    public void Sectors_are_judged_apart()
    {
        _model.Write(0, new byte[] { 1 }.Concat(new byte[Sector]).ToArray());
        _model.Write(Sector, [9]);
        _disk.Write(Sector, [9]);
        _model.CheckAfterCrash(_disk);
        _disk.Write(2 * Sector, [1]);
        Assert.Throws<FailException>(() => _model.CheckAfterCrash(_disk));
    }

    [Fact]
    public void Doubtful_write_allows_both_until_a_certain_one()
    {
        _model.MaybeWrite(0, [1]);
        _model.CheckLive(_disk);
        _disk.Write(0, [1]);
        _model.CheckLive(_disk);
        _model.Sync();
        _model.CheckLive(_disk);
        _disk.Write(0, [0]);
        _model.CheckAfterCrash(_disk);

        // A write to the other bytes of a doubtful sector leaves the doubt.
        _model.Write(5, [7]);
        _disk.Write(5, [7]);
        _model.CheckLive(_disk);
        _disk.Write(0, [1]);
        _model.CheckLive(_disk);
        _model.Write(0, [3]);
        Assert.Throws<FailException>(() => _model.CheckLive(_disk));
    }

    [Fact]
    public void Length_may_be_any_since_the_sync()
    {
        _model.SetLength(100);
        _model.CheckAfterCrash(_disk);
        Assert.Throws<FailException>(() => _model.CheckLive(_disk));
        _disk.SetLength(100);
        _model.CheckLive(_disk);
        _model.Sync();
        _disk.SetLength(4 * Sector);
        Assert.Throws<FailException>(() => _model.CheckAfterCrash(_disk));
    }

    [Fact]
    public void Adopted_content_is_the_only_one_afterwards()
    {
        _model.Write(0, [1]);
        DiskModel before = _model.Clone();
        _model.Adopt(_disk);
        _disk.Write(0, [1]);
        Assert.Throws<FailException>(() => _model.CheckAfterCrash(_disk));
        before.CheckAfterCrash(_disk);
    }

    /// <summary>Two accounts of the same device, written apart, agree: whatever the simulated disk makes of a crash, the model allows.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    [InlineData(6)]
    [InlineData(7)]
    [InlineData(8)]
    public void Model_allows_every_crash_of_the_simulated_disk_and_only_those(int seed)
    {
        var random = new Random(seed);
        var disk = new SimulatedDisk();
        SimulatedStorage storage = disk.Create("a", 16 * Sector);
        var model = new DiskModel(16 * Sector);
        for (int step = 0; step < 200; step++)
        {
            int offset = random.Next(16 * Sector);
            int length = random.Next(1, Math.Min(16 * Sector - offset, 3 * Sector) + 1);
            switch (random.Next(8))
            {
                case 0:
                    storage.Sync();
                    model.Sync();
                    break;
                case 1:
                    storage.Discard(offset, length);
                    model.Zero(offset, length);
                    break;
                case 2:
                    storage.WriteZeroes(offset, length);
                    model.Zero(offset, length);
                    break;
                default:
                    byte[] data = Pattern.Bytes((ulong)step + 1, offset, length);
                    storage.Write(offset, data);
                    model.Write(offset, data);
                    break;
            }
            model.CheckLive(storage);
            foreach ((_, SimulatedDisk crashed) in disk.EnumerateCrashes(20, (ulong)step))
            {
                using SimulatedStorage after = crashed.Open("a");
                model.CheckAfterCrash(after);
                after.Write(random.Next(16 * Sector), [0x5a, 0xa5, 0x5a, 0xa5]);
                Assert.Throws<FailException>(() => model.CheckAfterCrash(after));
            }
        }
    }
}
