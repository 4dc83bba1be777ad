// Each kind of loss that the device model promises must really occur, and nothing else may.
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests.Simulation;

public sealed class SimulatedDiskTests
{
    private const int Sector = 512;

    private readonly SimulatedDisk _disk = new();

    [Fact]
    public void Unsynced_write_is_visible_and_lost_in_a_crash()
    {
        SimulatedStorage a = _disk.Create("a", 4 * Sector);
        a.Write(Sector, Fill(1, Sector));
        Assert.Equal(1, _disk.Content("a")[Sector]);

        Assert.Equal(0, _disk.Crash(CrashChoice.Nothing).Content("a")[Sector]);
        Assert.Equal(1, _disk.Crash(CrashChoice.Everything).Content("a")[Sector]);
        Assert.Equal(0, _disk.DurableContent("a")[Sector]);
    }

    [Fact]
    public void Synced_write_survives_every_crash()
    {
        SimulatedStorage a = _disk.Create("a", 4 * Sector);
        a.Write(0, Fill(1, 2 * Sector));
        a.Sync();
        a.Write(2 * Sector, Fill(2, 2 * Sector));

        foreach ((CrashChoice choice, SimulatedDisk crashed) in _disk.EnumerateCrashes(100, seed: 1))
            Assert.True(crashed.Content("a").AsSpan(0, 2 * Sector).SequenceEqual(Fill(1, 2 * Sector)), choice.ToString());
    }

    [Fact]
    public void Sync_of_one_storage_does_nothing_for_another()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        SimulatedStorage b = _disk.Create("b", Sector);
        a.Write(0, Fill(1, Sector));
        b.Write(0, Fill(2, Sector));
        a.Sync();

