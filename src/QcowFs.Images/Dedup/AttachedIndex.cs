// The index beside an image, tied to the image file's state.
using System.Collections;
using QcowFs.Native;
using QcowFs.Storage;

namespace QcowFs.Images.Dedup;

/// <summary>An open index and the image file that it belongs to. Owns the index, not the image file.</summary>
/// <param name="index">The index.</param>
/// <param name="binding">The image file as it is at that moment.</param>
/// <param name="log">Told what a person may want to know; may be null.</param>
internal sealed class AttachedIndex(DedupIndex index, Func<ImageBinding> binding, Action<string>? log) : IDisposable
{
    public DedupIndex Index => index;

    /// <summary>Opens or makes the index of an image. What lies at its name and is no index is replaced.</summary>
    public static AttachedIndex Open(IHostFiles files, IStorage image, int blockSize, DedupSettings settings, Action<string>? log)
    {
        string path = DedupSettings.IndexPath(image.Name);
        ImageBinding Binding() => BindingOf(image);
        if (!IsIndexOrNothing(files, path))
        {
            // Only the name goes: were it a link to something else, that stays as it is.
            log?.Invoke($"{path}: it is not an index; a new one is begun");
            files.Delete(path);
        }

        IStorage? file = TryOpen(files, path, HostAccess.Write);
        if (file is null)
        {
            file = files.Open(path, HostAccess.Create, directIo: false);
            files.SyncName(path);

            // Hashes tell who reads them what blocks hold, to some extent: whoever may not read the image may not read them.
            if (file is FileStorage index && image is FileStorage host)
                HostFiles.SetMode(index, host.QueryFacts().Mode & 0x1B6);
        }

        return new AttachedIndex(DedupIndex.Open(file, settings, blockSize, Binding(), log), Binding, log);
    }

    /// <summary>Looked at without a lock and without writing, before anything else is done with the file.</summary>
    private static bool IsIndexOrNothing(IHostFiles files, string path)
    {
        using IStorage? file = TryOpen(files, path, HostAccess.Inspect);
        if (file is null || file.Length == 0)
            return true;
        byte[] start = new byte[2 * IndexPage.Size];
        file.Read(0, start);
        return IndexSuperblock.IsRecognised(start);
    }

    /// <summary>Whether there is a file at the name of the image's index.</summary>
    public static bool Exists(IHostFiles files, string image)
    {
        try
        {
            using IStorage? file = TryOpen(files, DedupSettings.IndexPath(image), HostAccess.Inspect);
            return file is not null;
        }
        catch (StorageException)
        {
            return true; // something is there that cannot be opened
        }
    }

    /// <summary>Opens the index of an image, or gives null where there is none.</summary>
    public static IStorage? TryOpen(IHostFiles files, string path, HostAccess access)
    {
        try
        {
            return files.Open(path, access, directIo: false);
        }
        catch (StorageException exception) when (exception.Errno == Errno.ENOENT)
        {
            return null;
        }
    }

    /// <summary>The state of an image file. A storage without a host tells files apart by name.</summary>
    public static ImageBinding BindingOf(IStorage image)
    {
        if (image is not FileStorage host)
            return new ImageBinding(0, unchecked((ulong)XxHash.Hash128(System.Text.Encoding.UTF8.GetBytes(image.Name))), image.Length, 0, 0);
        FileFacts facts = host.QueryFacts();
        return new ImageBinding(facts.Device, facts.Inode, facts.Length, facts.ModifiedSeconds, facts.ModifiedNanoseconds);
    }

    /// <summary>The table bits, where they are known for the image as it is now (D8).</summary>
    public BitArray? LoadTableBits(int count) => index.LoadTableBits(binding(), count);

    /// <summary>Binds the index to the image as it is now. Where the host does not tell how that is, the index stays unbound.</summary>
    public void Bind()
    {
        try
        {
            index.Bind(binding());
        }
        catch (StorageException exception)
        {
            log?.Invoke($"{exception.Message}; the dedup index stays unbound");
        }
    }

    public void Dispose() => index.Dispose();
}
