// Whether the file that a parent locator led to is the parent: the one that the child's missing sectors were left out for.
namespace QcowFs.Images.Vhdx;

internal static class ParentLink
{
    private const string Structure = "parent locator";

    /// <summary>Throws <see cref="ImageFormatException"/> where a parent is the wrong one, or was changed since the child was
    /// made.</summary>
    /// <param name="child">The child.</param>
    /// <param name="locator">Its parent locator.</param>
    /// <param name="parent">What the name led to, or null where that is no VHDX.</param>
    /// <param name="childName">The child's file.</param>
    /// <param name="parentName">The parent's name as the child states it.</param>
    public static void Require(VhdxLayout child, ParentLocator locator, VhdxLayout? parent, string childName, string parentName)
    {
        string name = Printable.Quote(parentName);
        if (parent is null)
            throw Bad(childName, $"the parent {name} is no VHDX image", "put the right parent back");
        Guid written = parent.Headers.Current.DataWriteGuid;
        if (written != locator.Linkage && written != locator.SecondLinkage)
        {
            throw Bad(childName, $"the parent {name} has the data write GUID {written}, expected {locator.Linkage}: it was written to "
                + "after the child was made, or is another disk", "restore the parent as it was then; with this one the disk would hold wrong data");
        }

        if (parent.Metadata.LogicalSectorSize != child.Metadata.LogicalSectorSize)
        {
            throw Bad(childName, $"the parent {name} has sectors of {parent.Metadata.LogicalSectorSize} bytes, the child of "
                + $"{child.Metadata.LogicalSectorSize}", "put the right parent back");
        }

        if (parent.Metadata.VirtualSize != child.Metadata.VirtualSize)
        {
            throw Bad(childName, $"the parent {name} has {parent.Metadata.VirtualSize} bytes, the child {child.Metadata.VirtualSize}",
                "put the right parent back");
        }
    }

    private static ImageFormatException Bad(string file, string problem, string advice) => new(file, Structure, -1, problem, advice);
}
