// INIT: what is asked of the kernel. Pure, so that every kernel there ever was can be played in a test.
//
// N1 A feature is on only where the kernel offered it and Wanted names it; OVER_IO_URING where there are rings, besides.
// N2 WRITEBACK_CACHE, DIRECT_IO_ALLOW_MMAP and ATOMIC_O_TRUNC are never on (FuseFeatures says why).
// N3 A kernel of a newer major is told ours and asks again; one of an older protocol is refused in words.
// N4 No request or reply is larger than the channels' buffers: max_write and max_pages follow from the same number.
using System.Runtime.InteropServices;
using QcowFs.Fuse.Wire;

namespace QcowFs.Fuse;

internal static class Negotiation
{
    /// <summary>The major version of the protocol.</summary>
    public const uint Major = 7;

    /// <summary>7.31 (Linux 5.4) is the first with everything that is relied on.</summary>
    public const uint OldestMinor = 31;

    /// <summary>The newest protocol whose structures are known here; a newer kernel then speaks this one.</summary>
    public const uint NewestMinor = 45;

    /// <summary>The kernel's own limit unless an administrator raised it (fs.fuse.max_pages_limit).</summary>
    public const int MostPages = 256;

    private const FuseFeatures Wanted =
        FuseFeatures.AsyncRead | FuseFeatures.BigWrites | FuseFeatures.AutoInvalidateData | FuseFeatures.ReadDirectoryPlus
        | FuseFeatures.ReadDirectoryPlusAuto | FuseFeatures.AsyncDirectIo | FuseFeatures.ParallelDirectoryOperations
        | FuseFeatures.AbortError | FuseFeatures.MaxPages | FuseFeatures.InitExtended | FuseFeatures.ExpireOnly | FuseFeatures.Passthrough;

    // Backing files may not lie on a stacked file system (overlayfs, a FUSE mount with passthrough) themselves; in return this mount may lie
    // below one. With 0 the kernel takes FUSE_PASSTHROUGH for a mistake.
    private const uint StackDepth = 1;

    /// <summary>What became of one INIT request.</summary>
    internal enum Outcome
    {
        /// <summary>The connection is ready.</summary>
        Agreed,
        /// <summary>The kernel speaks a newer major and will ask again.</summary>
        AskAgain,
        /// <summary>The kernel is too old.</summary>
        TooOld,
        /// <summary>The request is shorter than any INIT.</summary>
        Malformed,
    }

    /// <summary>What the body of an INIT request offers; false where it will not be agreed on.</summary>
    public static bool TryOffered(ReadOnlySpan<byte> body, out FuseFeatures offered)
    {
        bool agrees = Message.TryRead(body, out InitIn init) && init is { Major: Major, Minor: >= OldestMinor };
        offered = agrees ? Offered(in init, body) : FuseFeatures.None;
        return agrees;
    }

    /// <summary>Answers the body of an INIT request. <paramref name="reply"/> is meant unless the kernel is refused.
    /// <paramref name="hasRings"/> says whether there are rings for an offer of them.</summary>
    public static Outcome Answer(
        ReadOnlySpan<byte> body, FuseSessionOptions options, bool hasRings, out InitOut reply, out FuseConnection? connection)
    {
        reply = default;
        connection = null;
        if (!Message.TryRead(body, out InitIn init)) return Outcome.Malformed;
        reply.Major = Major;
        reply.Minor = NewestMinor;
        if (init.Major > Major) return Outcome.AskAgain;
        if (init.Major < Major || init.Minor < OldestMinor) return Outcome.TooOld;

        FuseFeatures offered = Offered(in init, body);
        FuseFeatures enabled = offered & (hasRings ? Wanted | FuseFeatures.OverIoUring : Wanted);
        int pageSize = Environment.SystemPageSize;
        // Without MAX_PAGES a request holds 32 pages; that is the kernel's to keep, max_write only has to be no less than it says.
        int pages = options.MaxPayload / pageSize;
        int background = Math.Clamp(options.MaxBackground, 1, ushort.MaxValue);
        reply.Minor = Math.Min(init.Minor, NewestMinor);
        reply.MaxReadahead = init.MaxReadahead;
        reply.Flags = unchecked((uint)(ulong)enabled);
        reply.Flags2 = (uint)((ulong)enabled >> 32);
        reply.MaxBackground = (ushort)background;
        reply.CongestionThreshold = (ushort)Math.Max(background * 3 / 4, 1);
        reply.MaxWrite = (uint)options.MaxPayload;
        reply.TimeGranularity = 1;
        reply.MaxPages = (ushort)pages;
        reply.MaxStackDepth = enabled.HasFlag(FuseFeatures.Passthrough) ? StackDepth : 0;
        connection = new FuseConnection
        {
            Minor = (int)reply.Minor,
            KernelMinor = (int)init.Minor,
            Offered = offered,
            Enabled = enabled,
            MaxWrite = options.MaxPayload,
            MaxPages = pages,
            MaxReadahead = init.MaxReadahead,
            MaxBackground = background,
        };
        return Outcome.Agreed;
    }

    /// <summary>The second word of flags is there since 7.36, where INIT_EXT says so.</summary>
    private static FuseFeatures Offered(in InitIn init, ReadOnlySpan<byte> body)
    {
        ulong flags = init.Flags;
        bool extended = (init.Flags & (uint)FuseFeatures.InitExtended) != 0 && body.Length >= InitIn.Size + sizeof(uint);
        if (extended) flags |= (ulong)MemoryMarshal.Read<uint>(body[InitIn.Size..]) << 32;
        return (FuseFeatures)flags;
    }
}
