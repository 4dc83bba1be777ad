// From the bytes of a request to the bytes of its reply, over a file system that answers at once.
using System.Buffers.Binary;
using BenchmarkDotNet.Attributes;
using QcowFs.Fuse;
using QcowFs.Native;

namespace QcowFs.Benchmarks.Micro;

public class RequestBenchmark
{
    private const int Header = 40, Body = 40, Block = 4096;
    private readonly byte[] _read = Request(FuseOpcode.Read, Body);
    private readonly byte[] _write = Request(FuseOpcode.Write, Body + Block);
    private readonly byte[] _reply = new byte[16 + Block];
    private readonly Dispatcher _dispatcher = new(new Idle(), new FuseSessionOptions());

    [Benchmark]
    public int Read() => _dispatcher.Serve(_read, _reply);

    [Benchmark]
    public int Write() => _dispatcher.Serve(_write, _reply);

    // fuse_in_header, and fuse_read_in or fuse_write_in, whose offset and size stand at the same places.
    private static byte[] Request(FuseOpcode opcode, int body)
    {
        byte[] request = new byte[Header + body];
        BinaryPrimitives.WriteInt32LittleEndian(request, request.Length);
        BinaryPrimitives.WriteUInt32LittleEndian(request.AsSpan(4), (uint)opcode);
        BinaryPrimitives.WriteInt64LittleEndian(request.AsSpan(8), 1);
        BinaryPrimitives.WriteInt64LittleEndian(request.AsSpan(16), 1);
        BinaryPrimitives.WriteInt32LittleEndian(request.AsSpan(Header + 16), Block);
        return request;
    }

    private sealed class Idle : IFuseFileSystem
    {
        public Errno Read(ulong node, ulong handle, long offset, Span<byte> destination, out int count)
        {
            count = destination.Length;
            return Errno.None;
        }

        public Errno Write(ulong node, ulong handle, long offset, ReadOnlySpan<byte> source, int openFlags, out int count)
        {
            count = source.Length;
            return Errno.None;
        }

        public Errno Lookup(ulong parent, ReadOnlySpan<byte> name, out FuseEntry entry) => Refuse(out entry);

        public void Forget(ulong node, ulong count)
        {
            // Nothing is referred to.
        }

        public Errno GetAttributes(ulong node, ulong handle, out FuseAttributes attributes) => Refuse(out attributes);

        public Errno SetAttributes(ulong node, in FuseSetAttributes change, out FuseAttributes attributes) => Refuse(out attributes);

        public Errno Open(ulong node, int flags, out FuseOpenResult result) => Refuse(out result);

        public void Release(ulong node, ulong handle)
        {
            // Nothing is open.
        }

        public Errno Flush(ulong node, ulong handle) => Errno.None;

        public Errno Sync(ulong node, ulong handle, bool dataOnly) => Errno.None;

        public Errno Allocate(ulong node, ulong handle, long offset, long length, int mode) => Errno.None;

        public Errno Seek(ulong node, ulong handle, long offset, int whence, out long result) => Refuse(out result);

        public Errno OpenDirectory(ulong node, out FuseOpenResult result) => Refuse(out result);

        public Errno ReadDirectory(ulong node, ulong handle, long offset, ref FuseDirectoryWriter writer) => Errno.None;

        public void ReleaseDirectory(ulong node, ulong handle)
        {
            // Nothing is open.
        }

        public Errno StatFs(ulong node, out FuseStatFs result) => Refuse(out result);

        private static Errno Refuse<T>(out T result)
            where T : struct
        {
            result = default;
            return Errno.EIO;
        }
    }
}
