// Opening by name: what may be opened, and that nothing leaves the directory it must stay beneath.
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests;

public sealed partial class HostFilesTests : IDisposable
{
    private readonly TempDirectory _directory = new();

    public void Dispose() => _directory.Dispose();

    [Fact]
    public void Created_file_must_not_exist_before()
    {
        using (FileStorage file = HostFiles.Open(_directory["a"], StorageAccess.Create))
        {
            Assert.Equal((0L, _directory["a"], false), (file.Length, file.Name, file.IsReadOnly));
            file.Write(0, [1]);
        }
        HostFiles.SyncDirectory(_directory.Root);
        StorageException exists = Assert.Throws<StorageException>(() => HostFiles.Open(_directory["a"], StorageAccess.Create));
        Assert.Equal(Errno.EEXIST, exists.Errno);
        Assert.Equal([1], File.ReadAllBytes(_directory["a"]));
    }

    [Fact]
    public void What_is_no_file_is_refused_without_hanging()
    {
        ChildProcess.Run("mkfifo", _directory["fifo"]).MustSucceed();
        Assert.Equal(Errno.EOPNOTSUPP, Errors(() => HostFiles.Open(_directory["fifo"], StorageAccess.Read)));
        Assert.Equal(Errno.EOPNOTSUPP, Errors(() => HostFiles.Open("/dev/null", StorageAccess.Write)));
        Assert.Equal(Errno.EISDIR, Errors(() => HostFiles.Open(_directory.Root, StorageAccess.Read)));
        Assert.Equal(Errno.EISDIR, Errors(() => HostFiles.Open(_directory.Root, StorageAccess.Write)));
        Assert.Equal(Errno.ENOENT, Errors(() => HostFiles.Open(_directory["none"], StorageAccess.Write)));
        Assert.Equal(Errno.ENOTDIR, Errors(() => HostFiles.OpenDirectory(_directory["fifo"])));
    }

    [Fact]
    public void Beneath_opens_what_is_beneath()
    {
        Directory.CreateDirectory(_directory["in/deep"]);
        File.WriteAllBytes(_directory["in/deep/a"], [7]);
        File.CreateSymbolicLink(_directory["in/link"], "deep/../deep/a");
        using SafeFileHandle directory = HostFiles.OpenDirectory(_directory["in"]);
        foreach (string name in new[] { "deep/a", "./deep/a", "link", "deep/../deep/a" })
        {
            using FileStorage file = HostFiles.OpenBeneath(directory, name, "shown", StorageAccess.Read);
            Assert.Equal(("shown", 1L), (file.Name, file.Length));
        }
        using FileStorage made = HostFiles.OpenBeneath(directory, "deep/new", "new", StorageAccess.Create);
        Assert.True(File.Exists(_directory["in/deep/new"]));
    }

    [Fact]
    public void Beneath_does_not_leave_by_any_way()
    {
        Directory.CreateDirectory(_directory["in"]);
        File.WriteAllBytes(_directory["secret"], [7]);
        File.CreateSymbolicLink(_directory["in/absolute"], _directory["secret"]);
        File.CreateSymbolicLink(_directory["in/relative"], "../secret");
        File.CreateSymbolicLink(_directory["in/up"], "..");
        File.CreateSymbolicLink(_directory["in/loop"], "loop");
        using SafeFileHandle directory = HostFiles.OpenDirectory(_directory["in"]);
        foreach (string name in new[] { "../secret", "absolute", "relative", "up/secret", _directory["secret"], "x/../../secret", "/etc/passwd" })
        {
            Errno why = Errors(() => HostFiles.OpenBeneath(directory, name, name, StorageAccess.Read));
            Assert.True(why is Errno.EXDEV or Errno.ENOENT, $"{name}: {why}");
        }
        Assert.Equal(Errno.ELOOP, Errors(() => HostFiles.OpenBeneath(directory, "loop", "loop", StorageAccess.Read)));
        Assert.Equal(Errno.EXDEV, Errors(() => HostFiles.OpenBeneath(directory, "../new", "new", StorageAccess.Create)));
        Assert.False(File.Exists(_directory["new"]));
    }

    [Fact]
    public void Beneath_holds_while_someone_swaps_links()
    {
        Directory.CreateDirectory(_directory["in/safe"]);
        Directory.CreateDirectory(_directory["out"]);
        File.WriteAllBytes(_directory["in/safe/a"], [1]);
        File.WriteAllBytes(_directory["out/a"], [2]);
        File.CreateSymbolicLink(_directory["in/now"], "safe");
        using SafeFileHandle directory = HostFiles.OpenDirectory(_directory["in"]);
        using var failures = new ThreadFailures();
        bool stop = false;
        int swaps = 0;
        failures.Start(() =>
        {
            for (; !Volatile.Read(ref stop); swaps++)
            {
                File.CreateSymbolicLink(_directory["in/next"], swaps % 2 == 0 ? _directory["out"] : "safe");
                Assert.Equal(0, Rename(_directory["in/next"], _directory["in/now"]));
            }
        });
        try
        {
            int opened = 0;
            int refused = 0;
            Wait.Until(() => TryBeneath(directory, ref opened, ref refused) && opened > 50 && refused > 50, "both ways were met");
        }
        finally
        {
            Volatile.Write(ref stop, true);
        }
        failures.Join();
    }

    private static bool TryBeneath(SafeFileHandle directory, ref int opened, ref int refused)
    {
        try
        {
            using FileStorage file = HostFiles.OpenBeneath(directory, "now/a", "a", StorageAccess.Read);
            byte[] content = new byte[1];
            file.Read(0, content);
            Assert.Equal(1, content[0]);
            opened++;
        }
        catch (StorageException e)
        {
            Assert.True(e.Errno is Errno.EXDEV or Errno.EAGAIN, e.Message);
            refused++;
        }
        return true;
    }

    // File.Move follows the link that it is to move.
    [LibraryImport("libc", EntryPoint = "rename", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Rename(string from, string to);

    private static Errno Errors(Action open) => Assert.Throws<StorageException>(open).Errno;
}
