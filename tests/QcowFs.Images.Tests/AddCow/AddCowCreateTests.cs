// Making add-cow images: what exists is kept, what is one file twice is refused, what fails leaves nothing.
using QcowFs.Storage;
using QcowFs.Testing;

namespace QcowFs.Images.Tests.AddCow;

public sealed class AddCowCreateTests : IDisposable
{
    private const int Size = 300_000;
    private readonly TempDirectory _temp = new();

    public AddCowCreateTests() => File.WriteAllBytes(_temp["base"], Pattern.Bytes(1, 0, Size));

    public void Dispose() => _temp.Dispose();

    [Theory]
    [InlineData(Size * 2, Size * 2)]
    [InlineData(Size, Size)]
    [InlineData(1000, Size)]
    public void An_image_file_that_exists_is_never_cut_and_never_shown(int existing, int expected)
    {
        File.WriteAllBytes(_temp["image"], Pattern.Bytes(2, 0, existing));
        Create();
        Assert.Equal(expected, new FileInfo(_temp["image"]).Length);
        Assert.True(File.ReadAllBytes(_temp["image"]).AsSpan(0, existing).SequenceEqual(Pattern.Bytes(2, 0, existing)));
        using IDiskImage image = new ImageOpener(HostFileSystem.Instance).Open(_temp["overlay"], new OpenOptions());
        byte[] bytes = new byte[expected];
        image.Read(0, bytes);
        Assert.True(bytes.AsSpan(0, Size).SequenceEqual(Pattern.Bytes(1, 0, Size)));
        Assert.False(bytes.AsSpan(Size).ContainsAnyExcept((byte)0));
    }

    [Fact]
    public void Without_a_backing_file_the_disk_is_the_image_file()
    {
        File.WriteAllBytes(_temp["image"], Pattern.Bytes(2, 0, Size));
        Create(backing: null, size: 1000);
        using IDiskImage image = new ImageOpener(HostFileSystem.Instance).Open(_temp["overlay"], new OpenOptions());
        byte[] bytes = new byte[Size];
        image.Read(0, bytes);
        Assert.True(bytes.AsSpan().SequenceEqual(Pattern.Bytes(2, 0, Size)));
        Assert.True(image.TryGetIdentityFile(out _));
    }

    [Fact]
    public void Another_add_cow_may_be_the_backing_file()
    {
        Create();
        Create(image: "second", backing: "overlay", format: "add-cow", path: "top");
        using IDiskImage image = new ImageOpener(HostFileSystem.Instance).Open(_temp["top"], new OpenOptions());
        Assert.Equal(Size, image.Length);
        byte[] bytes = new byte[Size];
        image.Read(0, bytes);
        Assert.True(bytes.AsSpan().SequenceEqual(Pattern.Bytes(1, 0, Size)));
        Assert.Equal("image_file: \"image\" is part of the backing file \"overlay\"", Refusal(() => Create(image: "image", backing: "overlay", format: "add-cow", path: "other")));
    }

    [Fact]
    public void One_file_twice_is_refused()
    {
        Assert.Equal(0, ChildProcess.Run("ln", _temp["base"], _temp["hard"]).ExitCode);
        File.CreateSymbolicLink(_temp["soft"], "base");
        foreach (string name in new[] { "base", "hard", "soft", "./base", _temp["base"] })
            Assert.Equal($"image_file: \"{name}\" is part of the backing file \"base\"", Refusal(() => Create(image: name)));
        foreach (string name in new[] { "overlay", "./overlay", _temp["overlay"] })
            Assert.Equal($"image_file: \"{name}\" is the new image itself", Refusal(() => Create(image: name)));
        Assert.Equal(["base", "hard", "soft"], Directory.GetFiles(_temp.Root).Select(Path.GetFileName).Order());
        Assert.True(File.ReadAllBytes(_temp["base"]).AsSpan().SequenceEqual(Pattern.Bytes(1, 0, Size)));
    }

    public static TheoryData<string, string?, string> Wrong => new()
    {
        { "", null, "image_file: state the file that is to hold the data, seen from the image's directory" },
        { "cluster_size", "2048", "cluster_size: 2048 is not a power of two from 4096 to 2097152" },
        { "cluster_size", "4M", "cluster_size: 4194304 is not a power of two from 4096 to 2097152" },
        { "cluster_size", "5000", "cluster_size: 5000 is not a power of two from 4096 to 2097152" },
        { "image_fmt", "vmdk", "image_fmt: \"vmdk\" is not one of" },
        { "image_fmt", "qcow2", "image_file: a new image file is raw; make the qcow2 image first" },
        { "image_file", "nbd:x", "image_file: \"nbd:x\" is not the name of a local file" },
        { "preallocation", "full", "preallocation: the format add-cow has no such option" },
    };

