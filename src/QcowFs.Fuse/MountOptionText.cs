// Mount options as text: for the data argument of mount(2), and for fusermount3's -o.
using System.Globalization;
using System.Text;
using QcowFs.Native;

namespace QcowFs.Fuse;

internal static class MountOptionText
{
    /// <summary>The fuse file system's own options (fuse_fs_parameters of fs/fuse/inode.c). The source and the type are arguments of
    /// mount(2) and the generic flags are its flags, so nothing here needs escaping.</summary>
    public static string ForKernel(FuseMountOptions options, int descriptor, uint mode, uint uid, uint gid)
    {
        string rootMode = Convert.ToString(mode & Libc.S_IFMT, toBase: 8);
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"fd={descriptor},rootmode={rootMode},user_id={uid},group_id={gid},default_permissions");
        AppendShared(text, options);
        return text.ToString();
    }

    /// <summary>What fusermount3 takes. It splits at commas and undoes backslashes itself in fsname and subtype.</summary>
    public static string ForFusermount(FuseMountOptions options)
    {
        var text = new StringBuilder(options.ReadOnly ? "ro" : "rw");
        if (options.NoSuid) text.Append(",nosuid");
        if (options.NoDev) text.Append(",nodev");
        if (options.NoExec) text.Append(",noexec");
        if (options.NoAccessTime) text.Append(",noatime");
        text.Append(",default_permissions");
        AppendShared(text, options);
        text.Append(",fsname=").Append(Escape(options.Source));
        text.Append(",subtype=").Append(Escape(options.Subtype));
        return text.ToString();
    }

    /// <summary>The flags of mount(2).</summary>
    public static nuint Flags(FuseMountOptions options)
    {
        return (options.ReadOnly ? Libc.MS_RDONLY : 0) | (options.NoSuid ? Libc.MS_NOSUID : 0) | (options.NoDev ? Libc.MS_NODEV : 0)
            | (options.NoExec ? Libc.MS_NOEXEC : 0) | (options.NoAccessTime ? Libc.MS_NOATIME : 0);
    }

    private static string Escape(string value)
        => value.Replace("\\", "\\\\", StringComparison.Ordinal).Replace(",", "\\,", StringComparison.Ordinal);

    private static void AppendShared(StringBuilder text, FuseMountOptions options)
    {
        if (options.AllowOther) text.Append(",allow_other");
        if (options.MaxRead is { } maxRead) text.Append(CultureInfo.InvariantCulture, $",max_read={maxRead}");
    }
}
