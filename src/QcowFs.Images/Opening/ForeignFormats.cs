// Magic numbers of disk image formats that this program knows only by sight.
namespace QcowFs.Images;

internal static class ForeignFormats
{
    private const int VdiSignatureAt = 64;

    /// <summary>What the file seems to be, or null.</summary>
    public static string? Name(ReadOnlySpan<byte> start) =>
        start.StartsWith("conectix"u8) ? "a VHD image"
        : start.StartsWith("KDMV"u8) || start.StartsWith("COWD"u8) || start.StartsWith("# Disk DescriptorFile"u8) ? "a VMDK image"
        : start.StartsWith("QED\0"u8) ? "a QED image"
        : start.StartsWith("WithoutFreeSpace"u8) || start.StartsWith("WithouFreSpacExt"u8) ? "a Parallels image"
        : start.Length > VdiSignatureAt + 4 && start[VdiSignatureAt..].StartsWith((ReadOnlySpan<byte>)[0x7F, 0x10, 0xDA, 0xBE])
            ? "a VDI image"
        : start.StartsWith((ReadOnlySpan<byte>)[(byte)'L', (byte)'U', (byte)'K', (byte)'S', 0xBA, 0xBE]) ? "a LUKS container"
        : null;
}
