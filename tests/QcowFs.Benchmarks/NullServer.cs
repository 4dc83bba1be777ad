// The null FUSE server: what the protocol allows, and nothing else. One plain file covered by a mount; threads with cloned
// descriptors; one pread or pwrite for each request; or with passthrough none, where the kernel serves the file itself. It shares no code with QcowFs.Fuse, so that it can judge it.
// Field offsets are those of the kernel's include/uapi/linux/fuse.h.
using System.Runtime.InteropServices;

namespace QcowFs.Benchmarks;

internal sealed unsafe class NullServer
{
    /// <summary>Threads that wait for a disk: its depth. As many as QcowFs grows to.</summary>
    public const int ThreadsForDisks = 32;

    private const int MaxTransfer = 1 << 20;
    private const int PageSize = 4096;
    private const int InHeader = 40;
    private const int OutHeader = 16;
    private const int WriteHeader = InHeader + 40;

    private enum Opcode : uint
    {
        Lookup = 1, Forget = 2, GetAttributes = 3, SetAttributes = 4, Open = 14, Read = 15, Write = 16, StatFs = 17, Release = 18, Sync = 20,
        Flush = 25, Init = 26, Interrupt = 36, Destroy = 38, BatchForget = 42,
    }

    private readonly int _file;
    private readonly long _length;
    private readonly bool _passthrough;
    private readonly Lock _opening = new(); // guards _backing
    private int _backing;
    private bool _overRings;

    private NullServer(int file, long length, bool passthrough)
    {
        _file = file;
        _length = length;
        _passthrough = passthrough;
    }

    /// <summary>Covers the regular file <paramref name="mountPoint"/> with <paramref name="path"/> and serves until unmounted.</summary>
    public static void Run(string mountPoint, string path, int threads, bool overRings = false, bool passthrough = false, bool direct = false)
    {
        var server = new NullServer(LibC.Open(path, direct), new FileInfo(path).Length, passthrough);
        int connection = LibC.Open("/dev/fuse");
        LibC.Mount("null-server", mountPoint, "fuse.null-server", $"fd={connection},rootmode=100000,user_id=0,group_id=0,allow_other,default_permissions");

        if (overRings)
        {
            server.RunOverRings(connection);
            return;
        }

        // The kernel sends INIT first and holds everything else back until it is answered, so one thread may begin alone.
        var workers = Enumerable.Range(1, threads - 1)
            .Select(_ => new Thread(() => server.Serve(LibC.CloneConnection(connection))))
            .ToList();
        workers.ForEach(worker => worker.Start());
        server.Serve(connection);
        workers.ForEach(worker => worker.Join());
    }

    // INIT and FORGET come over the device.
    private void RunOverRings(int connection)
    {
        _overRings = true;
        Serve(connection, onlyInit: true);
        var rings = Enumerable.Range(0, Environment.ProcessorCount)
            .Select(processor => new Thread(() => NullRing.Serve(connection, processor, MaxTransfer, AnswerInRing)))
            .ToList();
        rings.ForEach(ring => ring.Start());
        Serve(connection);
        rings.ForEach(ring => ring.Join());
    }

    private int AnswerInRing(byte* header, byte* structure, byte* payload, out int errno) =>
        Answer((Opcode)(*(uint*)(header + 4)), structure, payload, payload, out errno);

    private void Serve(int device, bool onlyInit = false)
    {
        // Requests are read at page - 80, so that a WRITE's payload is page-aligned; a READ's payload is page-aligned too.
        byte* request = (byte*)NativeMemory.AlignedAlloc(PageSize + MaxTransfer, PageSize) + PageSize - WriteHeader;
        byte* reply = (byte*)NativeMemory.AlignedAlloc(PageSize + MaxTransfer, PageSize) + PageSize - OutHeader;
        while (true)
        {
            nint length = LibC.Read(device, request, MaxTransfer + WriteHeader);
            if (length < 0)
            {
                int error = Marshal.GetLastSystemError();
                if (error == LibC.ENODEV)
                {
                    return;
                }

                // ENOENT: the request was interrupted before it was read.
                if (error is not (LibC.EINTR or LibC.EAGAIN or LibC.ENOENT))
                {
                    throw new IOException($"read /dev/fuse: error {error}");
                }

                continue;
            }

            Opcode opcode = (Opcode)(*(uint*)(request + 4));
            if (_passthrough && opcode == Opcode.Open)
            {
                EnsureBacking(device);
            }

            int payload = Answer(opcode, request + InHeader, request + WriteHeader, reply + OutHeader, out int errno);
            if (payload < 0)
            {
                continue;
            }

            *(uint*)reply = (uint)(OutHeader + payload);
            *(int*)(reply + 4) = -errno;
            *(ulong*)(reply + 8) = *(ulong*)(request + 8);
            _ = LibC.Write(device, reply, (nuint)(OutHeader + payload));
            if (onlyInit)
            {
                return;
            }
        }
    }

