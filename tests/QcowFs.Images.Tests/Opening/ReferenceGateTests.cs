// Names inside images against each policy: nothing is opened that the policy does not allow, also while the tree changes.
using QcowFs.Images.Qcow2;
using QcowFs.Images.Tests.Support;
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.Opening;

public sealed class ReferenceGateTests : IDisposable
{
    private readonly TempDirectory _temp = new();
    private readonly RecordingFiles _files = new();
    private readonly ImageOpener _opener;

    public ReferenceGateTests()
    {
        _opener = new ImageOpener(_files);
        Directory.CreateDirectory(_temp["images/sub"]);
        Directory.CreateDirectory(_temp["outside"]);
        File.WriteAllBytes(_temp["images/base.raw"], [.. Enumerable.Repeat((byte)1, 4096)]);
        File.WriteAllBytes(_temp["images/sub/base.raw"], [.. Enumerable.Repeat((byte)2, 4096)]);
        File.WriteAllBytes(_temp["outside/secret.raw"], [.. Enumerable.Repeat((byte)0x5E, 4096)]);
        File.CreateSymbolicLink(_temp["images/inside-link"], "sub/base.raw");
        File.CreateSymbolicLink(_temp["images/outside-link"], "../outside/secret.raw");
        File.CreateSymbolicLink(_temp["images/absolute-link"], _temp["outside/secret.raw"]);
        Directory.CreateSymbolicLink(_temp["images/outside-directory"], _temp["outside"]);
    }

    public void Dispose() => _temp.Dispose();

    public static TheoryData<string, string?> DirectoryPolicy => new()
    {
        { "base.raw", null },
        { "./base.raw", null },
        { "sub/base.raw", null },
        { "sub/../base.raw", null },
        { "inside-link", null },
        { "@/images/base.raw", null },
        { "@/images/sub/../base.raw", null },
        { "../outside/secret.raw", "it lies outside the image's directory" },
        { "sub/../../outside/secret.raw", "it lies outside the image's directory" },
        { "outside-link", "it lies outside the image's directory" },
        { "absolute-link", "it lies outside the image's directory" },
        { "outside-directory/secret.raw", "it lies outside the image's directory" },
        { "/etc/shadow", "it lies outside the image's directory" },
        { "@/outside/secret.raw", "it lies outside the image's directory" },
        { "@/images/../outside/secret.raw", "it lies outside the image's directory" },
        { "@/images-other/base.raw", "it lies outside the image's directory" },
        { "/proc/self/root/etc/shadow", "it lies outside the image's directory" },
        { ".", null }, // a directory: the host's fault, see below
        { "json:{\"driver\":\"raw\",\"file.filename\":\"/etc/shadow\"}", "it is a json: description, which is never followed" },
        { "nbd://localhost/x", "it names a protocol, which is never followed" },
        { "nbd:unix:/tmp/x", "it names a protocol, which is never followed" },
        { "file:base.raw", "it names a protocol, which is never followed" },
        { "host_device:/dev/sda", "it names a protocol, which is never followed" },
        { "fat:rw:/tmp", "it names a protocol, which is never followed" },
        { "base.raw\0.qcow2", "it is not a valid file name" },
        { "base\u001b[31m.raw", "it is not a valid file name" },
        { "base\n.raw", "it is not a valid file name" },
    };

    [Theory]
    [MemberData(nameof(DirectoryPolicy))]
    public void The_directory_policy_stays_beneath_the_images_directory(string name, string? refusal)
    {
        name = name.Replace("@", _temp.Root, StringComparison.Ordinal);
        string path = Image("top.qcow2", name);
        ImageReference verdict = Assert.Single(_opener.Inspect(path, null, ReferencePolicy.Directory));
        Assert.Equal(name, verdict.Name);
        Assert.Equal(refusal is null, verdict.IsAllowed);
        Assert.StartsWith(refusal ?? "", verdict.Refusal ?? "", StringComparison.Ordinal);
        if (refusal is not null)
        {
            string message = Assert.Throws<ImageFormatException>(() => _opener.Open(path, new OpenOptions())).Message;
            Assert.Contains(refusal, message, StringComparison.Ordinal);
            Assert.DoesNotContain('\0', message);
        }
        else if (name != ".")
        {
            using IDiskImage image = _opener.Open(path, new OpenOptions());
            Assert.InRange(FirstByte(image), 1, 2);
        }
        else
            Assert.Throws<StorageException>(() => _opener.Open(path, new OpenOptions()));
    }

