// The door to images: from a path that a user named to an open disk, its facts, the names in it, or a check.
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>
/// Opens images of every format. Thread-safe. Faults of all members: <see cref="ImageFormatException"/> (the image, or a name in it, is
/// refused), <see cref="ImageInUseException"/>, <see cref="StorageException"/>.
/// </summary>
/// <param name="files">The host's files.</param>
public sealed class ImageOpener(IHostFiles files)
{
    /// <summary>The longest backing chain that is opened, in images.</summary>
    public const int MaxChainDepth = ImageChain.MaxDepth;

    /// <summary>The names of the formats that can be opened and created.</summary>
    public static IReadOnlyList<string> FormatNames { get; } = [.. ImageFormats.All.Select(f => f.Name)];

    /// <summary>Opens an image with everything below it. The image owns all files; it locks them as <paramref name="options"/> say
    /// until it is closed.</summary>
    public IDiskImage Open(string path, OpenOptions options)
    {
        using ImageChain chain = ImageChain.Walk(files, path, options);
        return chain.Open();
    }

    /// <summary>Facts about an image from its own file alone, without a lock: nothing that it names is opened.</summary>
    /// <param name="path">The image.</param>
    /// <param name="format">The format that the user states, or null to probe.</param>
    public ImageFileFacts ReadInfo(string path, string? format = null)
    {
        using IStorage file = files.Open(path, HostAccess.Inspect, directIo: false);
        return WithHostFacts(file, ImageChain.ReadSource(file, format).Describe());
    }

    /// <summary>What the image's journal holds, from its own file alone, without a lock; null where it has none.</summary>
    /// <param name="path">The image.</param>
    /// <param name="format">The format that the user states, or null to probe.</param>
    public JournalFacts? ReadJournal(string path, string? format = null)
    {
        using IStorage file = files.Open(path, HostAccess.Inspect, directIo: false);
        return ImageChain.ReadSource(file, format).DescribeJournal();
    }

    /// <summary>Facts about an image and all below it, from the top down, without locks. What the policy refuses is a fault.</summary>
    public IReadOnlyList<ImageFileFacts> ReadChainInfo(string path, string? format, ReferencePolicy policy)
    {
        List<ImageFileFacts> facts = [];
        foreach (ChainStep step in Steps(path, format, policy))
        {
            if (step.Layer is null)
            {
                ImageReference refused = step.Reference!;
                throw new ImageFormatException(refused.Image, "backing file", -1,
                    $"{Printable.Quote(refused.Name)}: {refused.Refusal ?? refused.Problem}", "see qcowfs inspect");
            }

            facts.Add(WithHostFacts(step.File!, step.Layer.Describe()));
        }

        return facts;
    }

    /// <summary>Every file or URL that opening the image would open, judged by the policy, from the top down. Files that it allows
    /// are read for the names in them, without locks; nothing else is touched.</summary>
    public IReadOnlyList<ImageReference> Inspect(string path, string? format, ReferencePolicy policy)
    {
        List<ImageReference> references = [];
        ReferenceGate gate = new(files, policy, path);
        foreach (ChainStep step in Steps(path, format, policy))
        {
            if (step.Reference is not null)
                references.Add(step.Reference);
            foreach (NamedReference dataFile in step.Layer?.References.Where(r => r.Kind == ReferenceKind.DataFile) ?? [])
            {
                references.Add(gate.Inspect(step.File!.Name, dataFile, out IStorage? file));
                file?.Dispose();
            }
        }

        return references;
    }

    /// <summary>Checks an image's consistency without changing it. Refuses where another process writes it.</summary>
    public CheckReport Check(string path, string? format = null)
    {
        using IStorage file = files.Open(path, HostAccess.Read, directIo: false);
        return ImageChain.ReadSource(file, format).Check();
    }

    /// <summary>Repairs an image that nobody else uses, and checks it again: the report says what is left and what was mended.
    /// Nothing that something refers to is given up. A crash leaves the image no worse than it was, to be repaired anew.</summary>
    public CheckReport Repair(string path, RepairMode mode, string? format = null)
    {
        using IStorage file = files.Open(path, HostAccess.Write, directIo: false);
        return ImageChain.ReadSource(file, format).Repair(mode);
    }

    // A chain as far as it can be followed, one image at a time. The last step tells why it ends early. A step's file is open until
    // the next step is asked for.
    private IEnumerable<ChainStep> Steps(string path, string? format, ReferencePolicy policy)
    {
        ReferenceGate gate = new(files, policy, path);
        HashSet<string> seen = [];
        ChainStep? step = null;
        try
        {
            IStorage file = files.Open(path, HostAccess.Inspect, directIo: false);
            step = new ChainStep(file, null, null);
            step = step with { Layer = ImageChain.ReadSource(file, format) };
            seen.Add(ImageChain.Identity(file));
            yield return step;
            while (step.Backing is { Name: not null } reference)
            {
                string image = step.File!.Name;
                step.File.Dispose();
                step = Follow(gate, image, reference, seen);
                yield return step;
            }
        }
        finally
        {
            step?.File?.Dispose();
        }
    }

    private static ChainStep Follow(ReferenceGate gate, string image, NamedReference reference, HashSet<string> seen)
    {
        ImageReference judged = gate.Inspect(image, reference, out IStorage? file);
        if (file is null)
            return new ChainStep(null, null, judged);
        try
        {
            string? problem = !seen.Add(ImageChain.Identity(file)) ? "it is already part of the chain, which would never end"
                : seen.Count > MaxChainDepth ? $"the chain has more than {MaxChainDepth} images" : null;
            if (problem is null)
                return new ChainStep(file, ImageChain.ReadBacking(file, image, reference), judged);
            file.Dispose();
            return new ChainStep(null, null, judged with { Problem = problem });
        }
        catch (ImageFormatException bad)
        {
            file.Dispose();
            return new ChainStep(null, null, judged with { Problem = bad.Problem });
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    private static ImageFileFacts WithHostFacts(IStorage file, ImageFileFacts facts)
    {
        if (file is not FileStorage hostFile)
            return facts;
        LockConflict? any = QemuLocks.Query(hostFile, LockRole.Writer);
        return facts with
        {
            ActualSize = hostFile.QueryFacts().AllocatedBytes,
            Lock = any is null ? null : new LockFacts(any.Holder, QemuLocks.Query(hostFile, LockRole.Reader) is not null),
        };
    }

    /// <param name="File">The image's file, or null where the chain ends before it.</param>
    /// <param name="Layer">The image, or null likewise.</param>
    /// <param name="Reference">The name that led here, or null for the image that the user named.</param>
    private sealed record ChainStep(IStorage? File, IImageLayer? Layer, ImageReference? Reference)
    {
        public NamedReference? Backing => Layer?.References.FirstOrDefault(r => r.Kind == ReferenceKind.Backing);
    }
}
