// The locks against the real thing: QEMU refuses what we hold, we refuse what QEMU holds, and readers share.
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests;

public sealed class QemuLocksTests : IDisposable
{
    private readonly TempDirectory _directory = new();
    private readonly string _image;

    public QemuLocksTests()
    {
        _image = _directory["disk.qcow2"];
    }

    public void Dispose() => _directory.Dispose();

    [SkippableFact]
    public void Our_writer_keeps_every_QEMU_out()
    {
        Make();
        using FileStorage file = Open();
        Assert.Null(QemuLocks.TryAcquire(file, LockRole.Writer));
        Refused(Qemu.TryIo(["-f", "qcow2"], _image, "write 0 512"));
        Refused(Qemu.TryIo(["-r", "-f", "qcow2"], _image, "read 0 512"));
        Refused(Qemu.TryImg("info", _image));
        Qemu.Img("info", "-U", _image);
        using (ChildProcess daemon = Qemu.StorageDaemon(_directory.Root, Blockdev(readOnly: false)))
            Refused(daemon.WaitForExit());

        QemuLocks.Release(file);
        Qemu.Io("qcow2", _image, "write -P 1 0 512");
    }

    /// <summary>A process forked at the moment of the close holds the open file description a little longer; a duplicate stands for
    /// it.</summary>
    [Fact]
    public void Closing_drops_the_locks_although_somebody_else_still_has_the_description()
    {
        File.WriteAllBytes(_image, new byte[512]);
        FileStorage file = Open();
        Assert.Null(QemuLocks.TryAcquire(file, LockRole.Writer));
        using SafeFileHandle duplicate = new(Duplicate((int)file.Handle.DangerousGetHandle()), ownsHandle: true);
        Assert.False(duplicate.IsInvalid);
        file.Dispose();
        using FileStorage other = Open();
        Assert.Null(QemuLocks.TryAcquire(other, LockRole.Writer));
    }

    [DllImport("libc", EntryPoint = "dup")]
    private static extern int Duplicate(int fd);

    [SkippableFact]
    public void Our_reader_keeps_QEMU_from_writing_but_not_from_reading()
    {
        Make();
        using FileStorage file = Open(StorageAccess.Read);
        Assert.Null(QemuLocks.TryAcquire(file, LockRole.Reader));
        Refused(Qemu.TryIo(["-f", "qcow2"], _image, "write 0 512"));
        Refused(Qemu.TryImg("resize", _image, "+1M"));
        Qemu.TryIo(["-r", "-f", "qcow2"], _image, "read 0 512").MustSucceed();
        Qemu.Img("info", _image);
    }

    [SkippableFact]
    public void QEMU_that_writes_keeps_us_out_and_is_named()
    {
        Make();
        using ChildProcess daemon = Qemu.StorageDaemon(_directory.Root, Blockdev(readOnly: false));
        using FileStorage file = Open();
        foreach (LockRole role in Enum.GetValues<LockRole>())
        {
            LockConflict? conflict = QemuLocks.TryAcquire(file, role);
            Assert.NotNull(conflict);
            Assert.Equal((daemon.Id, "qemu-storage-da"), (conflict.HolderPid, conflict.HolderCommand));
            Assert.Equal($"qemu-storage-da (process {daemon.Id})", conflict.Holder);
            Assert.Equal(conflict, QemuLocks.Query(file, role));
        }
        // Being refused left no lock of ours behind that would disturb it.
        daemon.Kill();
        Assert.Null(QemuLocks.Query(file, LockRole.Writer));
        Qemu.Io("qcow2", _image, "write 0 512");
    }

    [SkippableFact]
    public void QEMU_that_reads_lets_us_read_and_not_write()
    {
        Make();
        using ChildProcess daemon = Qemu.StorageDaemon(_directory.Root, Blockdev(readOnly: true));
        using FileStorage file = Open();
        LockConflict? conflict = QemuLocks.TryAcquire(file, LockRole.Writer);
        Assert.Equal(("write", daemon.Id), (conflict?.Permission, conflict?.HolderPid));
        Assert.Null(QemuLocks.TryAcquire(file, LockRole.Reader));
        Qemu.Img("info", _image);
    }

    [Fact]
    public void Two_opens_of_one_process_conflict_like_two_processes()
    {
        File.WriteAllBytes(_image, new byte[100]);
        using FileStorage first = Open();
        using FileStorage second = Open();
        using FileStorage third = Open();
        Assert.Null(QemuLocks.TryAcquire(first, LockRole.Reader));
        Assert.Null(QemuLocks.TryAcquire(second, LockRole.Reader));
        Assert.Equal(Environment.ProcessId, QemuLocks.TryAcquire(third, LockRole.Writer)?.HolderPid);
        QemuLocks.Release(first);
        second.Dispose();
        Assert.Null(QemuLocks.TryAcquire(third, LockRole.Writer));
        LockConflict? reader = QemuLocks.TryAcquire(first, LockRole.Reader);
        Assert.Equal(("write", Environment.ProcessId), (reader?.Permission, reader?.HolderPid));
        Assert.NotNull(QemuLocks.TryAcquire(first, LockRole.Writer));
        // Asking again with the locks already held is no conflict with oneself.
        Assert.Null(QemuLocks.TryAcquire(third, LockRole.Writer));
    }

    [Fact]
    public void Lock_of_another_file_is_nobody_s_conflict()
    {
        File.WriteAllBytes(_image, new byte[100]);
        File.WriteAllBytes(_directory["other"], new byte[100]);
        using FileStorage other = HostFiles.Open(_directory["other"], StorageAccess.Write);
        using FileStorage file = Open();
        Assert.Null(QemuLocks.TryAcquire(other, LockRole.Writer));
        Assert.Null(QemuLocks.TryAcquire(file, LockRole.Writer));
    }

    private void Make()
    {
        Tools.Require("qemu-img", "qemu-io", "qemu-storage-daemon");
        Qemu.Img("create", "-f", "qcow2", _image, "1M");
    }

    private FileStorage Open(StorageAccess access = StorageAccess.Write) => HostFiles.Open(_image, access);

    // A node is opened only when something uses it: a writable one by an export.
    private string[] Blockdev(bool readOnly) =>
    [
        "--blockdev", $"driver=file,node-name=file,filename={_image},read-only={(readOnly ? "on" : "off")}",
        "--blockdev", $"driver=qcow2,node-name=disk,file=file,read-only={(readOnly ? "on" : "off")}",
        "--nbd-server", $"addr.type=unix,addr.path={_directory["socket"]}",
        "--export", $"type=nbd,id=export,node-name=disk,writable={(readOnly ? "off" : "on")}",
    ];

    private static void Refused(ToolResult result)
    {
        Assert.NotEqual(0, result.ExitCode);
        Assert.Contains("lock", result.Errors, StringComparison.Ordinal);
    }
}
