// What some storages can tell about themselves: where they hold data and where nothing was ever written.
namespace QcowFs.Storage;

/// <summary>Implemented by storages that know their holes. Thread-safe.</summary>
public interface IExtentSource
{
    /// <summary>Whether the byte at <paramref name="offset"/> may be other than zero. <paramref name="end"/> is where that answer
    /// changes, at most the length. False at and past the end.</summary>
    bool IsData(long offset, out long end);
}
