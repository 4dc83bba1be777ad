// The n-th call fails, for every n: with a full host nothing is lost and everything goes on when there is space again; with any other
// error of a write or sync the image takes no more changes, says why, and what is on disk is as after a crash (I7).
using QcowFs.Images.Engine;
using QcowFs.Native;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests.Vhdx;

public sealed class VhdxFaultTests
{
    private const int Steps = 14;

    [Theory]
    [InlineData(VhdxKind.Full)]
    [InlineData(VhdxKind.Differencing)]
    public void An_error_latches_the_image(VhdxKind kind)
    {
        PreparedVhdx prepared = VhdxImages.Prepare(kind);
        long calls = Calls(prepared, StorageCalls.Changes | StorageCalls.Sync);
        for (long n = 1; n <= calls; n++)
        {
            SimulatedDisk disk = VhdxImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            FaultEffect effect = (FaultEffect)(n % 3);
            disk.Fail(StorageCalls.Changes | StorageCalls.Sync, Errno.EIO, n, effect: effect);
            Assert.True(FailsForGood(disk, prepared, model), $"{kind} call {n} {effect}: nothing failed");
            foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(3, (ulong)n))
                VhdxCrashRun.Judge(survivor, model, prepared, $"{kind} call {n} {effect} {choice}");
        }
    }

    [Theory]
    [InlineData(VhdxKind.Full)]
    [InlineData(VhdxKind.Differencing)]
    public void A_full_host_loses_nothing(VhdxKind kind)
    {
        PreparedVhdx prepared = VhdxImages.Prepare(kind);
        long calls = Calls(prepared, StorageCalls.Changes);
        for (long n = 1; n <= calls; n++)
        {
            SimulatedDisk disk = VhdxImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            string where = $"{kind} change {n}";
            using (CowImage image = VhdxImages.Open(disk, prepared))
            {
                disk.Fail(StorageCalls.Changes, Errno.ENOSPC, n, times: n % 2 == 0 ? 1 : 4, effect: n % 3 == 0 ? FaultEffect.Half : FaultEffect.None);
                foreach (Operation operation in VhdxCrashRun.Random(5, Steps))
                    Try(() => operation.RunDoubtfully(image, model));
                Assert.Null(image.Failure);
                foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(3, (ulong)n))
                    VhdxCrashRun.Judge(survivor, model, prepared, $"{where} {choice}");
                disk.ClearFaults();
                image.Sync();
                model.Adopt(image);
                image.Close();
            }

            VhdxCrashRun.JudgeClosed(disk, model, prepared, where);
        }
    }

    /// <summary>The host fills up in the middle; what was refused is refused by ENOSPC and nothing else.</summary>
    [Theory]
    [InlineData(VhdxKind.Dynamic)]
    [InlineData(VhdxKind.Differencing)]
    public void Space_that_comes_back_lets_it_go_on(VhdxKind kind)
    {
        PreparedVhdx prepared = VhdxImages.Prepare(kind);
        for (int spare = 0; spare < 3 << 20; spare += 350_000)
        {
            SimulatedDisk disk = VhdxImages.DiskOf(prepared);
            DiskModel model = new(prepared.Guest);
            using (CowImage image = VhdxImages.Open(disk, prepared))
            {
                disk.SpaceLimit = disk.UsedSpace + spare;
                foreach (Operation operation in VhdxCrashRun.Random(9, 30))
                    Try(() => operation.RunDoubtfully(image, model));
                Assert.Null(image.Failure);
                disk.SpaceLimit = long.MaxValue;
                image.Sync();
                model.Adopt(image);
                image.Close();
            }

            VhdxCrashRun.JudgeClosed(disk, model, prepared, $"{kind} spare {spare}");
        }
    }

    private static void Try(Action operation)
    {
        try
        {
            operation();
        }
        catch (StorageException exception) when (exception.IsOutOfSpace)
        {
            // Refused, as it should be.
        }
    }

    private static bool FailsForGood(SimulatedDisk disk, PreparedVhdx prepared, DiskModel model)
    {
        CowImage? image = null;
        bool closing = false;
        try
        {
            image = VhdxImages.Open(disk, prepared);
            foreach (Operation operation in VhdxCrashRun.Random(5, Steps))
                operation.RunDoubtfully(image, model);
            closing = true;
            image.Close();
            return false;
        }
        catch (StorageException exception) when (exception.Errno == Errno.EIO)
        {
            if (image is null)
                return true;
            Assert.NotNull(image.Failure);
            if (closing)
                return true;
            long changes = disk.Count(StorageCalls.Changes | StorageCalls.Sync);
            Assert.Throws<StorageException>(() => image.Write(0, new byte[512]));
            Assert.Throws<StorageException>(image.Sync);
            Assert.Throws<StorageException>(image.Close);
            Assert.Equal(changes, disk.Count(StorageCalls.Changes | StorageCalls.Sync));
            return true;
        }
        finally
        {
            image?.Dispose();
        }
    }

    private static long Calls(PreparedVhdx prepared, StorageCalls kinds)
    {
        SimulatedDisk disk = VhdxImages.DiskOf(prepared);
        DiskModel model = new(prepared.Guest);
        using CowImage image = VhdxImages.Open(disk, prepared);
        foreach (Operation operation in VhdxCrashRun.Random(5, Steps))
            operation.Run(image, model);
        image.Close();
        return disk.Count(kinds);
    }
}