    // All opens of a file must name the same id.
    private void EnsureBacking(int device)
    {
        lock (_opening)
        {
            if (_backing == 0)
            {
                _backing = LibC.OpenBacking(device, _file);
            }
        }
    }

    // Returns the length of the reply's payload, or -1 where the kernel wants no reply.
    private int Answer(Opcode opcode, byte* body, byte* written, byte* payload, out int errno)
    {
        errno = 0;
        switch (opcode)
        {
            case Opcode.Read:
                nint read = LibC.PRead(_file, payload, *(uint*)(body + 16), *(long*)(body + 8));
                errno = read < 0 ? LibC.EIO : 0;
                return Math.Max((int)read, 0);
            case Opcode.Write:
                nint length = LibC.PWrite(_file, written, *(uint*)(body + 16), *(long*)(body + 8));
                errno = length < 0 ? LibC.EIO : 0;
                *(long*)payload = length;
                return errno == 0 ? 8 : 0;
            case Opcode.Sync:
                errno = LibC.DataSync(_file) < 0 ? LibC.EIO : 0;
                return 0;
            case Opcode.Open:
                const uint DirectIo = 1, ParallelDirectWrites = 64, Passthrough = 128;
                Clear(payload, 16);
                *(uint*)(payload + 8) = _passthrough ? Passthrough : DirectIo | ParallelDirectWrites;
                *(int*)(payload + 12) = _backing;
                return 16;
            case Opcode.GetAttributes or Opcode.SetAttributes:
                return WriteAttributes(payload);
            case Opcode.StatFs:
                Clear(payload, 80);
                *(uint*)(payload + 40) = PageSize;
                return 80;
            case Opcode.Init:
                return WriteInit(payload, body);
            case Opcode.Release or Opcode.Destroy:
                return 0;
            case Opcode.Forget or Opcode.BatchForget or Opcode.Interrupt:
                return -1;
            case Opcode.Lookup:
                errno = LibC.ENOENT;
                return 0;
            case Opcode.Flush:
            default:
                errno = LibC.ENOSYS;
                return 0;
        }
    }

    private int WriteInit(byte* payload, byte* body)
    {
        const uint Extended = 1 << 30, Passthrough = 1 << 5; // the latter in the second word
        const uint AsyncRead = 1 << 0, BigWrites = 1 << 5, AsyncDirectIo = 1 << 15, ParallelDirectoryOperations = 1 << 18, MaxPages = 1 << 22;
        Clear(payload, 64);
        *(uint*)payload = 7;
        *(uint*)(payload + 4) = Math.Min(*(uint*)(body + 4), 40);
        *(uint*)(payload + 8) = *(uint*)(body + 8);
        *(uint*)(payload + 12) = *(uint*)(body + 12) & (AsyncRead | BigWrites | AsyncDirectIo | ParallelDirectoryOperations | MaxPages);
        *(ushort*)(payload + 16) = 64;
        *(ushort*)(payload + 18) = 48;
        *(uint*)(payload + 20) = MaxTransfer;
        *(uint*)(payload + 24) = 1;
        *(ushort*)(payload + 28) = MaxTransfer / PageSize;
        if (_passthrough)
        {
            *(uint*)(payload + 12) |= Extended;
            *(uint*)(payload + 32) = Passthrough;
            *(uint*)(payload + 36) = 1; // stack depth
        }

        if (_overRings)
        {
            const uint InitExtended = 1 << 30, OverRings = 1 << 9; // the latter in the second word
            if ((*(uint*)(body + 16) & OverRings) == 0) throw new IOException("the kernel does not offer io_uring: enable_uring of the fuse module is off");
            *(uint*)(payload + 4) = Math.Min(*(uint*)(body + 4), 42);
            *(uint*)(payload + 12) |= InitExtended;
            *(uint*)(payload + 32) = OverRings;
        }
        return 64;
    }

    private int WriteAttributes(byte* payload)
    {
        Clear(payload, 104);
        *(ulong*)payload = 3600;                            // valid for an hour
        byte* attributes = payload + 16;
        *(ulong*)attributes = 1;                            // inode
        *(long*)(attributes + 8) = _length;
        *(long*)(attributes + 16) = _length / 512;
        *(uint*)(attributes + 60) = 0x8000 | 0x180;         // a regular file, 0600
        *(uint*)(attributes + 64) = 1;
        *(uint*)(attributes + 80) = PageSize;
        return 104;
    }

    private static void Clear(byte* memory, int length) => new Span<byte>(memory, length).Clear();
}
