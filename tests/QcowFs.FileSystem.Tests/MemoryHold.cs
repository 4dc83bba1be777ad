// A hold on disks in memory, with a record of what was asked of it.
using QcowFs.Images;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.FileSystem.Tests;

internal sealed class MemoryHold(MemoryDisk disk, ImageFileFacts facts, HostFileFacts hostFile) : IImageHold
{
    /// <summary>Calls in order; those of the disk are in its own list.</summary>
    public List<string> Calls { get; } = [];

    /// <summary>The disks of snapshots, by name or id.</summary>
    public Dictionary<string, MemoryDisk> Snapshots { get; } = [];

    public ImageFileFacts Facts { get; set; } = facts;

    public Exception? FailOpen { get; set; }

    public Exception? FailEdit { get; set; }

    /// <summary>Runs while an edit does.</summary>
    public Action DuringEdit { get; set; } = static () => { };

    public bool IsDisposed { get; private set; }

    public HostFileFacts HostFile => hostFile;

    public IDiskImage OpenDisk(bool writable)
    {
        Calls.Add($"open {(writable ? "rw" : "ro")}");
        IsDisposed = false;
        if (FailOpen is not null) throw FailOpen;
        disk.OpenedReadOnly = !writable;
        return disk;
    }

    public IDiskImage OpenSnapshot(string nameOrId, bool isId)
    {
        Calls.Add($"open snapshot {nameOrId}{(isId ? " by id" : "")}");
        return Snapshots.TryGetValue(nameOrId, out MemoryDisk? snapshot)
            ? snapshot
            : throw new ImageFormatException(Facts.Path, "snapshot table", -1, "there is no such snapshot", "see the list");
    }

    public ImageFileFacts ReadFacts() => Facts;

    public void EditSnapshot(SnapshotAction action, string name) => Edit($"{action} {name}");

    public long Resize(SizeChange change, bool mayShrink)
    {
        Edit($"resize {change.Bytes}");
        return change.Bytes;
    }

    public void SetSize(long size)
    {
        Edit($"set size {size}");
        disk.ChangeSize(size);
    }

    public CheckReport Check()
    {
        Edit("check");
        return new CheckReport { Format = "qcow2" };
    }

    public void Dispose()
    {
        IsDisposed = true;
        Calls.Add("release");
    }

    private void Edit(string what)
    {
        Calls.Add(what);
        DuringEdit();
        if (FailEdit is not null) throw FailEdit;
    }

    public static StorageException Fault(string operation) => new(Errno.EIO, operation, "dir/disk.qcow2");
}
