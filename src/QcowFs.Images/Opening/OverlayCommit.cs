// Writes what an overlay holds into its base and empties it.
//
// At every instant each byte of the disk, as the overlay and its base show it together, is the same as before:
// W1. While data is copied the overlay still holds all of it, so nothing of the base shows through where the base changes.
// W2. All that was copied is durable, zeros included, before the overlay lets go of anything.
// W3. The base is larger before the overlay needs it to be, and reads as zeros where it grew, as the overlay did there.
// W4. The overlay states durably that its base is being changed before the first change, and remembers the base anew at the very end;
//     so an interrupted commit is known for one, and doing all of it again is right.
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images;

/// <summary>What a commit did.</summary>
/// <param name="BasePath">The image that was written.</param>
/// <param name="Written">Bytes of data copied into it.</param>
/// <param name="Zeroed">Bytes made zero in it.</param>
/// <param name="GrownTo">Its new size in bytes, or null where it kept the old one.</param>
public sealed record CommitResult(string BasePath, long Written, long Zeroed, long? GrownTo);

/// <summary>One commit. Used by one thread.</summary>
internal sealed class OverlayCommit : IDisposable
{
    private const int Step = 1 << 20;

    private readonly ImageChain _chain;
    private readonly Action<long, long>? _progress;
    private long _written;
    private long _zeroed;

    private OverlayCommit(ImageChain chain, Action<long, long>? progress)
    {
        _chain = chain;
        _progress = progress;
    }

    private string Name => _chain.Source.Name;

    /// <summary>Commits an image into the one below it. Faults: <see cref="ImageFormatException"/>, <see cref="ImageInUseException"/>,
    /// <see cref="StorageException"/>; after each of them the same commit can be run again.</summary>
    public static CommitResult Run(IHostFiles files, string path, OpenOptions options, Action<long, long>? progress)
    {
        using OverlayCommit commit = new(ImageChain.WalkToCommit(files, path, options), progress);
        return commit.Run();
    }

    public void Dispose() => _chain.Dispose();

    private CommitResult Run()
    {
        IOverlayLayer overlay = RequireOverlay();
        string basePath = _chain.Files(skip: 1).First().Name;
        BaseIdentity? remembered = overlay.Base;
        if (remembered?.DifferenceTo(BaseIdentity.Of(_chain.Files(skip: 1)), basePath) is { } difference)
            throw Refused(difference.Problem, difference.Advice);
        if (remembered is { } normal)
            overlay.Remember(normal with { IsCommitting = true }); // W4
        long? grownTo = Grow(overlay, remembered);
        Copy();
        _chain.WalkBacking(writable: false);
        overlay.Empty();
        if (remembered is not null)
            overlay.Remember(BaseIdentity.Of(_chain.Files(skip: 1)) with { IsCommitting = false });
        return new CommitResult(basePath, _written, _zeroed, grownTo);
    }

    private IOverlayLayer RequireOverlay()
    {
        if (_chain.SourceLayer is not IOverlayLayer overlay || !_chain.HasBacking)
            throw Refused("it has no backing image that it could be written to", "copy it with qemu-img convert");
        CheckReport report = overlay.Check();
        if (report.CheckErrors > 0 || report.Corruptions > report.HarmlessCorruptions)
            throw Refused("it is damaged", $"run qcowfs check --repair {Printable.Quote(Name)} first");
        return overlay;
    }

    private long? Grow(IOverlayLayer overlay, BaseIdentity? remembered)
    {
        long size = _chain.DiskSize;
        if (size <= _chain.BackingSize)
            return null;
        try
        {
            _chain.ResizeBacking(size); // W3
        }
        catch (ImageFormatException)
        {
            // Refused before anything changed, so the base is still the one that was remembered.
            if (remembered is { IsCommitting: false } unchanged)
                overlay.Remember(unchanged);
            throw;
        }

        _chain.WalkBacking(writable: true);
        return size;
    }

    private void Copy()
    {
        using IDiskImage from = _chain.OpenSourceAlone();
        using IDiskImage to = _chain.OpenBacking(writable: true);
        using AlignedBuffer buffer = new(Step);
        long offset = 0;
        while (offset < from.Length)
        {
            _progress?.Invoke(offset, from.Length);
            Extent extent = from.QueryExtent(offset, from.Length - offset);
            switch (extent.Kind)
            {
                case ExtentKind.Backing:
                    break;
                case ExtentKind.Zero:
                    to.Discard(offset, extent.Length);
                    _zeroed += extent.Length;
                    break;
                default:
                    CopyData(from, to, offset, extent.Length, buffer.Span);
                    _written += extent.Length;
                    break;
            }

            offset += extent.Length;
        }

        to.Sync(); // W2
        to.Close();
        _progress?.Invoke(offset, from.Length);
    }

    private void CopyData(IDiskImage from, IDiskImage to, long offset, long length, Span<byte> buffer)
    {
        for (long done = 0; done < length; done += buffer.Length)
        {
            Span<byte> part = buffer[..(int)Math.Min(buffer.Length, length - done)];
            from.Read(offset + done, part);
            to.Write(offset + done, part);
            _progress?.Invoke(offset + done, from.Length);
        }
    }

    private ImageFormatException Refused(string problem, string advice) => new(Name, "commit", -1, problem, advice);
}
