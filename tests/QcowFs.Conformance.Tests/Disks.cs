// Disks for tests: made by qemu-img, mounted by us, judged by qemu-img.
using System.Globalization;
using System.Text;
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

    /// <summary>Makes a directory full of files of all sizes, with links and modes; "d0" is in it. The same one each time: what a machine
    /// has of its own may change while it is read, or not be there.</summary>
    public static void MakeTree(this Sandbox box, string name, int mebibytes)
    {
        Random random = new(mebibytes);
        byte[] content = new byte[1 << 20];
        long left = (long)mebibytes << 20;
        for (int i = 0; left > 0; i++)
        {
            string directory = $"{box.Path}/{name}/d{i / 100}/d{i / 10 % 10}";
            Directory.CreateDirectory(directory);
            Span<byte> bytes = content.AsSpan(0, random.Next(8) switch { 0 => random.Next(200_000), 1 => random.Next(content.Length), 2 => 0, _ => random.Next(20_000) });
            if (i % 3 == 0)
                FillWithText(bytes, i);
            else
                random.NextBytes(bytes);
            string file = $"{directory}/a file, the {i}th";
            File.WriteAllBytes(file, bytes);
            if (i % 7 == 0) File.SetUnixFileMode(file, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
            if (i % 9 == 0) File.CreateSymbolicLink(directory + $"/link{i}", i % 2 == 0 ? Path.GetFileName(file) : "/nowhere");
            left -= bytes.Length;
        }
    }

    private static void FillWithText(Span<byte> bytes, int file)
    {
        for (int line = 0; !bytes.IsEmpty; line++)
        {
            byte[] text = Encoding.ASCII.GetBytes($"Line {line} of file {file} says what most lines of most files say.\n");
            int count = Math.Min(text.Length, bytes.Length);
            text.AsSpan(0, count).CopyTo(bytes);
            bytes = bytes[count..];
        }
    }

    /// <summary>What a file takes on the host, in KiB.</summary>
    public static long Kilobytes(this Sandbox box, string file) => long.Parse(box.Shell($"du -k {file} | cut -f1").Expect(), CultureInfo.InvariantCulture);

    /// <summary>Replaces bytes of a file.</summary>
    public static void Patch(this Sandbox box, string file, long offset, params byte[] bytes)
    {
        using FileStream stream = new($"{box.Path}/{file}", FileMode.Open);
        stream.Position = offset;
        stream.Write(bytes);
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
