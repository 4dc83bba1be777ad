// Disks for tests: made by qemu-img, mounted by us, judged by qemu-img.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

internal static class Disks
{
    /// <summary>The formats that are written in place.</summary>
    public static TheoryData<string> Formats => new("raw", "qcow2", "vhdx");

    /// <summary>Makes an image and gives its name.</summary>
    public static string Make(this Sandbox box, string format, string size, string? options = null)
    {
        Tools.Require("qemu-img");
        string name = "disk." + (format == "raw" ? "img" : format);
        string[] words = ["create", "-q", "-f", format, .. options is null ? Array.Empty<string>() : ["-o", options], name, size];
        box.Run("qemu-img", words).Expect();
        return name;
    }

    /// <summary>Mounts an image writable on a new directory "m" and gives the name of its raw file.</summary>
    public static string MountWritable(this Sandbox box, string image, params string[] options)
    {
        if (!Directory.Exists($"{box.Path}/m")) box.MakeDirectory("m");
        string[] format = image.EndsWith(".img", StringComparison.Ordinal) ? ["-f", "raw"] : [];
        box.QcowFs(["mount", "-w", .. format, .. options, image, "m"]).Expect();
        return $"m/{image}.raw";
    }

    /// <summary>Mounts an image read-only on a new directory "m" and gives the name of its raw file.</summary>
    public static string MountReadOnly(this Sandbox box, string image, params string[] options)
    {
        if (!Directory.Exists($"{box.Path}/m")) box.MakeDirectory("m");
        string[] format = image.EndsWith(".img", StringComparison.Ordinal) ? ["-f", "raw"] : [];
        box.QcowFs(["mount", .. format, .. options, image, "m"]).Expect();
        return $"m/{image}.raw";
    }

    /// <summary>Unmounts "m" and demands that QEMU finds nothing wrong, neither error nor leak.</summary>
    public static void UnmountAndCheck(this Sandbox box, string image)
    {
        box.QcowFs("umount", "m").Expect();
        box.Check(image);
    }

    /// <summary>qemu-img finds neither error nor leak.</summary>
    public static void Check(this Sandbox box, string image)
    {
        if (image.EndsWith(".img", StringComparison.Ordinal)) return;
        box.Run("qemu-img", "check", "-q", image).Expect();
        box.QcowFs("check", image).Expect();
    }

    /// <summary>SHA-256 of a file's bytes.</summary>
    public static string Hash(this Sandbox box, string file) => box.Run("sha256sum", file).Expect().Split(' ')[0];

    /// <summary>SHA-256 of an image's disk as QEMU reads it.</summary>
    public static string HashByQemu(this Sandbox box, string image)
    {
        string format = image.EndsWith(".img", StringComparison.Ordinal) ? "raw" : Path.GetExtension(image)[1..];
        box.Run("qemu-img", "convert", "-f", format, "-O", "raw", image, "by-qemu.raw").Expect();
        string hash = box.Hash("by-qemu.raw");
        File.Delete(box.Path + "/by-qemu.raw");
        return hash;
    }
}
