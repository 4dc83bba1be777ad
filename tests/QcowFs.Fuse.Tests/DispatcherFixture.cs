// A dispatcher over a recording file system, without any transport.
using System.Text;
using QcowFs.Native;

namespace QcowFs.Fuse.Tests;

internal sealed class DispatcherFixture
{
    private readonly byte[] _reply;

    public DispatcherFixture(int payload = 65536, Func<Exception, Errno>? map = null, Action<FuseFault>? report = null)
    {
        _reply = new byte[16 + payload];
        var options = new FuseSessionOptions
        {
            MapException = map ?? (static _ => Errno.EIO),
            Report = report ?? Faults.Add,
        };
        Dispatcher = new Dispatcher(FileSystem, options);
    }

    public RecordingFileSystem FileSystem { get; } = new();

    public Dispatcher Dispatcher { get; }

    public List<FuseFault> Faults { get; } = [];

    /// <summary>The reply to a request, empty where none is due.</summary>
    public byte[] Serve(byte[] request)
    {
        // What an earlier reply left must not show through.
        _reply.AsSpan().Fill(0xEE);
        int length = Dispatcher.Serve(request, _reply);
        return _reply[..length];
    }

    /// <summary>Serves a request and compares the reply byte for byte, and the one call that it made.</summary>
    public void Expect(byte[] request, byte[] reply, params string[] calls)
    {
        FileSystem.Calls.Clear();
        Assert.Equal(Convert.ToHexString(reply), Convert.ToHexString(Serve(request)));
        Assert.Equal(calls, FileSystem.Calls);
    }

    public static byte[] Utf8(string text) => Encoding.UTF8.GetBytes(text);
}
