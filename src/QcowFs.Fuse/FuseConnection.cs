// What kernel and server agreed on.
namespace QcowFs.Fuse;

/// <summary>The result of the INIT exchange. It does not change for the life of a connection, so a server that takes a connection
/// over from another process is given the value that the other one had.</summary>
public sealed record FuseConnection
{
    /// <summary>Minor version of protocol 7 that both sides speak.</summary>
    public required int Minor { get; init; }
    /// <summary>Minor version of protocol 7 that the kernel offered.</summary>
    public required int KernelMinor { get; init; }
    /// <summary>What the kernel offered.</summary>
    public required FuseFeatures Offered { get; init; }
    /// <summary>What is on.</summary>
    public required FuseFeatures Enabled { get; init; }
    /// <summary>Largest payload of a WRITE in bytes.</summary>
    public required int MaxWrite { get; init; }
    /// <summary>Largest request in pages; bounds READ too.</summary>
    public required int MaxPages { get; init; }
    /// <summary>Read-ahead in bytes.</summary>
    public required long MaxReadahead { get; init; }
    /// <summary>Requests that the kernel keeps in flight for background I/O (read-ahead, asynchronous direct I/O).</summary>
    public required int MaxBackground { get; init; }
}
