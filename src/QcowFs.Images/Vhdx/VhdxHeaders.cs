// The pair of headers, and the one way in which they change.
//
// H1. The current header is never written: the other one gets the next sequence number and is synced; only then is it current.
// H2. A change is complete when both headers hold it, so that the loss of either loses nothing.
// H3. Where sequence numbers have come to their end, the pair begins anew: the other header gets number 1 and the whole content first,
//     so that a torn write of the one with the highest number leaves a valid header with the same content.
using QcowFs.Storage;

namespace QcowFs.Images.Vhdx;

/// <summary>The headers of one file. Changed by one thread at a time.</summary>
internal sealed class VhdxHeaders
{
    public const long FirstOffset = 64 << 10;
    public const long SecondOffset = 128 << 10;
    private const string Structure = "header";
    private const string Advice = "restore the file from a copy";

    private readonly byte[] _bytes; // of the current header, reserved ones included
    private long _currentOffset;

    private VhdxHeaders(VhdxHeader current, byte[] bytes, long currentOffset, bool otherIsValid)
    {
        Current = current;
        _bytes = bytes;
        _currentOffset = currentOffset;
        OtherIsValid = otherIsValid;
    }

    /// <summary>The header that counts.</summary>
    public VhdxHeader Current { get; private set; }

    /// <summary>Where it is in the file.</summary>
    public long CurrentOffset => _currentOffset;

    /// <summary>Whether the other header was valid too when the pair was read.</summary>
    public bool OtherIsValid { get; }

    private long OtherOffset => FirstOffset + SecondOffset - _currentOffset;

    /// <summary>Reads the pair. Faults: <see cref="ImageFormatException"/> where no header is valid, or the current one makes no
    /// sense.</summary>
    public static VhdxHeaders Read(IStorage file)
    {
        byte[] first = new byte[VhdxHeader.Size];
        byte[] second = new byte[VhdxHeader.Size];
        file.Read(FirstOffset, first);
        file.Read(SecondOffset, second);
        bool firstValid = VhdxHeader.TryParse(first, out VhdxHeader one);
        bool secondValid = VhdxHeader.TryParse(second, out VhdxHeader two);
        if (!firstValid && !secondValid)
        {
            throw new ImageFormatException(file.Name, Structure, FirstOffset,
                $"neither it nor the one at byte {SecondOffset} has its signature and a right checksum", Advice);
        }

        // Disk2vhd writes twins; they say the same.
        if (firstValid && secondValid && one.Sequence == two.Sequence && !first.AsSpan().SequenceEqual(second))
        {
            throw new ImageFormatException(file.Name, Structure, FirstOffset + VhdxHeader.SequenceAt,
                $"both headers have sequence number {one.Sequence} and they differ", Advice);
        }

        bool useFirst = firstValid && (!secondValid || one.Sequence >= two.Sequence);
        VhdxHeaders headers = useFirst ? new VhdxHeaders(one, first, FirstOffset, secondValid)
            : new VhdxHeaders(two, second, SecondOffset, firstValid);
        headers.RequireSense(file);
        return headers;
    }

    /// <summary>Makes a header current, durably, in both places (H1, H2).</summary>
    public void Change(IStorage file, Func<VhdxHeader, VhdxHeader> change)
    {
        VhdxHeader changed = change(Current);
        ulong sequence = Current.Sequence;
        // H3
        if (sequence >= ulong.MaxValue - 1)
            sequence = 0;
        WriteOther(file, changed with { Sequence = sequence + 1 });
        WriteOther(file, changed with { Sequence = sequence + 2 });
    }

    /// <summary>Writes the pair of a new file; not synced.</summary>
    public static void WriteNew(IStorage file, VhdxHeader header)
    {
        byte[] bytes = new byte[VhdxHeader.Size];
        header.WriteTo(bytes);
        file.Write(FirstOffset, bytes);
        bytes.AsSpan().Clear();
        (header with { Sequence = header.Sequence + 1 }).WriteTo(bytes);
        file.Write(SecondOffset, bytes);
    }

    private void WriteOther(IStorage file, VhdxHeader header)
    {
        header.WriteTo(_bytes);
        file.Write(OtherOffset, _bytes);
        file.Sync();
        _currentOffset = OtherOffset;
        Current = header;
    }

    private void RequireSense(IStorage file)
    {
        VhdxHeader header = Current;
        if (header.Version != VhdxHeader.KnownVersion)
            throw Bad(file, VhdxHeader.VersionAt, $"its version is {header.Version}, expected {VhdxHeader.KnownVersion}", "use software that knows this version");
        if (header.LogVersion != 0 && header.LogGuid != Guid.Empty)
            throw Bad(file, VhdxHeader.LogVersionAt, $"the log's version is {header.LogVersion}, expected 0", "use software that knows this version");
        if (header.LogLength % VhdxLimits.Alignment != 0)
            throw Bad(file, VhdxHeader.LogLengthAt, $"the log's length {header.LogLength} is not a multiple of 1 MiB", Advice);
        if (header.LogLength == 0)
        {
            if (header.LogGuid != Guid.Empty)
                throw Bad(file, VhdxHeader.LogGuidAt, "the log is in use but has no length", Advice);
            return;
        }

        if (header.LogOffset % VhdxLimits.Alignment != 0 || header.LogOffset < VhdxLimits.Alignment)
            throw Bad(file, VhdxHeader.LogOffsetAt, $"the log's offset {header.LogOffset} is not a multiple of 1 MiB past the first", Advice);
        if (header.LogOffset > (ulong)file.Length || header.LogLength > (ulong)file.Length - header.LogOffset)
        {
            throw Bad(file, VhdxHeader.LogOffsetAt,
                $"the log of {header.LogLength} bytes at byte {header.LogOffset} reaches past the end of the file at byte {file.Length}",
                "the file is cut short; restore it from a copy");
        }
    }

    private ImageFormatException Bad(IStorage file, int at, string problem, string advice) =>
        new(file.Name, Structure, _currentOffset + at, problem, advice);
}