    [Theory]
    [MemberData(nameof(Wrong))]
    public void Wrong_options_are_told_and_leave_nothing(string option, string? value, string message)
    {
        List<KeyValuePair<string, string>> options = option.Length == 0 ? [] : [new("image_file", "image"), new(option, value!)];
        Assert.StartsWith(message, Refusal(() => new ImageCreator(HostFileSystem.Instance).Create(new ImageRequest
        {
            Path = _temp["overlay"],
            Format = "add-cow",
            BackingName = "base",
            BackingFormat = "raw",
            Options = options,
        })), StringComparison.Ordinal);
        Assert.Equal([_temp["base"]], Directory.GetFiles(_temp.Root));
    }

    [Fact]
    public void Names_that_do_not_fit_are_told()
    {
        string name = string.Join('/', Enumerable.Repeat(new string('n', 200), 25));
        Assert.Equal("image_file: the names do not fit into a header of 4096 bytes; give shorter ones, or a larger cluster_size",
            Refusal(() => Create(image: name, clusterSize: "4096")));
    }

    [Fact]
    public void An_image_that_is_there_already_is_kept()
    {
        File.WriteAllText(_temp["overlay"], "precious");
        Assert.Throws<StorageException>(() => Create());
        Assert.Equal("precious", File.ReadAllText(_temp["overlay"]));
        Assert.False(File.Exists(_temp["image"]));
    }

    /// <summary>A crash at any instant leaves no add-cow file, or the whole one, and never less of the image file.</summary>
    [Fact]
    public void Every_instant()
    {
        byte[] existing = Pattern.Bytes(2, 0, 5000);
        foreach (bool exists in new[] { true, false })
        {
            SimulatedDisk done = Start(exists);
            long first = done.Clock + 1;
            CreateOn(done);
            for (long instant = first; instant <= done.Clock; instant++)
            {
                SimulatedDisk disk = Start(exists);
                disk.CrashAt(instant);
                Assert.Throws<SimulatedCrashException>(() => CreateOn(disk));
                foreach ((CrashChoice choice, SimulatedDisk survivor) in disk.EnumerateCrashes(40, (ulong)instant))
                    Judge(survivor, exists, $"instant {instant} {choice}");
            }
        }

        SimulatedDisk Start(bool exists)
        {
            SimulatedDisk disk = new();
            disk.Create("base", Pattern.Bytes(1, 0, Size));
            if (exists)
                disk.Create("image", existing);
            return disk;
        }

        void Judge(SimulatedDisk disk, bool exists, string where)
        {
            if (exists)
                Assert.True(disk.Content("image").AsSpan(0, existing.Length).SequenceEqual(existing), where);
            if (!disk.Names.Contains("overlay") || !disk.Content("overlay").AsSpan().StartsWith("ACOW"u8))
                return;
            ImageOpener opener = new(new Undeleting(disk));
            using (IDiskImage image = opener.Open("overlay", new OpenOptions()))
            {
                byte[] bytes = new byte[Size];
                image.Read(0, bytes);
                Assert.True(image.Length == Size && bytes.AsSpan().SequenceEqual(Pattern.Bytes(1, 0, Size)), where);
            }

            Assert.True(opener.Check("overlay").ExitCode == 0, where);
        }
    }

    private static void CreateOn(SimulatedDisk disk) => new ImageCreator(new Undeleting(disk)).Create(new ImageRequest
    {
        Path = "overlay",
        Format = "add-cow",
        BackingName = "base",
        BackingFormat = "raw",
        // A name so long that the header's fields and names lie in several sectors.
        Options = [new("image_file", string.Concat(Enumerable.Repeat("./", 400)) + "image"), new("cluster_size", "4096")],
    });

    private void Create(string image = "image", string? backing = "base", string? format = null, string path = "overlay", long size = -1, string? clusterSize = null) =>
        new ImageCreator(HostFileSystem.Instance).Create(new ImageRequest
        {
            Path = _temp[path],
            Format = "add-cow",
            Size = size,
            BackingName = backing,
            BackingFormat = backing is null ? null : format ?? "raw",
            Options = clusterSize is null ? [new("image_file", image)] : [new("image_file", image), new("cluster_size", clusterSize)],
        });

    private static string Refusal(Action action) => Assert.Throws<ImageOptionException>(action).Message;

    /// <summary>A machine that is off deletes nothing. Knows that "./" leads nowhere.</summary>
    private sealed class Undeleting(SimulatedDisk disk) : IHostFiles
    {
        private readonly IHostFiles _files = disk;

        public IStorage Open(string path, HostAccess access, bool directIo) =>
            _files.Open(path.Replace("./", "", StringComparison.Ordinal), access, directIo);

        public IStorage OpenBeneath(string directory, string relativePath, HostAccess access, bool directIo) =>
            _files.OpenBeneath(directory, relativePath.Replace("./", "", StringComparison.Ordinal), access, directIo);

        public void SyncName(string path) => _files.SyncName(path);

        public void Delete(string path)
        {
            // Called while the crash travels up.
        }
    }
}
