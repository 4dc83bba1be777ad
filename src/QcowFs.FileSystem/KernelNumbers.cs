// The kernel's numbers (asm-generic/fcntl.h, linux/falloc.h, linux/fs.h) that reach a file system through FUSE.
namespace QcowFs.FileSystem;

/// <summary>Bits of open(2) flags.</summary>
internal static class OpenFlags
{
    public const int AccessMask = 3;
    public const int ReadOnly = 0;

    /// <summary>O_DSYNC; O_SYNC contains it.</summary>
    public const int DataSync = 0x1000;
}

/// <summary>Bits of fallocate(2) modes.</summary>
internal static class AllocateMode
{
    public const int Reserve = 0;
    public const int KeepSize = 1;
    public const int PunchHole = 2;
    public const int ZeroRange = 16;
}

/// <summary>Values of lseek(2)'s whence that FUSE passes on.</summary>
internal static class Whence
{
    public const int Data = 3;
    public const int Hole = 4;
}

/// <summary>File types of st_mode.</summary>
internal static class FileType
{
    public const uint Directory = 0x4000;
    public const uint Regular = 0x8000;
}
