// The one gate for every name that comes out of an image: nothing named inside an image is opened except here.
//   G1. A name that is a protocol or a json: description is never followed, whatever the policy.
//   G2. A relative name starts at the directory of the image that holds it, as in QEMU (whose data files start at the working
//       directory instead; the format says what we do).
//   G3. With the policy Directory everything stays beneath one root, the directory of the image that the user named; the root does
//       not move along a chain. The kernel walks the path and refuses to leave the root in the same step that opens the file, so
//       neither a symbolic link nor a change of the tree between check and open leads out.
//   G4. A backing file is opened for reading only, except by a commit, which the user asked to write it.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>Judges and opens names found inside images. Thread-safe.</summary>
internal sealed class ReferenceGate(IHostFiles files, ReferencePolicy policy, string sourcePath)
{
    private const string DataAdvice = "put the file with its data where the image looks for it";
    private const string AllowAll = "use --allow-references=all if you trust the image";
    private readonly string _root = DirectoryPrefix(sourcePath);

    /// <summary>Where a name in an image leads, by G2; null where it is no file name.</summary>
    public static string? Resolve(string image, string name) =>
        RefuseName(name) is not null ? null : Path.IsPathRooted(name) ? name : DirectoryPrefix(image) + name;

    /// <summary>What the name leads to, judged by its text alone: no file is touched.</summary>
    public ImageReference Judge(string image, NamedReference reference)
    {
        string name = reference.HostName ?? reference.Name;
        string? path = Resolve(image, name);
        string? refusal = policy switch
        {
            _ when path is null => RefuseName(name),
            ReferencePolicy.None => "references are not allowed",
            ReferencePolicy.Directory when Beneath(path) is null => OutsideRoot(),
            _ => null,
        };
        return new ImageReference(reference.Kind, image, reference.Name, reference.Format, path, refusal, null);
    }

    /// <summary>Opens what the name leads to. Faults: <see cref="ImageFormatException"/> where it is refused or gone,
    /// <see cref="StorageException"/> and <see cref="ImageInUseException"/> where the host or somebody else does not let us.</summary>
    public IStorage Open(string image, NamedReference reference, bool writable, OpenOptions options)
    {
        ImageReference judged = Judge(image, reference);
        if (judged.Path is null)
            throw Refused(judged, judged.Refusal!, IsBacking(judged) ? AdviceAgainstName(reference) : DataAdvice);
        if (judged.Refusal is not null)
            throw Refused(judged, judged.Refusal, AllowAll);
        // G4
        HostAccess access = !options.Lock ? HostAccess.Inspect
            : writable ? HostAccess.Write : HostAccess.Read;
        try
        {
            return OpenAllowed(judged.Path, access, options.DirectIo);
        }
        catch (StorageException fault) when (fault.Errno == Errno.EXDEV)
        {
            // G3
            throw Refused(judged, OutsideRoot(), AllowAll);
        }
        catch (StorageException fault) when (fault.Errno is Errno.ENOENT or Errno.ENOTDIR)
        {
            throw Refused(judged, "it does not exist", IsBacking(judged) ? AdviceForLost(reference) : DataAdvice);
        }
    }

    /// <summary>Opens what the name leads to for reading without a lock, where it is allowed and can be had.</summary>
    /// <returns>The verdict, with the reason where <paramref name="file"/> is null.</returns>
    public ImageReference Inspect(string image, NamedReference reference, out IStorage? file)
    {
        file = null;
        ImageReference judged = Judge(image, reference);
        if (!judged.IsAllowed)
            return judged;
        try
        {
            file = OpenAllowed(judged.Path!, HostAccess.Inspect, directIo: false);
            return judged;
        }
        catch (StorageException fault)
        {
            return fault.Errno == Errno.EXDEV ? judged with { Refusal = OutsideRoot() }
                : judged with { Problem = ErrnoText.Describe(fault.Errno) };
        }
    }

    /// <summary>The length of the regular file that the name leads to, where it is allowed; nothing is opened for it.</summary>
    public long? LengthOf(string image, NamedReference reference)
    {
        ImageReference judged = Judge(image, reference);
        if (!judged.IsAllowed || policy == ReferencePolicy.All || judged.Path!.Split('/').Contains(".."))
            return null;
        return files.TryGetLength(_root.Length == 0 ? "." : _root, Beneath(judged.Path)!);
    }

    private IStorage OpenAllowed(string path, HostAccess access, bool directIo) => policy == ReferencePolicy.All
        ? files.Open(path, access, directIo)
        : files.OpenBeneath(_root.Length == 0 ? "." : _root, Beneath(path)!, access, directIo);

    // G1. QEMU takes everything up to a colon before the first slash for a protocol ("nbd:", "fat:", "file:", "json:").
    private static string? RefuseName(string name)
    {
        if (name.StartsWith("json:", StringComparison.Ordinal))
            return "it is a json: description, which is never followed";
        int colon = name.IndexOf(':', StringComparison.Ordinal);
        int slash = name.IndexOf('/', StringComparison.Ordinal);
        if (colon >= 0 && (slash < 0 || colon < slash))
            return "it names a protocol, which is never followed";
        // A replacement character is what decoding leaves of bytes that are no UTF-8, so the path is not known. Control characters would
        // write to the terminals and logs that later name the file.
        return name.Length == 0 || name.Any(c => char.IsControl(c) || c == '\uFFFD') ? "it is not a valid file name" : null;
    }

    // The path from the root on, as far as the text tells, or null. ".." is left for the kernel to judge.
    private string? Beneath(string path)
    {
        string root = _root;
        if (Path.IsPathRooted(path) && !Path.IsPathRooted(root))
            root = DirectoryPrefix(Path.Join(Path.GetFullPath(root.Length == 0 ? "." : root), "x"));
        string? rest = path.StartsWith(root, StringComparison.Ordinal) ? path[root.Length..].TrimStart('/') : null;
        return rest is { Length: > 0 } ? rest : null;
    }

    private string OutsideRoot() => $"it lies outside the image's directory {Printable.Quote(_root.Length == 0 ? "." : _root)}";

    // Everything up to the last slash, that included; "" for a bare name.
    private static string DirectoryPrefix(string path) => path[..(path.LastIndexOf('/') + 1)];

    private static bool IsBacking(ImageReference reference) => reference.Kind == ReferenceKind.Backing;

    private static string AdviceAgainstName(NamedReference reference) => reference.Rebase is { } rebase
        ? $"rebase the image onto a local file with {rebase} -u" : "nothing can change the name; restore the image from a copy";

    private static string AdviceForLost(NamedReference reference) =>
        reference.Rebase is { } rebase ? $"put it back, or rebase the image with {rebase}"
        : reference.HostName is null ? "put it back, or a link to it, under that name"
        : "put it back, or beside the image";

    private static ImageFormatException Refused(ImageReference reference, string why, string advice) => new(reference.Image,
        IsBacking(reference) ? "backing file" : "data file", -1, $"{Printable.Quote(reference.Name)}: {why}", advice);
}

/// <summary>A name as an image states it.</summary>
/// <param name="Kind">What it is to the image.</param>
/// <param name="Name">The name; any text.</param>
/// <param name="Format">The format stated for it, or null.</param>
/// <param name="HostName">The name in this host's form where the image states it in another's, or null.</param>
internal readonly record struct NamedReference(ReferenceKind Kind, string Name, string? Format, string? HostName = null)
{
    /// <summary>The command that makes the image name another backing file, for advice; null where its format has none.</summary>
    public string? Rebase { get; init; }
}
