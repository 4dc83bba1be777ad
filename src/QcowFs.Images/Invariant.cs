// Assertions that stay on in Release: a broken one is our bug, and stopping beats corrupting an image.
using System.Diagnostics.CodeAnalysis;

namespace QcowFs.Images;

/// <summary>States what must hold. A violation is a defect of this program, never of an image or of the host.</summary>
internal static class Invariant
{
    /// <summary>Throws <see cref="InvariantException"/> unless <paramref name="condition"/> holds.</summary>
    public static void Require([DoesNotReturnIf(false)] bool condition, string rule)
    {
        if (!condition)
            Violated(rule);
    }

    [DoesNotReturn]
    private static void Violated(string rule) => throw new InvariantException(rule);
}

/// <summary>A rule of this program's own was broken.</summary>
internal sealed class InvariantException(string rule) : Exception($"internal rule broken: {rule}");
