// Receipts as text and as JSON.
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.FileSystem;
using QcowFs.Native;

namespace QcowFs.Server;

/// <summary>The account that unmounting gives of all images of a mount.</summary>
internal sealed record Receipt(string MountPoint, IReadOnlyList<ImageReceipt> Images)
{
    /// <summary>Whether every image is complete on stable storage.</summary>
    public bool IsDurable
    {
        get
        {
            foreach (ImageReceipt image in Images)
                if (image.Error is not null) return false;
            return true;
        }
    }

    /// <summary>One line for each image that something was done to, or for the only one; one for all others together.</summary>
    public IEnumerable<string> Lines()
    {
        int read = 0;
        foreach (ImageReceipt image in Images)
        {
            if (Images.Count > 1 && image is { Written: 0, Discarded: 0, Replayed: null, Error: null, WrittenByKernel: false })
            {
                read++;
                continue;
            }
            string byKernel = image.Written == 0 ? "written by the kernel (passthrough)" : $"{Sizes.Describe(image.Written)} written, and more by the kernel (passthrough)";
            string written = image.WrittenByKernel ? byKernel : $"{Sizes.Describe(image.Written)} written";
            string done = $"{Output.Safe(image.Name)}: {written}, {Sizes.Describe(image.Discarded)} discarded";
            if (image.Overlay == ImageReceipt.TemporaryOverlay) done += ", in a temporary overlay that is gone";
            else if (image.Overlay is not null) done += $", kept in {Output.Safe(Path.GetFileName(image.Overlay))}";
            if (image.Shared > 0) done += $", {Sizes.Describe(image.Shared)} shared";
            if (image.Replayed is not null) done += $", recovered: {image.Replayed}";
            if (image.Check != "not run") done += $", check: {image.Check}";
            yield return done + (image.Error is null ? image.Overlay == ImageReceipt.TemporaryOverlay ? "; the image is as it was" : "; closed and durable" : $"; NOT complete: {image.Error}");
        }
        if (read > 0) yield return read == 1 ? "1 image was only read" : $"{read} images were only read";
        if (Images.Count == 0) yield return "no image was used";
    }

    /// <summary>Writes the keys of PRODUCT section 2.</summary>
    public void Write(Utf8JsonWriter json)
    {
        json.WriteStartObject();
        json.WriteString("mountpoint", HostText.Show(MountPoint));
        json.WriteStartArray("images");
        foreach (ImageReceipt image in Images)
        {
            json.WriteStartObject();
            json.WriteString("name", HostText.Show(image.Name));
            json.WriteString("replayed", image.Replayed);
            json.WriteNumber("written", image.Written);
            json.WriteNumber("discarded", image.Discarded);
            json.WriteNumber("shared", image.Shared);
            json.WriteString("check", image.Check);
            json.WriteString("error", image.Error);
            if (image.WrittenByKernel) json.WriteBoolean("written-by-kernel", true);
            if (image.Overlay is not null) json.WriteString("overlay", image.Overlay);
            json.WriteEndObject();
        }
        json.WriteEndArray();
        json.WriteEndObject();
    }

    /// <summary>Reads what <see cref="Write"/> wrote.</summary>
    public static Receipt Read(JsonElement json)
    {
        List<ImageReceipt> images = [];
        foreach (JsonElement image in json.GetProperty("images").EnumerateArray())
        {
            images.Add(new ImageReceipt(
                image.GetProperty("name").GetString()!,
                image.GetProperty("replayed").GetString(),
                image.GetProperty("written").GetInt64(),
                image.GetProperty("discarded").GetInt64(),
                image.GetProperty("shared").GetInt64(),
                image.GetProperty("check").GetString()!,
                image.GetProperty("error").GetString())
            {
                WrittenByKernel = image.TryGetProperty("written-by-kernel", out JsonElement byKernel) && byKernel.GetBoolean(),
                Overlay = image.TryGetProperty("overlay", out JsonElement overlay) ? overlay.GetString() : null,
            });
        }
        return new Receipt(json.GetProperty("mountpoint").GetString()!, images);
    }
}
