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
        IImageLayer layer = ImageChain.ReadSource(file, format);
        return WithHostFacts(file, Describe(layer, file.Name, new ReferenceGate(files, ReferencePolicy.Directory, path)));
    }

    // The length of a raw data file is looked up without opening it.
    private static ImageFileFacts Describe(IImageLayer layer, string image, ReferenceGate gate)
    {
        NamedReference dataFile = layer.References.FirstOrDefault(r => r.Kind == ReferenceKind.DataFile);
        return layer.Describe(IsRaw(dataFile) ? gate.LengthOf(image, dataFile) : null);
    }

    private static bool IsRaw(NamedReference dataFile) => dataFile.Name is not null && dataFile.Format is null or "raw";

    /// <summary>The format whose magic number a file begins with, or null where it has none of ours. Nothing else is judged.</summary>
    public string? Recognise(string path)
    {
        using IStorage file = files.Open(path, HostAccess.Inspect, directIo: false);
        return ImageFormats.Recognise(file)?.Name;
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
        ReferenceGate gate = new(files, policy, path);
        foreach (ChainStep step in Steps(path, format, policy))
        {
            if (step.Layer is null)
            {
                ImageReference refused = step.Reference!;
                throw new ImageFormatException(refused.Image, "backing file", -1,
                    $"{Printable.Quote(refused.Name)}: {refused.Refusal ?? refused.Problem}", "see qcowfs inspect");
            }

            facts.Add(WithHostFacts(step.File!, step.Layer.Describe(DataSize(gate, step))));
        }

        return facts;
    }

    // Along a chain what the policy allows may be opened.
    private static long? DataSize(ReferenceGate gate, ChainStep step)
    {
        NamedReference dataFile = step.Layer!.References.FirstOrDefault(r => r.Kind == ReferenceKind.DataFile);
        if (dataFile.Name is null)
            return null;
        gate.Inspect(step.File!.Name, dataFile, out IStorage? file);
        using (file)
            return file is null ? null : ImageChain.ReadNamed(file, step.File.Name, dataFile).Describe().VirtualSize;
    }

    /// <summary>Every file or URL that opening the image would open, judged by the policy, from the top down. Files that it allows
    /// are read for the names in them, without locks; nothing else is touched.</summary>
    public IReadOnlyList<ImageReference> Inspect(string path, string? format, ReferencePolicy policy)
    {
        List<ImageReference> references = [];
        using IStorage source = files.Open(path, HostAccess.Inspect, directIo: false);
        HashSet<string> seen = [ImageChain.Identity(source)];
        List(source, ImageChain.ReadSource(source, format), new ReferenceGate(files, policy, path), references, seen);
        return references;
    }

    // The names in one image and in those that they lead to: its data file's before its backing file's, as they are opened.
    private static void List(IStorage image, IImageLayer layer, ReferenceGate gate, List<ImageReference> references, HashSet<string> seen)
    {
        foreach (NamedReference reference in layer.References.Where(r => r.Kind == ReferenceKind.DataFile))
        {
            if (IsRaw(reference))
            {
                references.Add(gate.Inspect(image.Name, reference, out IStorage? plain));
                plain?.Dispose();
                continue;
            }

            Go(Follow(gate, image.Name, layer, reference, seen));
        }

        List<NamedReference> backing = [.. layer.References.Where(r => r.Kind == ReferenceKind.Backing)];
        if (backing.Count > 0)
            Go(FollowFirst(gate, image.Name, layer, backing, seen));

        void Go(ChainStep step)
        {
            references.Add(step.Reference!);
            using (step.File)
            {
                if (step.Layer is not null)
                    List(step.File!, step.Layer, gate, references, seen);
            }
        }
    }

    /// <summary>Checks an image's consistency without changing it. Refuses where another process writes it.</summary>
    /// <param name="path">The image.</param>
    /// <param name="format">The format that the user states, or null to probe.</param>
    /// <param name="policy">Which of the files that it names may be looked at.</param>
    /// <param name="progress">Is told now and then, on this thread, which part has been looked at, 0 to 1; or null.</param>
    public CheckReport Check(
        string path, string? format = null, ReferencePolicy policy = ReferencePolicy.Directory, Action<double>? progress = null)
    {
        using IStorage file = files.Open(path, HostAccess.Read, directIo: false);
        return ReadSource(file, format, progress).Check(reference => Look(path, reference, policy));
    }

    /// <summary>Repairs an image that nobody else uses, and checks it again: the report says what is left and what was mended.
    /// Nothing that something refers to is given up. A crash leaves the image no worse than it was, to be repaired anew.</summary>
    /// <param name="path">The image.</param>
    /// <param name="mode">What to mend.</param>
    /// <param name="format">The format that the user states, or null to probe.</param>
    /// <param name="policy">As for <see cref="Check"/>.</param>
    /// <param name="progress">As for <see cref="Check"/>; each pass over the image begins at 0.</param>
    public CheckReport Repair(
        string path, RepairMode mode, string? format = null, ReferencePolicy policy = ReferencePolicy.Directory, Action<double>? progress = null)
    {
        using IStorage file = files.Open(path, HostAccess.Write, directIo: false);
        return ReadSource(file, format, progress).Repair(mode, reference => Look(path, reference, policy));
    }

    private static IImageLayer ReadSource(IStorage file, string? format, Action<double>? progress)
    {
        IImageLayer layer = ImageChain.ReadSource(file, format);
        if (progress is not null)
            layer.ReportTo(progress);
        return layer;
    }

    // What a check wants to know of a file that the image names.
    private NamedDisk Look(string path, NamedReference reference, ReferencePolicy policy)
    {
        ReferenceGate gate = new(files, policy, path);
        try
        {
            using IStorage file = gate.Open(path, reference, writable: false, new OpenOptions());
            IImageLayer layer = ImageChain.ReadNamed(file, path, reference);
            return new NamedDisk(layer.Describe().VirtualSize, null, layer);
        }
        catch (ImageFormatException fault)
        {
            string problem = fault.File == path ? fault.Problem : $"{Printable.Quote(reference.Name)}: {fault.Structure}: {fault.Problem}";
            return new NamedDisk(null, problem) { IsRefused = !gate.Judge(path, reference).IsAllowed };
        }
        catch (Exception fault) when (fault is StorageException or ImageInUseException)
        {
            return new NamedDisk(null, fault.Message);
        }
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
            while (step.Layer is not null && step.BackingNames is { Count: > 0 } names)
            {
                string image = step.File!.Name;
                IImageLayer above = step.Layer;
                step.File.Dispose();
                step = FollowFirst(gate, image, above, names, seen);
                yield return step;
            }
        }
        finally
        {
            step?.File?.Dispose();
        }
    }

    // Of several names for one file the first that leads to one; where none does, what is wrong with the first.
    private static ChainStep FollowFirst(ReferenceGate gate, string image, IImageLayer above, List<NamedReference> names, HashSet<string> seen)
    {
        ChainStep? refused = null;
        foreach (NamedReference name in names)
        {
            ChainStep step = Follow(gate, image, above, name, seen);
            if (step.Layer is not null || step.WasOpened)
                return step;
            refused ??= step;
        }

        return refused!;
    }

    private static ChainStep Follow(ReferenceGate gate, string image, IImageLayer above, NamedReference reference, HashSet<string> seen)
    {
        ImageReference judged = gate.Inspect(image, reference, out IStorage? file);
        if (file is null)
            return new ChainStep(null, null, judged);
        try
        {
            string? problem = !seen.Add(ImageChain.Identity(file)) ? "it is already part of the chain, which would never end"
                : seen.Count > MaxChainDepth ? $"the chain has more than {MaxChainDepth} images" : null;
            if (problem is null)
            {
                IImageLayer layer = ImageChain.ReadNamed(file, image, reference);
                if (reference.Kind == ReferenceKind.Backing)
                    above.RequireBacking(layer, reference.HostName ?? reference.Name);
                return new ChainStep(file, layer, judged);
            }

            file.Dispose();
            return new ChainStep(null, null, judged with { Problem = problem }) { WasOpened = true };
        }
        catch (ImageFormatException bad)
        {
            file.Dispose();
            return new ChainStep(null, null, judged with { Problem = bad.Problem }) { WasOpened = true };
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
        public List<NamedReference> BackingNames => [.. Layer!.References.Where(r => r.Kind == ReferenceKind.Backing)];

        /// <summary>The name led to a file, whatever is wrong with it.</summary>
        public bool WasOpened { get; init; }
    }
}
