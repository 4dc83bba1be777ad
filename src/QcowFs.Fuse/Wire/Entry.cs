// Names and references: struct fuse_entry_out, fuse_forget_in, fuse_batch_forget_in, fuse_forget_one.
using System.Runtime.InteropServices;

namespace QcowFs.Fuse.Wire;

/// <summary>struct fuse_entry_out.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct EntryOut
{
    public const int Size = 128;

    public ulong Node;
    public ulong Generation;
    public ulong EntryValidSeconds;
    public ulong AttributesValidSeconds;
    public uint EntryValidNanoseconds;
    public uint AttributesValidNanoseconds;
    public Attributes Attributes;

    public static EntryOut From(in FuseEntry source)
    {
        FuseAttributes attributes = source.Attributes;
        var result = new EntryOut
        {
            Node = source.Node,
            Generation = source.Generation,
            Attributes = Attributes.From(in attributes),
        };
        (result.EntryValidSeconds, result.EntryValidNanoseconds) = WireTime.Split(source.EntryValid);
        (result.AttributesValidSeconds, result.AttributesValidNanoseconds) = WireTime.Split(attributes.Valid);
        return result;
    }
}

/// <summary>struct fuse_forget_in.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ForgetIn
{
    public const int Size = 8;

    public ulong Count;
}

/// <summary>struct fuse_batch_forget_in, followed by <see cref="Count"/> of <see cref="ForgetOne"/>.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct BatchForgetIn
{
    public const int Size = 8;

    public uint Count;
    public uint Padding;
}

/// <summary>struct fuse_forget_one.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ForgetOne
{
    public const int Size = 16;

    public ulong Node;
    public ulong Count;
}