    [Fact]
    public void The_messages_say_what_to_do()
    {
        string path = Image("top.qcow2", "/etc/shadow");
        Assert.Equal($"{path}: backing file: \"/etc/shadow\": it lies outside the image's directory \"{_temp["images/"]}\"; "
            + "use --allow-references=all if you trust the image", Refusal(path, new OpenOptions()));
        Assert.Equal($"{path}: backing file: \"/etc/shadow\": references are not allowed; use --allow-references=all if you trust the image",
            Refusal(path, new OpenOptions { References = ReferencePolicy.None }));
        path = Image("top.qcow2", "json:{}\n");
        Assert.Equal($"{path}: backing file: \"json:{{}}\\x0a\": it is a json: description, which is never followed; rebase the image onto a "
            + "local file with qemu-img rebase -u", Refusal(path, new OpenOptions { References = ReferencePolicy.All }));
    }

    [Fact]
    public void None_refuses_all_and_All_opens_files_but_no_protocols()
    {
        string path = Image("top.qcow2", "base.raw");
        Refusal(path, new OpenOptions { References = ReferencePolicy.None });
        Assert.All(_files.Opened, o => Assert.Equal(path, o.Path));

        path = Image("top.qcow2", "../outside/secret.raw");
        using IDiskImage image = _opener.Open(path, new OpenOptions { References = ReferencePolicy.All });
        Assert.Equal(0x5E, FirstByte(image));
        Refusal(Image("other.qcow2", "nbd://x"), new OpenOptions { References = ReferencePolicy.All });
    }

    [Fact]
    public void The_root_does_not_move_along_the_chain()
    {
        Image("sub/middle.qcow2", "../base.raw");
        string path = Image("top.qcow2", "sub/middle.qcow2");
        using (IDiskImage image = _opener.Open(path, new OpenOptions()))
            Assert.Equal(1, FirstByte(image));

        Image("sub/middle.qcow2", "../../outside/secret.raw");
        Refusal(path, new OpenOptions());
        Assert.Equal([true, false], _opener.Inspect(path, null, ReferencePolicy.Directory).Select(r => r.IsAllowed));
        // Named by the user, the middle image is the root itself: its parent is outside.
        Image("sub/middle.qcow2", "../base.raw");
        Refusal(_temp["images/sub/middle.qcow2"], new OpenOptions());
    }

    [Fact]
    public void Bytes_that_are_no_UTF8_are_refused()
    {
        string path = Image("top.qcow2", "base1raw");
        byte[] bytes = File.ReadAllBytes(path);
        bytes[bytes.AsSpan().IndexOf("base1raw"u8) + 4] = 0xFF;
        File.WriteAllBytes(path, bytes);
        Assert.Contains("it is not a valid file name", Refusal(path, new OpenOptions()), StringComparison.Ordinal);
    }

    [Fact]
    public void A_data_file_passes_the_gate_and_is_never_the_image_itself()
    {
        string path = External("e.qcow2", "/etc/shadow");
        Assert.Contains("data file: \"/etc/shadow\": it lies outside", Refusal(path, new OpenOptions()), StringComparison.Ordinal);
        Assert.False(Assert.Single(_opener.Inspect(path, null, ReferencePolicy.Directory)).IsAllowed);
        foreach (bool writable in (bool[])[false, true])
        {
            path = External("e.qcow2", "e.qcow2");
            Assert.Contains("already part of the chain", Refusal(path, new OpenOptions { Writable = writable }), StringComparison.Ordinal);
        }

        path = External("e.qcow2", "base.raw");
        _files.Opened.Clear();
        _opener.Open(path, new OpenOptions()).Dispose();
        _opener.Open(path, new OpenOptions { Writable = true }).Dispose();
        Assert.Equal([HostAccess.Read, HostAccess.Read, HostAccess.Write, HostAccess.Write], _files.Opened.Select(o => o.Access));
    }

