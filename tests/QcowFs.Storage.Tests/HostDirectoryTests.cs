// Directories by descriptor: what is listed, what links lead to, names that are not UTF-8.
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests;

public sealed class HostDirectoryTests
{
    [Theory]
    [InlineData(LinkPolicy.None, "file odd")]
    [InlineData(LinkPolicy.Beneath, "file inside odd")]
    [InlineData(LinkPolicy.Any, "file inside odd outside")]
    public void Regular_files_are_listed_and_links_as_far_as_the_policy_goes(LinkPolicy links, string expected)
    {
        using TempDirectory temp = new();
        string root = temp.Root + "/d";
        Directory.CreateDirectory(root + "/sub");
        File.WriteAllText(root + "/file", "12345");
        File.WriteAllText(temp.Root + "/secret", "secret");
        File.CreateSymbolicLink(root + "/inside", "file");
        File.CreateSymbolicLink(root + "/outside", "../secret");
        File.CreateSymbolicLink(root + "/dangling", "nothing");
        File.CreateSymbolicLink(root + "/folder", "sub");
        ChildProcess.Run("sh", "-c", $"mkfifo {root}/pipe; printf odd > \"$(printf '{root}/odd\\377')\"").MustSucceed();

        using HostDirectory directory = new(root, links);
        List<HostEntry> entries = [.. directory.List().Where(e => directory.TryQuery(e) is not null)];
        Assert.Equal(expected.Split(' ').Order(), entries.Select(e => e.Name.TrimEnd('\uDCFF')).Order());
        foreach (HostEntry entry in entries)
        {
            using FileStorage file = directory.Open(entry.Name, StorageAccess.Read);
            Assert.Equal(directory.TryQuery(entry)!.Value.Inode, file.QueryFacts().Inode);
        }
        ChildProcess.Run("sh", "-c", $"rm {root}/odd*").MustSucceed(); // the runtime cannot name it
        if (links != LinkPolicy.Any)
        {
            StorageException refused = Assert.Throws<StorageException>(() => directory.Open("outside", StorageAccess.Read));
            Assert.Equal(links == LinkPolicy.None ? Errno.ELOOP : Errno.EXDEV, refused.Errno);
        }
    }

    [Fact]
    public void It_is_listed_anew_each_time_and_is_the_directory_that_was_opened()
    {
        using TempDirectory temp = new();
        Directory.CreateDirectory(temp.Root + "/d");
        using HostDirectory directory = new(temp.Root + "/d", LinkPolicy.None);
        Assert.Empty(directory.List());
        for (int i = 0; i < 2000; i++) File.WriteAllText($"{temp.Root}/d/{i}", "");
        Assert.Equal(2000, directory.List().Select(e => e.Name).Distinct().Count());
        Directory.Move(temp.Root + "/d", temp.Root + "/e");
        Directory.CreateDirectory(temp.Root + "/d");
        Assert.Equal(2000, directory.List().Count);
        Assert.Null(directory.TryQuery(new HostEntry("none", IsLink: false)));
    }
}
