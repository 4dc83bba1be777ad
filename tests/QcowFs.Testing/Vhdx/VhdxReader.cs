// A second, simple reader of VHDX files for the tests: written from the format's description alone, sharing nothing with the program,
// believing everything, the whole file in memory. It replays the log into its copy, and reads through parents.
using System.Buffers.Binary;
using System.Text;

namespace QcowFs.Testing;

/// <summary>A VHDX file as an independent witness reads it. Throws <see cref="InvalidDataException"/> where it finds no sense.</summary>
public sealed class VhdxReader
{
    private const int Mebibyte = 1 << 20;
    private readonly byte[] _file;
    private readonly VhdxReader? _parent;
    private readonly long _bat;
    private readonly int _blockSize;
    private readonly int _sectorSize;

    public VhdxReader(byte[] file, VhdxReader? parent = null)
    {
        _parent = parent;
        int header = FindHeader(file);
        DataWriteGuid = new Guid(file.AsSpan(header + 32, 16));
        Guid log = new(file.AsSpan(header + 48, 16));
        LogIsEmpty = log == Guid.Empty;
        _file = LogIsEmpty ? file : Replay(file, log, (int)Get64(file, header + 72), (int)Get32(file, header + 68));
        (_bat, long metadata) = FindRegions();
        Dictionary<Guid, int> items = FindItems((int)metadata);
        int parameters = items[new Guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")];
        _blockSize = (int)Get32(_file, parameters);
        HasParent = (Get32(_file, parameters + 4) & 2) != 0;
        Length = (long)Get64(_file, items[new Guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")]);
        _sectorSize = (int)Get32(_file, items[new Guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")]);
        if (HasParent)
            ReadLocator(items[new Guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")]);
        if (HasParent && parent is not null && Linkage != parent.DataWriteGuid)
            throw new InvalidDataException("the parent is not the one that the child was made over");
    }

    public long Length { get; }

    public bool HasParent { get; }

    public bool LogIsEmpty { get; }

    public Guid DataWriteGuid { get; }

    public Guid Linkage { get; private set; }

    /// <summary>The parent locator's keys and values.</summary>
    public Dictionary<string, string> Locator { get; } = [];

    /// <summary>The whole disk.</summary>
    public byte[] ReadAll()
    {
        byte[] disk = new byte[Length];
        byte[]? below = HasParent ? (_parent ?? throw new InvalidDataException("no parent was given")).ReadAll() : null;
        long ratio = (1L << 23) * _sectorSize / _blockSize;
        for (long block = 0; block * _blockSize < Length; block++)
        {
            ulong entry = Get64(_file, (int)(_bat + (block + block / ratio) * 8));
            long place = (long)(entry >> 20) * Mebibyte;
            int start = (int)(block * _blockSize);
            int count = (int)Math.Min(_blockSize, Length - start);
            switch (entry & 7)
            {
                case 0:
                    below?.AsSpan(start, count).CopyTo(disk.AsSpan(start));
                    break;
                case 6:
                    Copy(place, disk.AsSpan(start, count));
                    break;
                case 7:
                    CopySectors(disk, below!, block, ratio, place, start, count);
                    break;
                case 1 or 2 or 3 or 5:
                    break;
                default:
                    throw new InvalidDataException($"block {block} has state 4");
            }
        }

        return disk;
    }

    private void CopySectors(byte[] disk, byte[] below, long block, long ratio, long place, int start, int count)
    {
        long chunk = block / ratio;
        ulong entry = Get64(_file, (int)(_bat + (chunk * (ratio + 1) + ratio) * 8));
        if ((entry & 7) != 6)
            throw new InvalidDataException("no sector bitmap");
        int bitmap = (int)(entry >> 20) * Mebibyte;
        for (int at = 0; at < count; at += _sectorSize)
        {
            long sector = (block % ratio * _blockSize + at) / _sectorSize;
            bool here = (_file[bitmap + sector / 8] >> (int)(sector % 8) & 1) != 0;
            if (here)
                Copy(place + at, disk.AsSpan(start + at, _sectorSize));
            else
                below.AsSpan(start + at, _sectorSize).CopyTo(disk.AsSpan(start + at));
        }
    }

    private void Copy(long place, Span<byte> destination)
    {
        int there = (int)Math.Clamp(_file.Length - place, 0, destination.Length);
        _file.AsSpan((int)place, there).CopyTo(destination);
    }

    private static int FindHeader(byte[] file)
    {
        int found = -1;
        foreach (int at in new[] { 0x10000, 0x20000 })
        {
            bool valid = Encoding.ASCII.GetString(file, at, 4) == "head" && Get32(file, at + 4) == Checksum(file.AsSpan(at, 4096), 4);
            if (valid && (found < 0 || Get64(file, at + 8) > Get64(file, found + 8)))
                found = at;
        }

        return found >= 0 ? found : throw new InvalidDataException("no header is valid");
    }

    private (long Bat, long Metadata) FindRegions()
    {
        int table = Checksum(_file.AsSpan(0x30000, 65536), 4) == Get32(_file, 0x30004) ? 0x30000 : 0x40000;
        long bat = 0;
        long metadata = 0;
        for (int i = 0; i < Get32(_file, table + 8); i++)
        {
            Guid id = new(_file.AsSpan(table + 16 + i * 32, 16));
            long offset = (long)Get64(_file, table + 16 + i * 32 + 16);
            if (id == new Guid("2DC27766-F623-4200-9D64-115E9BFD4A08"))
                bat = offset;
            if (id == new Guid("8B7CA206-4790-4B9A-B8FE-575F050F886E"))
                metadata = offset;
        }

        return (bat, metadata);
    }

    private Dictionary<Guid, int> FindItems(int metadata)
    {
        Dictionary<Guid, int> items = [];
        for (int i = 0; i < BinaryPrimitives.ReadUInt16LittleEndian(_file.AsSpan(metadata + 10)); i++)
        {
            int at = metadata + 32 + i * 32;
            items[new Guid(_file.AsSpan(at, 16))] = metadata + (int)Get32(_file, at + 16);
        }

        return items;
    }

    private void ReadLocator(int at)
    {
        for (int i = 0; i < BinaryPrimitives.ReadUInt16LittleEndian(_file.AsSpan(at + 18)); i++)
        {
            int entry = at + 20 + i * 12;
            string key = Encoding.Unicode.GetString(_file, at + (int)Get32(_file, entry), BinaryPrimitives.ReadUInt16LittleEndian(_file.AsSpan(entry + 8)));
            string value = Encoding.Unicode.GetString(_file, at + (int)Get32(_file, entry + 4), BinaryPrimitives.ReadUInt16LittleEndian(_file.AsSpan(entry + 10)));
            Locator.Add(key, value);
        }

        Linkage = Guid.Parse(Locator["parent_linkage"]);
    }

    // All runs from every sector on, the one with the newest entry wins; then from that entry's tail on, everything into a copy.
    private static byte[] Replay(byte[] file, Guid log, int offset, int length)
    {
        byte[] ring = file.AsSpan(offset, length).ToArray();
        List<byte[]>? best = null;
        for (int start = 0; start < length; start += 4096)
        {
            List<(int At, byte[] Entry)> run = [];
            int total = 0;
            while (total < length && EntryAt(ring, (start + total) % length, log) is { } entry && total + entry.Length <= length
                && (run.Count == 0 || Get64(run[^1].Entry, 16) + 1 == Get64(entry, 16)))
            {
                run.Add(((start + total) % length, entry));
                total += entry.Length;
            }

            if (run.Count == 0)
                continue;
            int first = run.FindIndex(r => r.At == Get32(run[^1].Entry, 12));
            if (first >= 0 && (best is null || Get64(run[^1].Entry, 16) > Get64(best[^1], 16)))
                best = [.. run.Skip(first).Select(r => r.Entry)];
        }

        if (best is null)
            throw new InvalidDataException("the log is in use and has no entries");
        if (Get64(best[^1], 48) > (ulong)file.Length)
            throw new InvalidDataException("the file is shorter than it was");
        byte[] copy = new byte[Math.Max(file.Length, best.Max(entry => (long)Get64(entry, 56)))];
        file.CopyTo(copy, 0);
        foreach (byte[] entry in best)
            Apply(entry, copy);
        return copy;
    }

    private static void Apply(byte[] entry, byte[] file)
    {
        uint count = Get32(entry, 24);
        int data = (int)((64 + count * 32 + 4095) / 4096 * 4096);
        for (int i = 0; i < count; i++)
        {
            int at = 64 + i * 32;
            int target = (int)Get64(entry, at + 16);
            if (Encoding.ASCII.GetString(entry, at, 4) == "zero")
            {
                file.AsSpan(target, (int)Get64(entry, at + 8)).Clear();
                continue;
            }

            entry.AsSpan(at + 8, 8).CopyTo(file.AsSpan(target));
            entry.AsSpan(data + 8, 4084).CopyTo(file.AsSpan(target + 8));
            entry.AsSpan(at + 4, 4).CopyTo(file.AsSpan(target + 4092));
            data += 4096;
        }
    }

    private static byte[]? EntryAt(byte[] ring, int at, Guid log)
    {
        if (Encoding.ASCII.GetString(ring, at, 4) != "loge" || new Guid(ring.AsSpan(at + 32, 16)) != log || Get64(ring, at + 16) == 0)
            return null;
        uint length = Get32(ring, at + 8);
        if (length == 0 || length % 4096 != 0 || length > ring.Length)
            return null;
        byte[] entry = new byte[length];
        for (int i = 0; i < length; i++)
            entry[i] = ring[(at + i) % ring.Length];
        return Checksum(entry, 4) == Get32(entry, 4) ? entry : null;
    }

    /// <summary>CRC-32C, bit by bit, of bytes with four of them taken as zeros.</summary>
    public static uint Checksum(ReadOnlySpan<byte> bytes, int zeroedAt)
    {
        uint crc = uint.MaxValue;
        for (int i = 0; i < bytes.Length; i++)
            crc = Table[(crc ^ (i >= zeroedAt && i < zeroedAt + 4 ? (byte)0 : bytes[i])) & 0xFF] ^ (crc >> 8);
        return ~crc;
    }

    private static readonly uint[] Table = [.. Enumerable.Range(0, 256).Select(i =>
    {
        uint value = (uint)i;
        for (int bit = 0; bit < 8; bit++)
            value = (value & 1) != 0 ? (value >> 1) ^ 0x82F63B78 : value >> 1;
        return value;
    })];

    private static uint Get32(byte[] bytes, int at) => BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(at));

    private static ulong Get64(byte[] bytes, int at) => BinaryPrimitives.ReadUInt64LittleEndian(bytes.AsSpan(at));
}
