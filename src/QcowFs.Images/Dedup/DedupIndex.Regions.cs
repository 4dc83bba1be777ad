// How an index begins, goes on after a crash, freezes its logs, and keeps its superblock.
using System.Collections;
using QcowFs.Storage;

namespace QcowFs.Images.Dedup;

/// <content>Regions and superblock.</content>
internal sealed partial class DedupIndex
{
    /// <summary>Opens the index in a file, or begins a new one where the file holds none that belongs to this image (D3).</summary>
    /// <param name="file">The index file, writable. The index owns it, also when this throws.</param>
    /// <param name="settings">Budgets, hash, randomness.</param>
    /// <param name="blockSize">Block size of the image in bytes.</param>
    /// <param name="binding">The image file as it is now.</param>
    /// <param name="log">Told why an index was begun anew, or pauses; may be null.</param>
    public static DedupIndex Open(IStorage file, DedupSettings settings, int blockSize, ImageBinding binding, Action<string>? log)
    {
        try
        {
            byte[] start = new byte[2 * IndexPage.Size];
            file.Read(0, start);
            IndexSuperblock? found = IndexSuperblock.Choose(start);
            IndexGeometry? geometry = found is null ? null
                : IndexGeometry.ForExisting(found.LogPages, found.Buckets, settings.IndexSize, settings.Memory);
            string? refusal = settings.BeginsAnew ? "" : found is null ? file.Length == 0 ? null : "it is damaged"
                : found.BlockSize != blockSize || !found.Binding.IsSameFile(binding) ? "it belongs to another image"
                : settings.Hash is { } wanted && wanted != found.Hash ? "it was made with another hash"
                : geometry is null ? "it does not fit the budgets" : null;
            if (!string.IsNullOrEmpty(refusal))
                log?.Invoke($"{file.Name}: {refusal}; a new index is begun");
            return found is null || refusal is not null
                ? Begin(file, settings, blockSize, binding, log)
                : Resume(new DedupIndex(file, settings, found, geometry!, log));
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>The facts of an index, without using it; null where the file holds none.</summary>
    public static IndexSuperblock? ReadSuperblock(IStorage file)
    {
        byte[] start = new byte[2 * IndexPage.Size];
        file.Read(0, start);
        return IndexSuperblock.Choose(start);
    }

    /// <summary>Entries in the logs of an index that nobody uses, deletes among them.</summary>
    public static long CountLogEntries(IStorage file, IndexSuperblock found)
    {
        long entries = 0;
        byte[] page = new byte[IndexPage.Size];
        if (IndexGeometry.ForExisting(found.LogPages, found.Buckets, long.MaxValue, long.MaxValue) is not { } geometry)
            return 0;
        for (int place = 0; place < found.LogRegions.Count; place++)
        {
            Region region = found.LogRegions[place];
            HashLog log = new(file, geometry, place);
            for (long number = 0; region.State != RegionState.Free && number < geometry.LogPages && log.TryReadPage(region.Id, number, page, out int count); number++)
                entries += count;
        }

        return entries;
    }

    /// <summary>The table bits, or null where they are not known for this state of the image (D8).</summary>
    /// <param name="now">The image file as it is now.</param>
    /// <param name="count">How many tables the image has.</param>
    public BitArray? LoadTableBits(ImageBinding now, int count)
    {
        lock (_lock)
        {
            if (_paused is not null || _superblock.Binding != now || _superblock.TableBits != count || count == 0)
                return null;
            BitArray bits = new(count);
            try
            {
                for (int page = 0; page * IndexGeometry.BitsPerPage < count; page++)
                {
                    _file.Read((IndexGeometry.FirstBitsPage + page) * (long)IndexPage.Size, _page);
                    if (!IndexPage.TryOpen(_page, PageKind.Bits, _superblock.TableBitsId, page, ushort.MaxValue, out _))
                        return null;
                    Span<byte> content = IndexPage.Content(_page);
                    int first = page * IndexGeometry.BitsPerPage;
                    for (int i = first; i < Math.Min(count, first + IndexGeometry.BitsPerPage); i++)
                        bits[i] = (content[(i - first) >> 3] >> ((i - first) & 7) & 1) != 0;
                }
            }
            catch (StorageException exception)
            {
                Pause(exception);
                return null;
            }

            return bits;
        }
    }

    /// <summary>Waits until no log is being frozen. For tests and measurements.</summary>
    internal void WaitForFreezing()
    {
        Thread? freezer;
        lock (_lock)
            freezer = _freezer;
        freezer?.Join();
    }

    private static DedupIndex Begin(IStorage file, DedupSettings settings, int blockSize, ImageBinding binding, Action<string>? log)
    {
        byte[] key = new byte[IndexSuperblock.KeySize];
        settings.FillRandom(key);
        IndexGeometry geometry = IndexGeometry.For(settings.IndexSize, settings.Memory);
        IndexSuperblock superblock = new()
        {
            Sequence = 0,
            BlockSize = blockSize,
            Hash = settings.Hash ?? DedupHash.Xxh3,
            LogPages = geometry.LogPages,
            Buckets = geometry.Buckets,
            Key = key,
            Binding = binding,
            LogRegions = new Region[2],
            TableRegions = new Region[IndexGeometry.MostTables],
        };
        DedupIndex index = new(file, settings, superblock, geometry, log);
        index.TryDo(default, static (self, _) =>
        {
            self._file.SetLength(0);
            self._active.Begin(new Region(RegionState.InUse, self.NewId(), ++self._order, 0));
            self.WriteSuperblock();
            self.WriteSuperblock(); // both copies: none of an older index is left
        });
        return index;
    }

    private static DedupIndex Resume(DedupIndex index)
    {
        index.TryDo(default, static (self, _) => self.LoadRegions());
        return index;
    }

    private void LoadRegions()
    {
        IndexSuperblock found = _superblock;
        HashSet<ulong> ids = [];
        List<(int Place, Region Region)> tables = [];
        for (int place = 0; place < Math.Min(_geometry.Tables, found.TableRegions.Count); place++)
        {
            if (found.TableRegions[place] is { State: RegionState.InUse } region && ids.Add(region.Id))
                tables.Add((place, region));
        }

        // One place stays free for the table to come.
        foreach ((int place, Region region) in tables.OrderBy(table => table.Region.Order).TakeLast(_geometry.Tables - 1))
        {
            FrozenTable table = new(_file, _geometry, place, region);
            table.LoadTags(_page);
            _tables.Add(table);
            _order = Math.Max(_order, region.Order);
        }

        // The older log first, since the newer one's deletes may be about its entries.
        foreach (HashLog log in _logs.OrderBy(log => found.LogRegions[log.Place].Order))
        {
            Region region = found.LogRegions[log.Place];
            if (region.State == RegionState.Free || region.Id == 0 || !ids.Add(region.Id))
                continue;
            byte[] other = new byte[IndexPage.Size];
            log.Resume(region, _page, deleted =>
            {
                foreach (FrozenTable table in _tables)
                    _ = table.Remove(deleted, other);
            });
            _order = Math.Max(_order, region.Order);
        }

        _active = _logs.FirstOrDefault(log => log.Region.State == RegionState.InUse && !log.IsFull)
            ?? _logs.FirstOrDefault(log => log.Region.State == RegionState.Free) ?? _logs[0];
        if (_active.Region.State == RegionState.Free)
            _active.Begin(new Region(RegionState.InUse, NewId(), ++_order, 0));
        if (Other(_active).Region.State != RegionState.Free)
            StartFreezing(Other(_active));
    }

    /// <summary>Makes the other log the active one and begins to freeze the full one. False: the other one is not free yet.</summary>
    private bool TrySwitchLogs()
    {
        HashLog full = _active;
        if (Other(full).Region.State != RegionState.Free || _closing)
            return false;
        _active = Other(full);
        _active.Begin(new Region(RegionState.InUse, NewId(), ++_order, 0));
        full.Mark(RegionState.Freezing);
        WriteSuperblock();
        StartFreezing(full);
        return true;
    }

    private void StartFreezing(HashLog full)
    {
        full.Mark(RegionState.Freezing);
        if (!_settings.Background)
        {
            Freeze(full);
            return;
        }

        _freezer = new Thread(() => FreezeInBackground(full)) { IsBackground = true, Name = "dedup index" };
        _freezer.Start();
    }

    private void FreezeInBackground(HashLog full)
    {
        try
        {
            Freeze(full);
        }
        catch (StorageException exception)
        {
            Pause(exception);
        }
    }

    private void Freeze(HashLog full)
    {
        FrozenTable table;
        lock (_lock)
        {
            int place = Enumerable.Range(0, _geometry.Tables).First(free => _tables.TrueForAll(used => used.Place != free));
            table = new FrozenTable(_file, _geometry, place, new Region(RegionState.InUse, NewId(), full.Region.Order, 0));
        }

        Volatile.Write(ref _buildMemory, table.Memory + Math.Min(_geometry.BuildBuffer, _geometry.Buckets * IndexPage.Size));
        bool built = new TableBuilder(_file, _geometry, full, table).Run(() => _closing || _paused is not null);
        Volatile.Write(ref _buildMemory, 0);
        if (!built)
            return; // the log stays as it is and is frozen after the next open
        lock (_lock)
        {
            _tables.Add(table);
            if (_tables.Count == _geometry.Tables)
                _tables.RemoveAt(0); // D5
            foreach (FrozenTable other in _tables)
                other.SaveTags(_page, all: false); // the deletes that the log carries must outlive it
            full.Free();
            WriteSuperblock();
        }
    }

    private void SaveTableBits(BitArray? bits)
    {
        ulong id = NewId();
        int count = bits is null || bits.Count > (long)IndexGeometry.BitsPages * IndexGeometry.BitsPerPage ? 0 : bits.Count;
        for (int page = 0; page * IndexGeometry.BitsPerPage < count; page++)
        {
            Span<byte> content = IndexPage.Content(_page);
            content.Clear();
            int first = page * IndexGeometry.BitsPerPage;
            for (int i = first; i < Math.Min(count, first + IndexGeometry.BitsPerPage); i++)
            {
                if (bits![i])
                    content[(i - first) >> 3] |= (byte)(1 << ((i - first) & 7));
            }

            IndexPage.Seal(_page, PageKind.Bits, id, page, 0);
            _file.Write((IndexGeometry.FirstBitsPage + page) * (long)IndexPage.Size, _page);
        }

        _superblock = _superblock with { TableBits = count, TableBitsId = id };
    }

    private void WriteSuperblock()
    {
        Region[] tables = new Region[IndexGeometry.MostTables];
        foreach (FrozenTable table in _tables)
            tables[table.Place] = table.Region;
        _superblock = _superblock with
        {
            Sequence = _superblock.Sequence + 1,
            LogRegions = [_logs[0].Region, _logs[1].Region],
            TableRegions = tables,
            Hashed = _superblock.Hashed + Interlocked.Exchange(ref _hashed, 0),
            Hits = _superblock.Hits + Interlocked.Exchange(ref _hits, 0),
            BytesShared = _superblock.BytesShared + Interlocked.Exchange(ref _bytesShared, 0),
        };
        byte[] page = new byte[IndexPage.Size];
        _superblock.WriteTo(page);
        _file.Write((long)(_superblock.Sequence & 1) * IndexPage.Size, page);
    }
}
