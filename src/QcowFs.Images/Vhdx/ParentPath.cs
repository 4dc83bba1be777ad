// Where a parent may be, seen from a host that is no Windows: paths with a drive or volume lead nowhere here, so the file is looked
// for beside the child by their last part, as somebody who copies a chain puts it.
namespace QcowFs.Images.Vhdx;

internal static class ParentPath
{
    /// <summary>The names to try, in order. Every one goes through the gate.</summary>
    public static IReadOnlyList<NamedReference> Candidates(ParentLocator locator)
    {
        List<NamedReference> found = [];
        if (locator[ParentLocator.RelativePathKey] is { } relative)
            Add(found, relative, ToHost(relative));
        foreach (string path in locator.Paths)
            Add(found, path, LastPart(ToHost(path)));
        return found;
    }

    /// <summary>A relative path of this host in the form that the format has.</summary>
    public static string FromHost(string path) => path.Contains('/', StringComparison.Ordinal) ? path.Replace('/', '\\') : $".\\{path}";

    private static void Add(List<NamedReference> found, string stated, string host)
    {
        if (!found.Exists(reference => reference.HostName == host))
            found.Add(new NamedReference(ReferenceKind.Backing, stated, VhdxFormat.FormatName, host));
    }

    private static string ToHost(string path)
    {
        path = path.Replace('\\', '/');
        while (path.StartsWith("./", StringComparison.Ordinal))
            path = path[2..];
        return path;
    }

    private static string LastPart(string path) => path[(path.LastIndexOf('/') + 1)..];
}
