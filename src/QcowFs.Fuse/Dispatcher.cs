// From the bytes of a request to the bytes of its reply. Free of descriptors and threads: any transport can call it, and one
// dispatcher serves all channels at once.
//
// D1 Every length from the kernel is checked against the bytes that came and the space that the reply has, before it is used.
// D2 An opcode that IFuseFileSystem has a member for, or that is answered here, never returns ENOSYS: the kernel would remember it
//    for the whole mount, and one FSYNC answered so would turn every later fsync into silent success. A file system's ENOSYS is EIO.
// D3 A reference is counted only by a reply that arrived: one that failed, or came too late, is given back (Undo).
// D4 An exception is caught here and nowhere else, is reported once, and becomes an error number. It never ends the mount.
// D5 Nothing is allocated for a request that succeeds.
using QcowFs.Fuse.Wire;
using QcowFs.Native;

namespace QcowFs.Fuse;

/// <summary>Decodes requests, calls the file system, encodes replies.</summary>
internal sealed partial class Dispatcher(IFuseFileSystem fileSystem, FuseSessionOptions options)
{
    /// <summary>The largest error number that the kernel takes; a larger one makes it fail the write of the reply.</summary>
    private const int LargestErrno = 511;

    private readonly IFuseFileSystem _fileSystem = fileSystem;
    private readonly FuseSessionOptions _options = options;
    private long _unreportedFaults;

    /// <summary>Faults that the session's owner could not be told of, because telling threw.</summary>
    public long UnreportedFaults => Interlocked.Read(ref _unreportedFaults);

    /// <summary>Serves one request. <paramref name="reply"/> begins with space for the header; what follows it is the payload.
    /// Returns the length of the reply, or 0 where none is due.</summary>
    public int Serve(ReadOnlySpan<byte> request, Span<byte> reply)
    {
        if (!Message.TryRead(request, out InHeader header) || header.Length != request.Length)
        {
            Report(default, $"A request of {request.Length} bytes says that it is {header.Length} long.", null);
            return request.Length < InHeader.Size || !HasReply(header.Opcode) ? 0 : WriteError(reply, header.Unique, Errno.EIO);
        }

        int length = 0;
        Errno errno;
        try
        {
            errno = Call(in header, request[InHeader.Size..], reply[OutHeader.Size..], ref length);
        }
        catch (Exception exception)
        {
            errno = MapAndReport(in header, exception);
        }

        if (!HasReply(header.Opcode)) return 0;
        if (errno != Errno.None) return WriteError(reply, header.Unique, errno);
        var success = new OutHeader { Length = (uint)(OutHeader.Size + length), Unique = header.Unique };
        Message.Write(reply, in success);
        return OutHeader.Size + length;
    }

    /// <summary>Takes back what a reply gave that the kernel did not accept any more: the references of LOOKUP and READDIRPLUS, and
    /// the handles of OPEN and OPENDIR (D3).</summary>
    public void Undo(in InHeader header, ReadOnlySpan<byte> reply)
    {
        if (!Message.TryRead(reply, out OutHeader result) || result.Error != 0) return;
        ReadOnlySpan<byte> payload = reply[OutHeader.Size..];
        try
        {
            switch (header.Opcode)
            {
                case FuseOpcode.Lookup when Message.TryRead(payload, out EntryOut entry) && entry.Node != 0:
                    _fileSystem.Forget(entry.Node, 1);
                    break;
                case FuseOpcode.ReadDirPlus:
                    ForgetEntries(payload);
                    break;
                case FuseOpcode.Open when Message.TryRead(payload, out OpenOut open):
                    _fileSystem.Release(header.Node, open.Handle);
                    break;
                case FuseOpcode.OpenDir when Message.TryRead(payload, out OpenOut open):
                    _fileSystem.ReleaseDirectory(header.Node, open.Handle);
                    break;
                default:
                    break;
            }
        }
        catch (Exception exception)
        {
            MapAndReport(in header, exception);
        }
    }