    [Fact]
    public void A_backing_file_is_opened_for_reading_whatever_the_image_is_opened_for()
    {
        string path = Image("top.qcow2", "base.raw");
        using IDiskImage image = _opener.Open(path, new OpenOptions { Writable = true });
        // The last is the look whether there is an index of deduplication.
        Assert.Equal([(path, HostAccess.Write), (_temp["images/base.raw"], HostAccess.Read), (path + ".dedup", HostAccess.Inspect)], _files.Opened);
    }

    // While one thread swaps the name between a file inside and a link to one outside, no open may ever read the one outside.
    [Fact]
    public void A_swap_between_check_and_open_does_not_lead_out()
    {
        string path = Image("top.qcow2", "swapped.raw");
        string name = _temp["images/swapped.raw"];
        File.Copy(_temp["images/base.raw"], name);
        using CancellationTokenSource stop = new();
        Thread swapper = new(() =>
        {
            while (!stop.IsCancellationRequested)
            {
                File.CreateSymbolicLink(name + ".new", "../outside/secret.raw");
                File.Move(name + ".new", name, overwrite: true);
                File.Copy(_temp["images/base.raw"], name + ".new");
                File.Move(name + ".new", name, overwrite: true);
            }
        });
        swapper.Start();
        int opened = 0;
        int refused = 0;
        try
        {
            for (int i = 0; i < 2000 || ((opened == 0 || refused == 0) && i < 100_000); i++)
            {
                try
                {
                    using IDiskImage image = _opener.Open(path, new OpenOptions());
                    Assert.Equal(1, FirstByte(image));
                    opened++;
                }
                catch (ImageFormatException fault)
                {
                    Assert.Contains("outside", fault.Message, StringComparison.Ordinal);
                    refused++;
                }
            }
        }
        finally
        {
            stop.Cancel();
            swapper.Join();
        }

        Assert.True(opened > 0 && refused > 0, $"{opened} opened, {refused} refused");
    }

    [Fact]
    public void Relative_paths_of_the_user_work_too()
    {
        Image("top.qcow2", "sub/base.raw");
        string relative = Path.GetRelativePath(Directory.GetCurrentDirectory(), _temp["images/top.qcow2"]);
        using IDiskImage image = _opener.Open(relative, new OpenOptions());
        Assert.Equal(2, FirstByte(image));
        Image("absolute.qcow2", _temp["images/base.raw"]);
        relative = Path.GetRelativePath(Directory.GetCurrentDirectory(), _temp["images/absolute.qcow2"]);
        using IDiskImage absolute = _opener.Open(relative, new OpenOptions());
        Assert.Equal(1, FirstByte(absolute));
    }

    private static byte FirstByte(IDiskImage image)
    {
        byte[] bytes = new byte[16];
        image.Read(0, bytes);
        return bytes[0];
    }

    private string Image(string name, string backing) =>
        Write(name, new Qcow2CreateOptions { VirtualSize = 1 << 20, BackingName = backing, BackingFormat = IsQcow2(backing) ? "qcow2" : "raw" });

    private string External(string name, string dataFile) =>
        Write(name, new Qcow2CreateOptions { VirtualSize = 4096, DataFileName = dataFile });

    private static bool IsQcow2(string name) => name.EndsWith(".qcow2", StringComparison.Ordinal);

    private string Write(string name, Qcow2CreateOptions options)
    {
        string path = _temp[$"images/{name}"];
        File.Delete(path);
        using FileStorage file = HostFiles.Open(path, StorageAccess.Create);
        Qcow2Creator.Create(file, null, options);
        return path;
    }

    private string Refusal(string path, OpenOptions options) =>
        Assert.Throws<ImageFormatException>(() => _opener.Open(path, options)).Message;
}
