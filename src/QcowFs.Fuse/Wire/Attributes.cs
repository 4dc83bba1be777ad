// Attributes: struct fuse_attr, fuse_attr_out, fuse_getattr_in, fuse_setattr_in.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_attr.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct Attributes
{
    public const int Size = 88;

    public ulong Inode;
    public ulong Length;
    public ulong Blocks;
    public long AccessSeconds;
    public long ModifySeconds;
    public long ChangeSeconds;
    public uint AccessNanoseconds;
    public uint ModifyNanoseconds;
    public uint ChangeNanoseconds;
    public uint Mode;
    public uint Links;
    public uint Uid;
    public uint Gid;
    public uint Device;
    public uint BlockSize;
    public uint Flags;

    public static Attributes From(in FuseAttributes source)
    {
        var result = new Attributes
        {
            Inode = source.Inode,
            Length = unchecked((ulong)source.Size),
            Blocks = unchecked((ulong)source.Blocks),
            Mode = source.Mode,
            Links = source.Links,
            Uid = source.Uid,
            Gid = source.Gid,
            BlockSize = source.BlockSize,
        };
        (result.AccessSeconds, result.AccessNanoseconds) = WireTime.Split(source.AccessTime);
        (result.ModifySeconds, result.ModifyNanoseconds) = WireTime.Split(source.ModifyTime);
        (result.ChangeSeconds, result.ChangeNanoseconds) = WireTime.Split(source.ChangeTime);
        return result;
    }
}

/// <summary>struct fuse_attr_out.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AttributesOut
{
    public const int Size = 104;

    public ulong ValidSeconds;
    public uint ValidNanoseconds;
    public uint Padding;
    public Attributes Attributes;
}

/// <summary>struct fuse_getattr_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct GetAttributesIn
{
    public const int Size = 16;
    public const uint HasHandle = 1;

    public uint Flags;
    public uint Padding;
    public ulong Handle;
}

/// <summary>Which members of <see cref="SetAttributesIn"/> are meant (FATTR_*).</summary>
[Flags]
internal enum SetAttributesValid : uint
{
    None = 0,
    Mode = 1 << 0,
    Uid = 1 << 1,
    Gid = 1 << 2,
    Size = 1 << 3,
    AccessTime = 1 << 4,
    ModifyTime = 1 << 5,
    Handle = 1 << 6,
    AccessTimeNow = 1 << 7,
    ModifyTimeNow = 1 << 8,
    ChangeTime = 1 << 10,
    AnyTime = AccessTime | ModifyTime | AccessTimeNow | ModifyTimeNow | ChangeTime,
}

/// <summary>struct fuse_setattr_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct SetAttributesIn
{
    public const int Size = 88;

    public SetAttributesValid Valid;
    public uint Padding;
    public ulong Handle;
    public ulong Length;
    public ulong LockOwner;
    public long AccessSeconds;
    public long ModifySeconds;
    public long ChangeSeconds;
    public uint AccessNanoseconds;
    public uint ModifyNanoseconds;
    public uint ChangeNanoseconds;
    public uint Mode;
    public uint Unused4;
    public uint Uid;
    public uint Gid;
    public uint Unused5;

    /// <summary>Whether one of <paramref name="members"/> is meant.</summary>
    public readonly bool Has(SetAttributesValid members) => (Valid & members) != SetAttributesValid.None;
}

internal static class WireTime
{
    private const long NanosecondsPerTick = 100;

    /// <summary>Seconds since 1970 and nanoseconds within the second, also before 1970. A time that was never set is 1970.</summary>
    public static (long Seconds, uint Nanoseconds) Split(DateTimeOffset time)
    {
        if (time == default) return (0, 0);
        long ticks = time.UtcTicks - DateTimeOffset.UnixEpoch.Ticks;
        (long seconds, long rest) = Math.DivRem(ticks, TimeSpan.TicksPerSecond);
        return rest < 0
            ? (seconds - 1, (uint)((rest + TimeSpan.TicksPerSecond) * NanosecondsPerTick))
            : (seconds, (uint)(rest * NanosecondsPerTick));
    }

    /// <summary>A validity; a negative one is none.</summary>
    public static (ulong Seconds, uint Nanoseconds) Split(TimeSpan validity)
    {
        if (validity <= TimeSpan.Zero) return (0, 0);
        (long seconds, long rest) = Math.DivRem(validity.Ticks, TimeSpan.TicksPerSecond);
        return ((ulong)seconds, (uint)(rest * NanosecondsPerTick));
    }
}