        SimulatedDisk crashed = _disk.Crash(CrashChoice.Nothing);
        Assert.Equal(1, crashed.Content("a")[0]);
        Assert.Equal(0, crashed.Content("b")[0]);
    }

    [Fact]
    public void Later_write_can_survive_without_the_earlier_one_in_either_storage()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        SimulatedStorage b = _disk.Create("b", Sector);
        a.Write(0, Fill(1, Sector));
        b.Write(0, Fill(2, Sector));

        Assert.Equal(["00", "02", "10", "12"], States(disk => $"{disk.Content("a")[0]}{disk.Content("b")[0]}"));
    }

    [Fact]
    public void One_write_is_torn_between_its_sectors_and_never_inside_one()
    {
        SimulatedStorage a = _disk.Create("a", 3 * Sector);
        a.Write(0, Fill(1, 3 * Sector));

        Assert.Equal(
            ["000", "001", "010", "011", "100", "101", "110", "111"],
            States(disk =>
            {
                byte[] content = disk.Content("a");
                for (int sector = 0; sector < 3; sector++)
                    Assert.Single(content.AsSpan(sector * Sector, Sector).ToArray().Distinct());
                return $"{content[0]}{content[Sector]}{content[2 * Sector]}";
            }));
    }

    [Fact]
    public void Sector_comes_out_with_any_of_its_versions()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        for (byte version = 1; version <= 9; version++)
            a.Write(0, Fill(version, Sector));

        Assert.Equal(["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], States(disk => $"{disk.Content("a")[0]}"));
    }

    [Fact]
    public void Version_of_a_sector_holds_the_earlier_writes_to_its_other_bytes()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        a.Write(0, Fill(1, 100));
        a.Write(100, Fill(2, 100));

        // Never the second write without the first: the sector was never so.
        Assert.Equal(["00", "10", "12"], States(disk => $"{disk.Content("a")[0]}{disk.Content("a")[100]}"));
    }

    [Fact]
    public void Discard_zeroing_and_reservation_are_unsynced_like_writes()
    {
        SimulatedStorage a = _disk.Create("a", [.. Fill(7, 2 * Sector)]);
        a.Discard(0, Sector);
        a.WriteZeroes(Sector, Sector);
        a.Reserve(0, 3 * Sector);

        Assert.Equal(
            ["00:1024", "00:1536", "07:1024", "07:1536", "70:1024", "70:1536", "77:1024", "77:1536"],
            States(disk => $"{disk.Content("a")[0]}{disk.Content("a")[Sector]}:{disk.Content("a").Length}"));
    }

    [Fact]
    public void Length_is_any_that_the_file_had_since_the_sync()
    {
        SimulatedStorage a = _disk.Create("a", 1000);
        a.SetLength(5000);
        a.SetLength(300);
        a.Write(300, Fill(1, 100));

        Assert.Equal(["1000", "300", "400", "5000"], States(disk => $"{disk.Content("a").Length}"));
        a.Sync();
        Assert.Equal(["400"], States(disk => $"{disk.Content("a").Length}"));
    }

    [Fact]
    public void Bytes_past_the_length_are_gone_for_good()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        a.Write(Sector, Fill(1, Sector));
        SimulatedDisk crashed = _disk.Crash(CrashChoice.Torn(0, Tear.DataOnly, laterSurvive: false));
        Assert.Equal(Sector, crashed.Content("a").Length);

        SimulatedStorage again = crashed.Open("a");
        again.SetLength(2 * Sector);
        Assert.Equal(0, crashed.Content("a")[Sector]);
        Assert.Equal(0, crashed.Crash(CrashChoice.Everything).Content("a")[Sector]);
    }

    [Fact]
    public void New_length_can_survive_without_its_data_and_reads_as_zero()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        a.Write(Sector, Fill(1, Sector));
        byte[] content = _disk.Crash(CrashChoice.Torn(0, Tear.LengthOnly, laterSurvive: false)).Content("a");
        Assert.Equal(2 * Sector, content.Length);
        Assert.Equal(0, content[Sector]);
    }

    [Fact]
    public void Cut_is_a_change_to_zero_of_what_was_cut_off()
    {
        SimulatedStorage a = _disk.Create("a", Fill(7, 2 * Sector));
        a.SetLength(100);
        a.SetLength(2 * Sector);
        Assert.Equal(7, _disk.Content("a")[99]);
        Assert.Equal(0, _disk.Content("a")[100]);
        a.Sync();
        Assert.Equal(0, _disk.Crash(CrashChoice.Nothing).Content("a")[100]);
        Assert.Equal(0, _disk.Crash(CrashChoice.Nothing).Content("a")[Sector]);
    }

    [Fact]
    public void Killed_process_keeps_all_changes_unsynced()
    {
        SimulatedStorage a = _disk.Create("a", 2 * Sector);
        a.Write(0, Fill(1, Sector));
        SimulatedDisk killed = _disk.Kill();
        Assert.Equal(1, killed.Content("a")[0]);

        killed.Open("a").Write(Sector, Fill(2, Sector));
        byte[] lost = killed.Crash(CrashChoice.Only(1)).Content("a");
        Assert.Equal(0, lost[0]);
        Assert.Equal(2, lost[Sector]);

        killed.Open("a").Sync();
        Assert.Equal(1, killed.Crash(CrashChoice.Nothing).Content("a")[0]);
        Assert.Equal(0, _disk.Crash(CrashChoice.Nothing).Content("a")[0]);
    }

    [Fact]
    public void Crashed_disk_is_durable_and_apart_from_the_first()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        a.Write(0, Fill(1, Sector));
        SimulatedDisk crashed = _disk.Crash(CrashChoice.Everything);
        crashed.Open("a").Write(0, Fill(2, Sector));

        Assert.Equal(1, _disk.Content("a")[0]);
        Assert.Equal(1, crashed.Crash(CrashChoice.Nothing).Content("a")[0]);
    }

    [Fact]
    public void Enumeration_is_finite_distinct_and_the_same_for_the_same_seed()
    {
        SimulatedStorage a = _disk.Create("a", 64 * Sector);
        for (int i = 0; i < 40; i++)
            a.Write(i % 16 * 4 * Sector, Pattern.Bytes((ulong)i, 0, 3 * Sector));

        string[] first = [.. _disk.EnumerateCrashes(200, seed: 5).Select(crash => $"{crash.Choice}: {crash.Disk.Fingerprint():x}")];
        string[] second = [.. _disk.EnumerateCrashes(200, seed: 5).Select(crash => $"{crash.Choice}: {crash.Disk.Fingerprint():x}")];
        string[] other = [.. _disk.EnumerateCrashes(200, seed: 6).Select(crash => $"{crash.Choice}: {crash.Disk.Fingerprint():x}")];
        Assert.Equal(200, first.Length);
        Assert.Equal(first, second);
        Assert.NotEqual(first, other);
        Assert.Equal(first.Length, first.Select(line => line[line.LastIndexOf(' ')..]).Distinct().Count());
        Assert.Contains(first, line => line.Contains("first 1", StringComparison.Ordinal) || line.Contains("torn", StringComparison.Ordinal));
        Assert.Contains(first, line => line.Contains("by sector", StringComparison.Ordinal));
    }

    [Fact]
    public void Planned_fault_strikes_the_right_call_of_the_right_storage()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        SimulatedStorage b = _disk.Create("b", Sector);
        _disk.Fail(StorageCalls.Write, Errno.EIO, nth: 2, storage: "b");
        byte[] data = Fill(1, Sector);
        a.Write(0, data);
        a.Write(0, data);
        b.Write(0, data);
        b.Discard(0, Sector);
        StorageException failure = Assert.Throws<StorageException>(() => b.Write(0, data));
        Assert.Equal((Errno.EIO, "b", 0L, (long)Sector), (failure.Errno, failure.Path, failure.Offset, failure.Length));
        Assert.Equal(0, _disk.Content("b")[0]);
        b.Write(0, data);
    }

    [Theory]
    [InlineData(FaultEffect.None, "0000")]
    [InlineData(FaultEffect.Half, "1100")]
    [InlineData(FaultEffect.Whole, "1111")]
    public void Failed_write_leaves_what_its_effect_says(FaultEffect effect, string expected)
    {
        SimulatedStorage a = _disk.Create("a", 4 * Sector);
        _disk.Fail(StorageCalls.Write, Errno.EIO, effect: effect);
        Assert.Throws<StorageException>(() => a.Write(0, Fill(1, 4 * Sector)));
        byte[] content = _disk.Content("a");
        Assert.Equal(expected, string.Concat(Enumerable.Range(0, 4).Select(i => content[i * Sector])));
    }

    [Fact]
    public void Failed_sync_makes_nothing_durable_and_is_final()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        a.Write(0, Fill(1, Sector));
        _disk.Fail(StorageCalls.Sync, Errno.EIO);
        Assert.Throws<StorageException>(a.Sync);
        Assert.Throws<StorageException>(a.Sync);
        Assert.Equal(0, _disk.Crash(CrashChoice.Nothing).Content("a")[0]);
        Assert.Equal(["0", "1"], States(disk => $"{disk.Content("a")[0]}"));
    }

    [Fact]
    public void Space_runs_out_by_itself_and_lifting_the_limit_goes_on()
    {
        SimulatedStorage a = _disk.Create("a");
        _disk.SpaceLimit = 3 * 4096;
        a.Write(0, Fill(1, 4096));
        a.Reserve(4096, 4096);
        Assert.Equal(2 * 4096, _disk.UsedSpace);

        // One block fits, and the write gets as far as that.
        StorageException full = Assert.Throws<StorageException>(() => a.Write(8192, Fill(2, 8192)));
        Assert.True(full.IsOutOfSpace);
        Assert.Equal(3 * 4096, a.Length);
        // What is reserved stays usable, and so does what is written.
        a.Write(4096, Fill(3, 4096));
        a.Write(0, Fill(4, 4096));
        Assert.Throws<StorageException>(() => a.WriteZeroes(12288, 1));
        Assert.Throws<StorageException>(() => a.Reserve(12288, 1));
        Assert.Equal(3 * 4096, a.Length);

        a.Discard(0, 4096);
        a.Write(12288, Fill(5, 1));
        Assert.Throws<StorageException>(() => a.Write(0, Fill(6, 1)));
        _disk.SpaceLimit = long.MaxValue;
        a.Write(0, Fill(6, 1));
        a.SetLength(0);
        Assert.Equal(0, _disk.UsedSpace);
    }

    [Fact]
    public void Discard_of_part_of_a_block_frees_nothing_and_at_the_end_of_the_file_all()
    {
        SimulatedStorage a = _disk.Create("a", Fill(1, 4096 + 100));
        a.Discard(1, 4095);
        Assert.Equal(2 * 4096, _disk.UsedSpace);
        a.Discard(4096, 1 << 20);
        Assert.Equal(4096, _disk.UsedSpace);
        Assert.Equal(4096 + 100, a.Length);
    }

    [Fact]
    public void Planned_crash_ends_every_call_from_there_on()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        _disk.CrashAt(3);
        a.Write(0, Fill(1, Sector));
        a.Read(0, new byte[1]);
        a.Sync();
        a.Read(0, new byte[1]);
        Assert.Throws<SimulatedCrashException>(() => a.Write(0, Fill(2, Sector)));
        Assert.Throws<SimulatedCrashException>(a.Sync);
        Assert.Throws<SimulatedCrashException>(() => a.Read(0, new byte[1]));
        Assert.Throws<SimulatedCrashException>(() => _disk.Open("a"));
        Assert.Equal(2, _disk.Clock);
        Assert.Equal(1, _disk.Crash(CrashChoice.Everything).Content("a")[0]);
    }

    [Fact]
    public void Log_count_and_hook_tell_every_call_in_order()
    {
        var seen = new List<string>();
        _disk.KeepsCalls = true;
        _disk.BeforeCall = call => seen.Add(call.ToString());
        SimulatedStorage a = _disk.Create("a", Sector);
        SimulatedStorage b = _disk.Create("b", Sector);
        a.Write(10, [1, 2]);
        b.Read(0, new byte[3]);
        b.Sync();
        a.SetLength(77);

        Assert.Equal(["#1 a Write 10+2", "#1 b Read 0+3", "#2 b Sync 0+0", "#3 a SetLength 77+0"], seen);
        Assert.Equal(seen, _disk.Calls.Select(call => call.ToString()));
        Assert.Equal(1, _disk.Count(StorageCalls.Sync));
        Assert.Equal(2, _disk.Count(StorageCalls.Any, "b"));
        Assert.Equal(2, _disk.Count(StorageCalls.Changes));
    }

    [Fact]
    public void Hook_can_crash_copies_while_the_workload_is_in_the_middle()
    {
        SimulatedStorage a = _disk.Create("a", 2 * Sector);
        var states = new List<int>();
        _disk.BeforeCall = _ => states.Add(_disk.EnumerateCrashes(100, 1).Count());
        a.Write(0, Fill(1, Sector));
        a.Write(Sector, Fill(1, Sector));
        a.Sync();
        a.Write(0, Fill(2, Sector));
        Assert.Equal([1, 2, 4, 1], states);
    }

    [Fact]
    public void Misuse_is_an_error()
    {
        SimulatedStorage a = _disk.Create("a", Sector);
        SimulatedStorage reader = _disk.Open("a", readOnly: true);
        Assert.Equal(Errno.EROFS, Assert.Throws<StorageException>(() => reader.Write(0, [1])).Errno);
        Assert.Equal(Errno.EFBIG, Assert.Throws<StorageException>(() => a.Write(SimulatedDisk.LargestLength, [1])).Errno);
        Assert.Equal(Errno.ENOENT, Assert.Throws<StorageException>(() => _disk.Open("b")).Errno);
        Assert.Equal(Errno.EEXIST, Assert.Throws<StorageException>(() => _disk.Create("a")).Errno);
        a.Dispose();
        Assert.Throws<ObjectDisposedException>(() => a.Read(0, new byte[1]));
        reader.Read(0, new byte[1]);
    }

    private string[] States(Func<SimulatedDisk, string> describe) =>
        [.. _disk.EnumerateCrashes(1000, seed: 1).Select(crash => describe(crash.Disk)).Distinct().Order(StringComparer.Ordinal)];

    private static byte[] Fill(byte value, int length)
    {
        byte[] bytes = new byte[length];
        bytes.AsSpan().Fill(value);
        return bytes;
    }
}
