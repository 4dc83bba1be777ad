// Copies from the backing image what an image does not hold itself, in the background, at a bounded rate, while the disk is in use.
//   B1. A step takes the exclusive lock of its blocks like any writer, so it never overwrites what the guest wrote meanwhile.
//   B2. A step is small against the rate: the guest waits for a step, never for the copying.
//   B3. It is done only when a commit has made all of it durable.
using QcowFs.Storage;

namespace QcowFs.Images.Engine;

/// <summary>The copying thread of one image. <see cref="Progress"/> is thread-safe; <see cref="Dispose"/> ends it.</summary>
internal sealed class BackgroundFill : IDisposable
{
    // B2. At least a block, which is the unit of copying.
    private const long LargestStep = 1 << 20;
    private const int StepsPerSecond = 16;
    private const int LoggedParts = 10;
    private static readonly TimeSpan FullHostInterval = TimeSpan.FromSeconds(10);

    private readonly CowImage _image;
    private readonly TimeProvider _time;
    private readonly Action<string>? _log;
    private readonly ManualResetEventSlim _stop = new(false);
    private readonly Thread _thread;
    private FillProgress _progress;
    private bool _disposed;

    public BackgroundFill(CowImage image, long rate, OpenOptions options)
    {
        _image = image;
        _time = options.Time;
        _log = options.Log;
        _progress = new FillProgress(FillState.Running, 0, image.Length, 0, Math.Max(rate, 1));
        _thread = new Thread(Run) { IsBackground = true, Name = "fill" };
        _thread.Start();
    }

    /// <summary>How far it has come.</summary>
    public FillProgress Progress => Volatile.Read(ref _progress);

    /// <summary>Ends the copying; the next mount goes on. A second call does nothing.</summary>
    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        _stop.Set();
        _thread.Join();
        _stop.Dispose();
    }

    private void Run()
    {
        try
        {
            Copy();
        }
        catch (Exception fault) when (fault is StorageException or ImageFormatException)
        {
            End(FillState.Stopped, $"streaming stopped: {fault.Message}");
        }
        catch (Exception fault)
        {
            // On a thread of its own nobody else is told, and the process has other mounts to keep.
            End(FillState.Stopped, $"streaming stopped: {fault.GetType().Name}: {fault.Message}");
        }
    }

    private void Copy()
    {
        long step = Math.Clamp(Progress.Rate / StepsPerSecond, _image.Info.BlockSize, Math.Max(LargestStep, _image.Info.BlockSize));
        step = step / _image.Info.BlockSize * _image.Info.BlockSize;
        int logged = 0;
        long due = _time.GetTimestamp();
        while (!_stop.IsSet)
        {
            long at = _image.FindMissing(Progress.Position);
            Move(Progress with { State = FillState.Running, Position = at });
            int part = _image.Length == 0 ? LoggedParts : (int)(at / (_image.Length / LoggedParts + 1));
            if (part > logged)
                _log?.Invoke($"{_image.Name}: streaming: {Progress.Percent:0.0} % of the disk is in the image file");
            logged = Math.Max(part, logged);
            if (at >= _image.Length)
            {
                _image.CompleteFill(); // B3
                End(FillState.Done, $"streaming is done: {_image.Name} holds all of its disk, the backing file is not needed any more");
                return;
            }

            due = Pace(due, CopyStep(at, Math.Min(step, _image.Length - at)));
        }

        End(FillState.Stopped, null);
    }

    /// <summary>Copies one step. Gives how many bytes the rate is charged for.</summary>
    private long CopyStep(long at, long length)
    {
        try
        {
            long copied = _image.FillRange(at, length);
            Move(Progress with { Copied = Progress.Copied + copied });
            return copied;
        }
        catch (StorageException fault) when (fault.IsOutOfSpace)
        {
            if (Progress.State != FillState.Waiting)
                _log?.Invoke($"{_image.Name}: streaming waits for host space: {fault.Message}");
            Move(Progress with { State = FillState.Waiting });
            _stop.Wait(FullHostInterval);
            return 0;
        }
    }

    /// <summary>Waits until the step just done is paid for. Gives the moment from which the next one counts.</summary>
    private long Pace(long due, long bytes)
    {
        long now = _time.GetTimestamp();
        due = Math.Max(due, now - _time.TimestampFrequency) + (long)((double)bytes / Progress.Rate * _time.TimestampFrequency);
        TimeSpan wait = _time.GetElapsedTime(now, due);
        if (wait > TimeSpan.FromMilliseconds(1))
            _stop.Wait(wait);
        return due;
    }

    private void Move(FillProgress progress) => Volatile.Write(ref _progress, progress);

    private void End(FillState state, string? message)
    {
        Move(Progress with { State = state });
        if (message is not null)
            _log?.Invoke(message);
    }
}