    private Errno Call(in InHeader header, ReadOnlySpan<byte> body, Span<byte> payload, ref int length)
    {
        switch (header.Opcode)
        {
            case FuseOpcode.Read: return Read(in header, body, payload, ref length);
            case FuseOpcode.Write: return Write(in header, body, payload, ref length);
            case FuseOpcode.FSync: return Sync(in header, body);
            case FuseOpcode.FAllocate: return Allocate(in header, body);
            case FuseOpcode.LSeek: return Seek(in header, body, payload, ref length);
            case FuseOpcode.Lookup: return Lookup(in header, body, payload, ref length);
            case FuseOpcode.GetAttr: return GetAttributes(in header, body, payload, ref length);
            case FuseOpcode.SetAttr: return SetAttributes(in header, body, payload, ref length);
            case FuseOpcode.Open: return Open(in header, body, payload, ref length);
            case FuseOpcode.Flush: return Flush(in header, body);
            case FuseOpcode.Release: return Release(in header, body);
            case FuseOpcode.OpenDir: return OpenDirectory(in header, payload, ref length);
            case FuseOpcode.ReadDir: return ReadDirectory(in header, body, payload, false, ref length);
            case FuseOpcode.ReadDirPlus: return ReadDirectory(in header, body, payload, true, ref length);
            case FuseOpcode.ReleaseDir: return ReleaseDirectory(in header, body);
            case FuseOpcode.StatFs: return StatFs(in header, payload, ref length);
            case FuseOpcode.Forget: return Forget(in header, body);
            case FuseOpcode.BatchForget: return BatchForget(in header, body);
            case FuseOpcode.SyncFs: return Checked(in header, _fileSystem.Sync(IFuseFileSystem.RootNode, 0, dataOnly: false));
            default: return AnswerWithoutFileSystem(in header);
        }
    }

    /// <summary>Opcodes that need no file system to answer them.</summary>
    private Errno AnswerWithoutFileSystem(in InHeader header)
    {
        switch (header.Opcode)
        {
            // Every mount is made with default_permissions, so the kernel has already decided; no name here can be changed through
            // the mount, so a directory is always durable; DESTROY is an announcement, the end is ENODEV on the channel.
            case FuseOpcode.Access:
            case FuseOpcode.FSyncDir:
            case FuseOpcode.Destroy:
            // No reply is due (HasReply). Requests run to completion, which the protocol allows: the caller waits for the reply.
            case FuseOpcode.Interrupt:
            case FuseOpcode.NotifyReply:
                return Errno.None;

            // What the VFS says of a directory that cannot do it.
            case FuseOpcode.MkNod:
            case FuseOpcode.MkDir:
            case FuseOpcode.Symlink:
            case FuseOpcode.Link:
            case FuseOpcode.Unlink:
            case FuseOpcode.RmDir:
            case FuseOpcode.Rename:
            case FuseOpcode.Rename2:
            case FuseOpcode.Create:
                return Errno.EPERM;
            case FuseOpcode.TmpFile:
                return Errno.EOPNOTSUPP;
            case FuseOpcode.ReadLink:
                return Errno.EINVAL;
            case FuseOpcode.IoCtl:
                return Errno.ENOTTY;

            case FuseOpcode.Init:
                return Fail(in header, "INIT came a second time.", Errno.EIO);

            // Extended attributes, locks, poll and all that is newer: the kernel shall not ask again (D2).
            default:
                return Errno.ENOSYS;
        }
    }

    private static bool HasReply(FuseOpcode opcode)
        => opcode is not (FuseOpcode.Forget or FuseOpcode.BatchForget or FuseOpcode.Interrupt or FuseOpcode.NotifyReply);

    private static int WriteError(Span<byte> reply, ulong unique, Errno errno)
    {
        var error = new OutHeader { Length = OutHeader.Size, Error = -(int)errno, Unique = unique };
        return Message.Write(reply, in error);
    }

    /// <summary>A file system's answer as the kernel may hear it (D2).</summary>
    private Errno Checked(in InHeader header, Errno errno)
    {
        if (errno == Errno.None) return Errno.None;
        if (IsPresentable(errno)) return errno;
        return Fail(in header, $"The file system answered {errno}, which must not reach the kernel.", Errno.EIO);
    }

    private Errno Malformed(in InHeader header) => Fail(in header, $"The request's {header.Length} bytes do not hold it.", Errno.EIO);

    private Errno Fail(in InHeader header, string message, Errno errno)
    {
        Report(in header, message, null);
        return errno;
    }

    private Errno MapAndReport(in InHeader header, Exception exception)
    {
        Report(in header, exception.Message, exception);
        try
        {
            Errno errno = _options.MapException(exception);
            return IsPresentable(errno) ? errno : Errno.EIO;
        }
        catch (Exception second)
        {
            Report(in header, second.Message, second);
            return Errno.EIO;
        }
    }

    private static bool IsPresentable(Errno errno) => errno is not Errno.ENOSYS && (int)errno is > 0 and <= LargestErrno;

    /// <summary>Tells the owner of the session. A log that cannot be written must not end the mount, so it only counts.</summary>
    internal void Report(in InHeader header, string message, Exception? exception)
    {
        if (_options.Report is not { } report) return;
        try
        {
            report(new FuseFault(header.Opcode, header.Node, message, exception));
        }
        catch (Exception)
        {
            Interlocked.Increment(ref _unreportedFaults);
        }
    }
}
