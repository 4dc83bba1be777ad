// What the layer of a format must be able to do so that its image can be an overlay: remember its base, and let go of all it holds.
namespace QcowFs.Images;

/// <summary>An image file that may lie over a base.</summary>
internal interface IOverlayLayer : IImageLayer
{
    /// <summary>What the image remembers of its base, or null where it remembers nothing, or nothing that can be understood.</summary>
    BaseIdentity? Base { get; }

    /// <summary>Makes the image remember another state of its base, durably. It must remember one already. A crash leaves the old one,
    /// the new one, or the new one as <see cref="BaseIdentity.IsCommitting"/>.</summary>
    void Remember(BaseIdentity identity);

    /// <summary>Gives up all that the image holds of its disk, durably, so that its base supplies everything. At every instant each
    /// block comes from the image or from its base, so nobody sees a change where the two agree. Snapshots stay.</summary>
    void Empty();
}
