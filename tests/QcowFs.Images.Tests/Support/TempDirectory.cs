// A directory of its own for one test, gone afterwards also when the test fails.
namespace QcowFs.Images.Tests.Support;

internal sealed class TempDirectory : IDisposable
{
    public string Root { get; } = Directory.CreateTempSubdirectory("qcowfs-images-").FullName;

    public string this[string name] => Path.Combine(Root, name);

    public void Dispose() => Directory.Delete(Root, recursive: true);
}
