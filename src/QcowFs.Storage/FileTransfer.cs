// The one place that knows that a transfer may be interrupted (EINTR) or short: every byte between a host file and memory passes
// through these two loops. Sync is not here, because a sync is never repeated.
using QcowFs.Native;

namespace QcowFs.Storage;

/// <summary>Whole transfers on a descriptor. The outcome is a value; who calls knows what to say about it.</summary>
internal static class FileTransfer
{
    /// <summary>Reads until the buffer is full or the file ends. <paramref name="unit"/> is what each transfer must be a multiple of:
    /// 1, or the alignment of direct I/O, to which then buffer, length and offset are aligned.</summary>
    public static Errno Read(int fd, Span<byte> buffer, long offset, int unit, out int done)
    {
        done = 0;
        while (done < buffer.Length)
        {
            nint got = Libc.Pread(fd, buffer.Slice(done, Ask(buffer.Length, done, unit)), offset + done);
            if (got < 0)
            {
                if (Libc.LastErrno == Errno.EINTR)
                    continue;
                return Libc.LastErrno;
            }
            done += (int)got;
            // A direct read gives a ragged count only where the file ends, and cannot go on from there.
            if (got == 0 || done % unit != 0)
                break;
        }
        return Errno.None;
    }

    /// <summary>Writes all bytes. Where it fails, some of them may have been written.</summary>
    public static Errno Write(int fd, ReadOnlySpan<byte> buffer, long offset, int unit)
    {
        int done = 0;
        while (done < buffer.Length)
        {
            nint put = Libc.Pwrite(fd, buffer.Slice(done, Ask(buffer.Length, done, unit)), offset + done);
            if (put < 0)
            {
                if (Libc.LastErrno == Errno.EINTR)
                    continue;
                return Libc.LastErrno;
            }
            int whole = (int)put - (int)put % unit;
            // A device that takes nothing and reports nothing would keep us here forever.
            if (whole == 0)
                return Errno.EIO;
            done += whole;
        }
        return Errno.None;
    }

    // Debug builds ask for half first, so that every test walks through the loops above.
    private static int Ask(int count, int done, int unit)
    {
        int rest = count - done;
#if DEBUG
        int half = rest / 2 / unit * unit;
        if (done == 0 && half > 0)
            return half;
#else
        _ = unit;
#endif
        return rest;
    }
}
