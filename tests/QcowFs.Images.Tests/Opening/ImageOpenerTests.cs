// From a path to an open disk: what opens, what is refused in which words, and that chains end.
using System.Diagnostics;
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Opening;

public sealed class ImageOpenerTests : IDisposable
{
    private static readonly OpenOptions ReadOnly = new();
    private static readonly OpenOptions Writable = new() { Writable = true };

    private readonly TempDirectory _temp = new();
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);

    public void Dispose() => _temp.Dispose();

    [Fact]
    public void A_missing_file_is_the_hosts_fault()
    {
        StorageException fault = Assert.Throws<StorageException>(() => _opener.Open(_temp["none"], ReadOnly));
        Assert.Equal(QcowFs.Native.Errno.ENOENT, fault.Errno);
        Assert.Equal(_temp["none"], fault.Path);
    }

    [Fact]
    public void What_has_no_magic_number_is_never_guessed_to_be_raw()
    {
        File.WriteAllText(_temp["empty"], "");
        File.WriteAllText(_temp["text"], "hello");
        File.WriteAllText(_temp["vhd"], "conectix and so on");
        Assert.Equal($"{_temp["empty"]}: format: the file is empty; if it is a raw disk, state that with -f raw", Refusal("empty"));
        Assert.Equal($"{_temp["text"]}: format: no image format was recognised; if it is a raw disk, state that with -f raw", Refusal("text"));
        Assert.Equal($"{_temp["vhd"]}: format at byte 0: the file looks like a VHD image, which cannot be opened; convert it with "
            + "qemu-img convert", Refusal("vhd"));
        Assert.Equal($"{_temp["text"]}: format: \"vmdk\" is not known; use one of qcow2, add-cow, vhdx, raw",
            Refusal("text", ReadOnly with { Format = "vmdk" }));
        Assert.Equal($"{_temp["text"]}: header at byte 0: the magic number is 68656c6c, expected 514649fb; the file is not a qcow2 image; "
            + "state its real format with -f", Refusal("text", ReadOnly with { Format = "qcow2" }));
        using IDiskImage raw = _opener.Open(_temp["text"], ReadOnly with { Format = "raw" });
        Assert.Equal(5, raw.Length);
    }

    [Fact]
    public void A_disk_directory_or_fifo_is_refused_without_hanging()
    {
        Directory.CreateDirectory(_temp["directory"]);
        Assert.Equal(0, ChildProcess.Run("mkfifo", _temp["fifo"]).ExitCode);
        Assert.Throws<StorageException>(() => _opener.Open(_temp["directory"], ReadOnly));
        Assert.Throws<StorageException>(() => _opener.Open(_temp["fifo"], ReadOnly with { Format = "raw" }));
    }

    [Fact]
    public void Tables_past_the_end_of_the_file_are_a_truncated_image()
    {
        Create("cut.qcow2");
        long length = new FileInfo(_temp["cut.qcow2"]).Length;
        using (Damage hands = new(_temp["cut.qcow2"]))
            hands.SetLength(0x30000);
        Assert.Equal(196616, length);
        Assert.Equal($"{_temp["cut.qcow2"]}: L1 table at byte 196608: its 8 bytes reach past the end of the file at byte 196608; "
            + "the image is truncated; restore it from a copy", Refusal("cut.qcow2"));
    }

    [Fact]
    public void Marked_images_can_be_read_but_not_written()
    {
        string path = Create("marked.qcow2");
        Mark(path, IncompatibleFeatures.Corrupt);
        Assert.Equal($"{path}: header at byte 72: the image is marked corrupt and can only be read; run qcowfs check --repair {path}, or "
            + "mount it without -w", Refusal("marked.qcow2", Writable));
        _opener.Open(path, ReadOnly).Dispose();
        Mark(path, IncompatibleFeatures.Journal);
        Assert.Equal($"{path}: header at byte 72: the image has a journal that is not replayed, but no extension says where it is; data can "
            + "be lost: copy the file before anything else, then restore it from a backup", Refusal("marked.qcow2"));
    }

    [Fact]
    public void Encrypted_images_are_refused_by_name_and_described_all_the_same()
    {
        string path = _temp["aes.qcow2"];
        Qemu.Img("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s", path, "1M");
        Assert.Equal($"{path}: header at byte 32: the image is encrypted (AES), which is not supported; make a decrypted copy with "
            + "qemu-img convert", Refusal("aes.qcow2"));
        FormatFact fact = Assert.Single(_opener.ReadInfo(path).FormatSpecific, f => f.Key == "encrypt");
        Assert.Equal([new FormatFact("format", "aes")], (IReadOnlyList<FormatFact>)fact.Value);
        Assert.Equal(0, _opener.Check(path).ExitCode);
    }

    [Fact]
    public void A_chain_reads_as_qemu_reads_it()
    {
        Directory.CreateDirectory(_temp["sub"]);
        File.WriteAllBytes(_temp["sub/base.raw"], [.. Enumerable.Range(0, 300_000).Select(i => (byte)(i % 251))]);
        Qemu.Img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", _temp["sub/middle.qcow2"], "600k");
        Qemu.Io("qcow2", _temp["sub/middle.qcow2"], "write -P 9 100k 50k", "write -z 200k 10k");
        Qemu.Img("create", "-q", "-f", "qcow2", "-b", "sub/middle.qcow2", "-F", "qcow2", _temp["top.qcow2"], "1M");
        Qemu.Io("qcow2", _temp["top.qcow2"], "write -P 7 900k 50k");
        Qemu.Img("convert", "-O", "raw", _temp["top.qcow2"], _temp["flat.raw"]);

        using IDiskImage image = _opener.Open(_temp["top.qcow2"], ReadOnly);
        byte[] bytes = new byte[image.Length];
        image.Read(0, bytes);
        Assert.Equal(File.ReadAllBytes(_temp["flat.raw"]), bytes);
        Assert.Equal(_temp["sub/base.raw"], image.Info.Backing!.Backing!.Path);
        Assert.Equal(["qcow2", "qcow2", "raw"],
            _opener.ReadChainInfo(_temp["top.qcow2"], null, ReferencePolicy.Directory).Select(f => f.Format));
    }

    [Fact]
    public void A_backing_format_that_is_not_stated_is_probed_and_a_foreign_one_refused()
    {
        Create("base.qcow2");
        File.WriteAllBytes(_temp["base.raw"], new byte[1 << 20]);
        File.WriteAllText(_temp["base.vmdk"], "KDMV...");
        foreach ((string name, string? format) in (ReadOnlySpan<(string, string?)>)[("base.qcow2", "qcow2"), ("base.raw", "raw"), ("base.vmdk", null)])
        {
            string path = CreateOver(name, format: null);
            if (format is not null)
            {
                using IDiskImage image = _opener.Open(path, ReadOnly);
                Assert.Equal(format, image.Info.Backing!.Format);
            }
            else
            {
                Assert.Equal($"{_temp[name]}: format at byte 0: the file looks like a VMDK image, which cannot be opened; convert it with "
                    + "qemu-img convert", Assert.Throws<ImageFormatException>(() => _opener.Open(path, ReadOnly)).Message);
            }
        }

        string stated = CreateOver("base.vmdk", "vmdk");
        Assert.Equal($"{stated}: backing file: its format is stated as \"vmdk\", which cannot be opened; convert it with qemu-img convert",
            Assert.Throws<ImageFormatException>(() => _opener.Open(stated, ReadOnly)).Message);

        // A raw disk whose guest wrote a qcow2 header stays raw where that is stated (CVE-2008-2004).
        string forged = CreateOver("base.qcow2", "raw");
        using IDiskImage stillRaw = _opener.Open(forged, ReadOnly);
        Assert.Equal("raw", stillRaw.Info.Backing!.Format);
    }

    [Fact]
    public void A_backing_file_that_is_gone_is_named()
    {
        string path = CreateOver("gone.qcow2", "qcow2");
        Assert.Equal($"{path}: backing file: \"gone.qcow2\": it does not exist; put it back, or rebase the image with qemu-img rebase",
            Assert.Throws<ImageFormatException>(() => _opener.Open(path, ReadOnly)).Message);
        ImageReference reference = Assert.Single(_opener.Inspect(path, null, ReferencePolicy.Directory));
        Assert.True(reference.IsAllowed);
        Assert.Equal("no such file or directory", reference.Problem);
        Assert.Equal(_temp["gone.qcow2"], reference.Path);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_chain_that_loops_is_refused(bool writable)
    {
        string self = CreateOver("self.qcow2", "qcow2", "self.qcow2");
        string first = CreateOver("second.qcow2", "qcow2", "first.qcow2");
        CreateOver("first.qcow2", "qcow2", "second.qcow2");
        string linked = CreateOver("link.qcow2", "qcow2", "linked.qcow2");
        Assert.Equal(0, ChildProcess.Run("ln", linked, _temp["link.qcow2"]).ExitCode);
        OpenOptions options = new() { Writable = writable };
        const string ending = "is already part of the chain, which would never end; rebase the image with qemu-img rebase -u";
        Assert.Equal($"{self}: backing file: \"self.qcow2\" {ending}", Refusal("self.qcow2", options));
        Assert.Equal($"{_temp["second.qcow2"]}: backing file: \"first.qcow2\" {ending}", Refusal("first.qcow2", options));
        Assert.Equal($"{linked}: backing file: \"link.qcow2\" {ending}", Refusal("linked.qcow2", options));
        Assert.Contains("never end", _opener.Inspect(first, null, ReferencePolicy.Directory)[^1].Problem!, StringComparison.Ordinal);
        // Nothing stays open or locked.
        Assert.Throws<ImageFormatException>(() => _opener.Open(self, options));
    }

    [Fact]
    public void A_chain_of_256_images_opens_and_one_of_257_or_1000_does_not()
    {
        CreateOver("0", null, "0", write: false);
        string previous = Create("0.qcow2", "64k");
        for (int i = 1; i < 1000; i++)
            previous = CreateOver($"{i - 1}.qcow2", "qcow2", $"{i}.qcow2");
        using (IDiskImage image = _opener.Open(_temp["255.qcow2"], ReadOnly))
        {
            byte[] bytes = new byte[100];
            image.Read(0, bytes);
        }

        string problem = "backing file: the chain has more than 256 images; shorten it with qemu-img rebase or qemu-img commit";
        Assert.Equal($"{_temp["1.qcow2"]}: {problem}", Refusal("256.qcow2"));
        Assert.Equal($"{_temp["744.qcow2"]}: {problem}", Refusal("999.qcow2"));
        Assert.Equal(256, _opener.Inspect(previous, null, ReferencePolicy.Directory).Count);
    }

    [Fact]
    public void An_image_that_a_virtual_machine_uses_is_refused_and_the_holder_named()
    {
        string path = Create("used.qcow2");
        string top = CreateOver("used.qcow2", "qcow2");
        using Process qemu = Process.Start(new ProcessStartInfo("qemu-io", ["-f", "qcow2", path])
        {
            UseShellExecute = false,
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
        })!;
        try
        {
            // The prompt comes when the image is open.
            Assert.Equal('q', (char)qemu.StandardOutput.Read());
            string message = Assert.Throws<ImageInUseException>(() => _opener.Open(path, Writable)).Message;
            Assert.Equal($"{path}: the file is in use by qemu-io (process {qemu.Id}); stop it or unmount it first", message);
            message = Assert.Throws<ImageInUseException>(() => _opener.Open(top, ReadOnly)).Message;
            Assert.Equal($"{path}: the file is in use for writing by qemu-io (process {qemu.Id}); stop it or unmount it first", message);
            Assert.Equal(new LockFacts($"qemu-io (process {qemu.Id})", Writes: true), _opener.ReadInfo(path).Lock);
            Assert.Throws<ImageInUseException>(() => _opener.Check(path));
        }
        finally
        {
            qemu.StandardInput.Close();
            qemu.WaitForExit();
        }

        using IDiskImage image = _opener.Open(path, Writable);
        Assert.Throws<ImageInUseException>(() => _opener.Open(path, Writable));
        Assert.Throws<ImageInUseException>(() => _opener.Open(top, ReadOnly));
        Assert.NotEqual(0, ChildProcess.Run("qemu-io", "-f", "qcow2", "-c", "read 0 1", path).ExitCode);
    }

    [Fact]
    public void Facts_are_told_without_opening_what_the_image_names()
    {
        string path = CreateOver("gone.qcow2", "qcow2");
        RecordingFiles files = new();
        ImageFileFacts facts = new ImageOpener(files).ReadInfo(path);
        Assert.Equal([(path, HostAccess.Inspect)], files.Opened);
        Assert.Equal("gone.qcow2", facts.BackingName);
        Assert.Equal(_temp["gone.qcow2"], facts.FullBackingName);
        Assert.Equal(1 << 20, facts.VirtualSize);
    }

    [Fact]
    public void Snapshots_are_described_as_qemu_describes_them()
    {
        string path = Create("snapshots.qcow2");
        Qemu.Img("snapshot", "-c", "first one", path);
        Qemu.Img("snapshot", "-c", "second", path);
        var theirs = Qemu.Info(path).GetProperty("snapshots").EnumerateArray().ToList();
        IReadOnlyList<SnapshotFacts> ours = _opener.ReadInfo(path).Snapshots;
        Assert.Equal(2, ours.Count);
        for (int i = 0; i < 2; i++)
        {
            Assert.Equal(theirs[i].GetProperty("id").GetString(), ours[i].Id);
            Assert.Equal(theirs[i].GetProperty("name").GetString(), ours[i].Name);
            Assert.Equal(theirs[i].GetProperty("date-sec").GetInt64(), ours[i].DateSeconds);
            Assert.Equal(theirs[i].GetProperty("date-nsec").GetInt64(), ours[i].DateNanoseconds);
            Assert.Equal(theirs[i].GetProperty("vm-state-size").GetUInt64(), ours[i].VmStateSize);
        }
    }

    private string Create(string name, string size = "1M")
    {
        Qemu.Img("create", "-q", "-f", "qcow2", _temp[name], size);
        return _temp[name];
    }

    // An image over a backing file that need not exist, made without qemu-img, which would look for it.
    private string CreateOver(string backing, string? format, string name = "over.qcow2", bool write = true)
    {
        File.Delete(_temp[name]);
        if (write)
        {
            using FileStorage file = HostFiles.Open(_temp[name], StorageAccess.Create);
            Qcow2Creator.Create(file, null, new Qcow2CreateOptions { VirtualSize = 1 << 20, BackingName = backing, BackingFormat = format });
        }

        return _temp[name];
    }

    private static void Mark(string path, IncompatibleFeatures features)
    {
        using Damage hands = new(path);
        hands.Set(Qcow2HeaderLayout.IncompatibleFeaturesAt, (ulong)features);
    }

    private string Refusal(string name, OpenOptions? options = null) =>
        Assert.Throws<ImageFormatException>(() => _opener.Open(_temp[name], options ?? ReadOnly)).Message;
}
