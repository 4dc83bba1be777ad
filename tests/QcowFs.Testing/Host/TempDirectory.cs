// A directory of its own for one test, gone afterwards also when the test fails.
namespace QcowFs.Testing;

/// <summary>A new directory, on the usual file system for temporary files or, with <see cref="InMemory"/>, on tmpfs.</summary>
public sealed class TempDirectory : IDisposable
{
    private TempDirectory(string root) => Root = root;

    public TempDirectory()
        : this(Directory.CreateTempSubdirectory("qcowfs-test-").FullName)
    {
    }

    public string Root { get; }

    /// <summary>The path of a name in it.</summary>
    public string this[string name] => Path.Combine(Root, name);

    public static TempDirectory InMemory()
    {
        Tools.RequireDirectory("/dev/shm");
        string root = Path.Combine("/dev/shm", "qcowfs-test-" + Path.GetRandomFileName());
        Directory.CreateDirectory(root);
        return new TempDirectory(root);
    }

    public void Dispose() => Directory.Delete(Root, recursive: true);
}
