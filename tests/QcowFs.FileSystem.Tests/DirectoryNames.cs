// Reads a directory as the kernel does.
using System.Buffers.Binary;
using System.Text;
using QcowFs.Fuse;
using QcowFs.Native;
using Xunit;

namespace QcowFs.FileSystem.Tests;

internal static class DirectoryNames
{
    /// <summary>Names of a directory, in listing order, read in replies of <paramref name="replySize"/> bytes.</summary>
    public static List<string> Of(DiskFileSystem system, ulong node, bool plus = false, int replySize = 4096)
    {
        List<string> names = [];
        Assert.Equal(Errno.None, system.OpenDirectory(node, out FuseOpenResult open));
        byte[] buffer = new byte[replySize];
        for (long position = 0; ;)
        {
            FuseDirectoryWriter writer = new(buffer, plus);
            Assert.Equal(Errno.None, system.ReadDirectory(node, open.Handle, position, ref writer));
            if (writer.Length == 0) break;
            for (ReadOnlySpan<byte> rest = buffer.AsSpan(0, writer.Length); !rest.IsEmpty;)
            {
                // struct fuse_dirent: inode, next position, name length, type, name padded to 8; behind fuse_entry_out with plus.
                ReadOnlySpan<byte> entry = rest[(plus ? 128 : 0)..];
                position = BinaryPrimitives.ReadInt64LittleEndian(entry[8..]);
                int length = BinaryPrimitives.ReadInt32LittleEndian(entry[16..]);
                names.Add(Encoding.UTF8.GetString(entry.Slice(24, length)));
                rest = entry[((24 + length + 7) & ~7)..];
            }
        }
        system.ReleaseDirectory(node, open.Handle);
        return names;
    }
}
