// The file of an image that cannot be used: it is listed, so that it is not missed, and cannot be opened. Why is in error.txt.
using QcowFs.Fuse;
using QcowFs.Native;

namespace QcowFs.FileSystem;

/// <summary>A broken image's file: size 0, mode 0, EIO.</summary>
internal sealed class BrokenNode(byte[] name, MountedImage image, TreeSettings settings) : Node(name)
{
    public override FuseAttributes GetAttributes(ulong handle)
    {
        HostFileFacts host = image.HostFile ?? default;
        return new FuseAttributes
        {
            Inode = Number,
            Mode = FileType.Regular,
            Links = 1,
            Uid = settings.Uid,
            Gid = settings.Gid,
            BlockSize = 4096,
            AccessTime = host.ModifyTime,
            ModifyTime = host.ModifyTime,
            ChangeTime = host.ModifyTime,
        };
    }

    public override Errno Open(int flags, out FuseOpenResult result)
    {
        result = default;
        return IsGone ? Errno.ESTALE : Errno.EIO;
    }
}
