// How far the copying from a backing image has come: for stats.json and the log.
namespace QcowFs.Images;

/// <summary>What the copying is doing.</summary>
public enum FillState
{
    /// <summary>It copies, at its rate.</summary>
    Running,
    /// <summary>The host is full; it tries again from time to time.</summary>
    Waiting,
    /// <summary>All is in the image, durably: the backing image is not needed any more.</summary>
    Done,
    /// <summary>It ended early: the image was closed, or something failed.</summary>
    Stopped,
}

/// <summary>A moment of the copying.</summary>
/// <param name="State">What it is doing.</param>
/// <param name="Position">Bytes of the disk, from its start on, that the image certainly holds itself.</param>
/// <param name="Length">Bytes of the disk.</param>
/// <param name="Copied">Bytes read from the backing image for it; its holes cost nothing.</param>
/// <param name="Rate">Bytes per second that it may copy.</param>
public sealed record FillProgress(FillState State, long Position, long Length, long Copied, long Rate)
{
    /// <summary>Position in percent of the disk.</summary>
    public double Percent => Length == 0 ? 100 : Math.Floor(1000.0 * Position / Length) / 10;
}
