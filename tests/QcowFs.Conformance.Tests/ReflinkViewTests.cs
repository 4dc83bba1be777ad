// Read-only disks that the kernel serves out of a file which shares the image's blocks, on real XFS and Btrfs.
using System.Text.Json;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class ReflinkViewTests : IDisposable
{
    private readonly Sandbox _box = new();

    public void Dispose()
    {
        _box.Run("umount", "-l", "host");
        _box.Dispose();
    }

    [SkippableTheory]
    [InlineData("xfs", "qcow2", "cluster_size=64k")]
    [InlineData("xfs", "qcow2", "cluster_size=4k")]
    [InlineData("xfs", "qcow2", "cluster_size=512")] // all is copied
    [InlineData("xfs", "qcow2", "cluster_size=16k,extended_l2=on")] // subclusters of 512 bytes
    [InlineData("xfs", "vhdx", "block_size=1M")]
    [InlineData("btrfs", "qcow2", "cluster_size=64k")]
    [InlineData("btrfs", "vhdx", "block_size=1M")]
    public void The_disk_is_the_same_and_no_request_comes(string fileSystem, string format, string options)
    {
        MakeHost(fileSystem);
        string image = "host/disk." + format;
        // An odd size, holes, single sectors.
        _box.Shell($"""
            qemu-img create -q -f {format} -o {options} {image} 9961984
            qemu-io -f {format} -c 'write -P 1 0 3M' -c 'write -P 2 3146240 512' -c 'write -P 3 5M 70k' -c 'write -P 4 9961472 512' -c 'write -z 1M 256k' {image} >/dev/null
            sync -f host; sha256sum {image} >image.sum; stat -c '%Y %s' {image} >image.stat
            """).Expect();
        string raw = Mount(image);
        string expected = _box.HashByQemu(image);
        Assert.Equal(expected, _box.Hash(raw));
        _box.Shell($"""
            exec 3<{raw} 4<{raw}
            grep -q '"data-path": "reflink-view"' m/.qcowfs/disk.{format}/stats.json
            test $(stat -c %s {raw}) = 9961984
            cmp <(dd if={raw} bs=4k iflag=direct status=none) {raw}
            python3 -c 'import mmap, os; f = os.open("{raw}", os.O_RDONLY); assert mmap.mmap(f, 0, prot=mmap.PROT_READ)[3146240:3146752] == b"\\2" * 512'
            """.Replace("\\\\", "\\", StringComparison.Ordinal)).Expect();
        Assert.Equal(0, Statistics($"disk.{format}").GetProperty("operations").GetProperty("read").GetInt64());
        _box.QcowFs("umount", "m").Expect();
        AssertAlone($"disk.{format}");
        _box.Shell($"sha256sum -c --quiet image.sum; stat -c '%Y %s' {image} | cmp - image.stat").Expect();
        _box.Check(image);
    }

    [SkippableFact]
    public void Compressed_clusters_and_a_chain_over_two_file_systems_are_in_the_view()
    {
        MakeHost("xfs");
        _box.Shell("""
            head -c 2M /dev/urandom >far.raw
            qemu-img convert -f raw -O qcow2 -c far.raw host/base.qcow2
            qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 host/mid.qcow2 3M
            qemu-io -f qcow2 -c 'write -P 5 64k 128k' -c 'write -z 1M 64k' host/mid.qcow2 >/dev/null
            mkdir host/sub; mv host/mid.qcow2 host/sub; qemu-img rebase -u -f qcow2 -F qcow2 -b "$PWD/host/base.qcow2" host/sub/mid.qcow2
            qemu-img create -q -f qcow2 -b "$PWD/host/sub/mid.qcow2" -F qcow2 top.qcow2 4M
            qemu-io -f qcow2 -c 'write -P 6 512k 64k' top.qcow2 >/dev/null
            cp top.qcow2 host/top.qcow2
            """).Expect();
        string expected = _box.HashByQemu("host/top.qcow2");
        string raw = Mount("host/top.qcow2", "--allow-references=all");
        Assert.Equal(expected, _box.Hash(raw));
        AssertServedBy("reflink-view", raw, "top.qcow2");
        _box.QcowFs("umount", "m").Expect();
        // The same top on ext4, its bases on XFS: what cannot be shared is copied where that is little, and the file system cannot share at all.
        raw = Mount("top.qcow2", "--allow-references=all");
        Assert.Equal(expected, _box.Hash(raw));
        _box.QcowFs("umount", "m").Expect();
    }

    [SkippableFact]
    public void Snapshots_have_views_of_their_own()
    {
        MakeHost("xfs");
        _box.Shell("""
            qemu-img create -q -f qcow2 host/disk.qcow2 4M
            qemu-io -f qcow2 -c 'write -P 1 0 1M' host/disk.qcow2 >/dev/null
            qemu-img snapshot -c before host/disk.qcow2
            qemu-io -f qcow2 -c 'write -P 2 0 512k' host/disk.qcow2 >/dev/null
            qemu-img convert -l before -O raw host/disk.qcow2 before.raw
            """).Expect();
        string raw = Mount("host/disk.qcow2");
        const string snapshot = "m/disk.qcow2@before.raw";
        Assert.Equal(_box.Hash("before.raw"), _box.Hash(snapshot));
        Assert.Equal(_box.HashByQemu("host/disk.qcow2"), _box.Hash(raw));
        _box.Shell($"""exec 3<{snapshot}; grep -q '"before": "reflink-view"' m/.qcowfs/disk.qcow2/stats.json""").Expect();
        Assert.Equal(0, Statistics("disk.qcow2").GetProperty("operations").GetProperty("read").GetInt64());
        _box.QcowFs("umount", "m").Expect();
        // Beside a disk that is written the snapshot's file keeps its view, and may be deleted when it is closed.
        _box.QcowFs("mount", "-w", "--reflink-view", "host/disk.qcow2", "m").Expect();
        _box.Shell($"""
            exec 3<{snapshot}
            dd if=/dev/urandom of={raw} bs=64k conv=notrunc,fsync status=none count=64
            cmp {snapshot} before.raw
            exec 3<&-
            """).Expect();
        Assert.Equal(0, Statistics("disk.qcow2").GetProperty("operations").GetProperty("read").GetInt64());
        _box.QcowFs("snapshot", "delete", "host/disk.qcow2", "before").Expect();
        _box.UnmountAndCheck("host/disk.qcow2");
    }

    [SkippableFact]
    public void A_directory_of_images_has_views_and_a_kill_leaves_nothing_behind()
    {
        MakeHost("xfs");
        _box.Shell("""
            qemu-img create -q -f qcow2 host/a.qcow2 64M
            qemu-io -f qcow2 -c 'write -P 1 0 40M' host/a.qcow2 >/dev/null
            sync -f host
            """).Expect();
        string Free() => _box.Run("stat", "-f", "-c", "%f", "host").Expect();
        long before = long.Parse(Free(), null);
        string raw = Mount("host", "--no-partitions").Replace("host.raw", "a.qcow2.raw", StringComparison.Ordinal);
        string hash = _box.HashByQemu("host/a.qcow2");
        Assert.Equal(hash, _box.Hash(raw));
        using (System.Diagnostics.Process reader = _box.Start("sh", "-c", $"exec 3<{raw}; head -c 4096 <&3 >/dev/null; echo open; read line; kill -9 {_box.Servers()[0]}; sha256sum <&3"))
        {
            Assert.Equal("open", reader.StandardOutput.ReadLine());
            AssertServedBy("reflink-view", raw, "a.qcow2");
            AssertAlone("a.qcow2");
            // Shared blocks cost nothing but their map.
            Assert.InRange(before - long.Parse(Free(), null), 0, 512);
            reader.StandardInput.Close();
            reader.WaitForExit();
        }
        _box.QcowFs("umount", "m");
        _box.WaitForServersToEnd();
        Assert.Equal(hash, _box.HashByQemu("host/a.qcow2"));
        _box.Shell("umount host; xfs_repair -n xfs >/dev/null 2>&1; mount -o loop xfs host").Expect();
        Assert.InRange(before - long.Parse(Free(), null), -512, 512);
    }

    [SkippableFact]
    public void Where_a_view_is_not_possible_the_server_answers_and_the_log_says_why_once()
    {
        MakeHost("xfs");
        _box.Shell("""
            head -c 1M /dev/urandom >some.raw
            qemu-img convert -f raw -O qcow2 some.raw ext4.qcow2
            qemu-img create -q -f qcow2 -o preallocation=falloc big.qcow2 280M
            qemu-img create -q -f qcow2 -F qcow2 -b "$PWD/big.qcow2" host/copied.qcow2
            qemu-img convert -f raw -O qcow2 -c some.raw host/full.qcow2
            """).Expect();
        Refused("ext4.qcow2", "cannot share blocks", _box.HashByQemu("ext4.qcow2"), "ext4.qcow2");
        Refused("host/copied.qcow2", "more than 256 MiB would have to be copied", null, "copied.qcow2", "--allow-references=all");
        string hash = _box.HashByQemu("host/full.qcow2");
        _box.Shell("dd if=/dev/zero of=host/filler bs=1M status=none 2>/dev/null || true; dd if=/dev/zero of=host/filler2 bs=4k status=none 2>/dev/null || true").Expect();
        Refused("host/full.qcow2", "the host file system is full", hash, "full.qcow2");
    }

    private void Refused(string image, string because, string? hash, string name, params string[] options)
    {
        string raw = Mount(image, options);
        for (int i = 0; i < 2; i++)
        {
            if (hash is not null) Assert.Equal(hash, _box.Hash(raw));
            AssertServedBy("server", raw, name);
        }
        _box.QcowFs("umount", "m").Expect();
        string log = File.ReadAllText(_box.Path + "/run/qcowfs/qcowfs.log");
        int told = log.Split('\n').Count(line => line.Contains(because, StringComparison.Ordinal));
        Assert.True(told == 1, $"\"{because}\" is told {told} times in\n{log}");
    }

    /// <summary>The directory holds the image and nothing else.</summary>
    private void AssertAlone(string image) => Assert.Equal(image, _box.Shell("ls -A host | grep -v lost+found").Expect());

    private void MakeHost(string fileSystem)
    {
        Tools.Require("mkfs." + fileSystem, "qemu-img", "qemu-io");
        _box.MakeDirectory("host");
        _box.Shell($"truncate -s 320M {fileSystem}; mkfs.{fileSystem} -q {fileSystem}; mount -o loop {fileSystem} host").Expect();
    }

    private string Mount(string image, params string[] options)
    {
        if (!Directory.Exists(_box.Path + "/m")) _box.MakeDirectory("m");
        _box.QcowFs(["mount", "--reflink-view", .. options, image, "m"]).Expect();
        return $"m/{Path.GetFileName(image)}.raw";
    }

    private void AssertServedBy(string path, string raw, string image) =>
        _box.Shell($"exec 3<{raw}; grep '\"data-path\"' m/.qcowfs/{image}/stats.json | grep -q '\"{path}\"'").Expect();

    private JsonElement Statistics(string image)
    {
        using JsonDocument json = JsonDocument.Parse(_box.Run("cat", $"m/.qcowfs/{image}/stats.json").Expect());
        return json.RootElement.Clone();
    }
}
