// The one fault of the protocol itself that a caller has to hear of.
namespace QcowFs.Fuse;

/// <summary>The kernel and this library cannot talk: its protocol is too old, or it did not begin with INIT. The message is one
/// sentence for a person.</summary>
public sealed class FuseProtocolException(string message) : Exception(message);
