// What holds while an image is simply used: no allocation of memory per request, and a commit that comes without being asked.
using QcowFs.Images;
using QcowFs.Images.Engine;
using QcowFs.Images.Qcow2;
using QcowFs.Storage;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Simulation.Tests;

public sealed class SteadyStateTests
{
    [Theory]
    [InlineData("cluster_size=65536", InitialContent.Full)]
    [InlineData("cluster_size=65536,extended_l2=on", InitialContent.Full)]
    [InlineData("cluster_size=65536", InitialContent.Backing)]
    public void Reads_and_overwrites_allocate_no_memory(string options, InitialContent content)
    {
        Geometry geometry = new(options, 4 << 20, content);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        MemoryStorage file = new("image");
        file.Write(0, prepared.File);
        using MemoryStorage backing = new("backing");
        IDiskImage? below = null;
        if (prepared.Backing is not null)
        {
            backing.Write(0, prepared.Backing);
            below = Qcow2Image.Open(new Qcow2Parts(Qcow2HeaderReader.Read(backing), backing, null, null, new OpenOptions()));
        }

        OpenOptions writable = new() { Writable = true, CommitInterval = TimeSpan.Zero };
        using IDiskImage image = Qcow2Image.Open(new Qcow2Parts(Qcow2HeaderReader.Read(file), file, null, below, writable));
        byte[] bytes = new byte[256 << 10];
        bytes.AsSpan().Fill(1);
        for (int offset = 0; offset < 2 << 20; offset += bytes.Length)
            image.Write(offset, bytes);
        image.Sync();
        Random random = new(1);
        Use(image, bytes, random, 2000); // until everything is compiled and pooled
        long before = GC.GetAllocatedBytesForCurrentThread();
        Use(image, bytes, random, 2000);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    [Fact]
    public void Dirty_metadata_is_committed_after_five_seconds()
    {
        Geometry geometry = new("cluster_size=4096", 1_048_576);
        PreparedImage prepared = SimulatedImages.Prepare(geometry);
        SimulatedDisk disk = SimulatedImages.DiskOf(prepared);
        ManualTime time = new();
        SimulatedStorage file = disk.Open("image");
        OpenOptions options = new() { Writable = true, Time = time };
        using IDiskImage image = Qcow2Image.Open(new Qcow2Parts(Qcow2HeaderReader.Read(file), file, null, null, options));
        byte[] ones = new byte[4096];
        ones.AsSpan().Fill(1);
        image.Write(0, ones);
        time.Advance(TimeSpan.FromSeconds(4.9));
        Assert.False(IsDurable(disk, prepared, ones));
        time.Advance(TimeSpan.FromSeconds(0.2));
        Assert.True(IsDurable(disk, prepared, ones));

        // The next change is waited for from its own time on.
        image.Write(8192, ones);
        time.Advance(TimeSpan.FromSeconds(5.1));
        Assert.False(((CowImage)image).Map.IsDirty);
    }

    private static bool IsDurable(SimulatedDisk disk, PreparedImage prepared, byte[] expected)
    {
        using CowImage survivor = SimulatedImages.Open(disk.Crash(CrashChoice.Nothing), prepared, writable: false);
        byte[] bytes = new byte[expected.Length];
        survivor.Read(0, bytes);
        return bytes.AsSpan().SequenceEqual(expected);
    }

    private static void Use(IDiskImage image, byte[] bytes, Random random, int times)
    {
        for (int i = 0; i < times; i++)
        {
            image.Read(random.Next(3 << 20) & ~511, bytes.AsSpan(0, 4096));
            image.Write(random.Next(1 << 20) & ~511, bytes.AsSpan(0, 4096));
            image.Read(random.Next(1 << 20) & ~511, bytes);
        }
    }

    /// <summary>A clock that moves when told, and fires timers on the caller's thread.</summary>
    private sealed class ManualTime : TimeProvider
    {
        private readonly List<ManualTimer> _timers = [];
        private TimeSpan _now;

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
        {
            ManualTimer timer = new(this, () => callback(state));
            timer.Change(dueTime, period);
            _timers.Add(timer);
            return timer;
        }

        public void Advance(TimeSpan by)
        {
            _now += by;
            foreach (ManualTimer timer in _timers.Where(timer => timer.Due <= _now).ToList())
                timer.Fire();
        }

        private sealed class ManualTimer(ManualTime time, Action callback) : ITimer
        {
            public TimeSpan Due { get; private set; } = TimeSpan.MaxValue;

            public bool Change(TimeSpan dueTime, TimeSpan period)
            {
                Due = dueTime == Timeout.InfiniteTimeSpan ? TimeSpan.MaxValue : time._now + dueTime;
                return true;
            }

            public void Fire()
            {
                Due = TimeSpan.MaxValue;
                callback();
            }

            public void Dispose() => Due = TimeSpan.MaxValue;

            public ValueTask DisposeAsync()
            {
                Dispose();
                return ValueTask.CompletedTask;
            }
        }
    }
}
