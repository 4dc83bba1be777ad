// An image as a mount holds it: the open disk, how many files of it are in use, and its end.
using QcowFs.Images;

namespace QcowFs.FileSystem;

/// <summary>An image that a mount shows. Owns the disk from construction on. Thread-safe except <see cref="Close"/>, which the
/// owner calls once, when no request can arrive any more.</summary>
public sealed class MountedImage
{
    private readonly Func<HostFileFacts> _hostFile;
    private int _opens;
    private volatile bool _changed;

    /// <summary>Takes over an open disk.</summary>
    /// <param name="name">The image's file name without directories; the tree names its files after it.</param>
    /// <param name="disk">The open disk.</param>
    /// <param name="facts">Facts about the image file when it was opened.</param>
    /// <param name="hostFile">Facts of the image file now. It must not name the file by a path: the mount may cover it.</param>
    public MountedImage(string name, IDiskImage disk, ImageFileFacts facts, Func<HostFileFacts> hostFile)
    {
        Name = name;
        Disk = disk;
        Facts = facts;
        _hostFile = hostFile;
    }

    /// <summary>The image's file name.</summary>
    public string Name { get; }

    /// <summary>The disk.</summary>
    public IDiskImage Disk { get; }

    /// <summary>Facts about the image file when it was opened.</summary>
    public ImageFileFacts Facts { get; }

    /// <summary>How many opens of the disk's files have not been released.</summary>
    public int Opens => Volatile.Read(ref _opens);

    internal HostFileFacts HostFile => _hostFile();

    internal byte[] WriteInfo() => ImageFacts.Info(Facts with
    {
        ActualSize = HostFile.Blocks * HostFileFacts.BytesPerBlock,
        FormatSpecific = WithCurrent(Facts.FormatSpecific, Disk.CurrentFacts),
    });

    private static IReadOnlyList<FormatFact> WithCurrent(IReadOnlyList<FormatFact> facts, IReadOnlyList<FormatFact> current) =>
        current.Count == 0 ? facts : [.. facts.Where(fact => current.All(c => c.Key != fact.Key)), .. current];

    internal byte[] WriteMap() => ImageFacts.Map(Disk);

    internal byte[] WriteStatistics() => ImageFacts.Statistics(this);

    internal void AddOpen() => Interlocked.Increment(ref _opens);

    /// <summary>Ends one open. The last close commits without being asked, if anything was changed since the last commit here.</summary>
    internal void RemoveOpen()
    {
        if (Interlocked.Decrement(ref _opens) > 0 || !_changed) return;
        _changed = false;
        Disk.Sync();
    }

    /// <summary>Notes that the disk's content was changed through this mount.</summary>
    internal void MarkChanged()
    {
        if (!_changed) _changed = true; // read first: the line stays shared between the channels' processors
    }

    /// <summary>Commits and makes durable without closing. What cannot change is durable.</summary>
    public void Sync()
    {
        if (!Disk.IsReadOnly) Disk.Sync();
    }

    /// <summary>Closes the disk and says how it went. Never throws: whatever goes wrong here is what the receipt is for.</summary>
    public ImageReceipt Close()
    {
        string? error = null;
        try
        {
            Disk.Close();
        }
        catch (Exception fault)
        {
            error = fault.Message;
        }
        error = Disk.Failure ?? error; // the first failure is the cause; that of the close is its consequence
        ImageStatistics done = Disk.Statistics;
        ImageReceipt receipt = new(
            Name, Disk.Info.Recovery, done.BytesWritten, done.BytesDiscarded, done.BytesShared, Check: "not run", error);
        Disk.Dispose();
        return receipt;
    }
}
