// The stages of the ordered commit (Engine invariants I1, I2): what must be durable before what.
namespace QcowFs.Images.Metadata;

/// <summary>When a changed page may reach the disk.</summary>
internal enum CommitStage
{
    /// <summary>Makes nothing newly reachable: reference counts.</summary>
    Counts = 0,

    /// <summary>Maps guest blocks: written only when everything that it points to is durable.</summary>
    Links = 2,
}
