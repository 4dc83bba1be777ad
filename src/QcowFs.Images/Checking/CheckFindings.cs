// Gathers findings while a check runs: counts all, lists the first.
namespace QcowFs.Images;

/// <summary>The findings of one running check. Used by one thread.</summary>
internal sealed class CheckFindings
{
    private readonly List<CheckFinding> _listed = [];

    public long CheckErrors { get; private set; }

    public long Corruptions { get; private set; }

    /// <summary>How many of the corruptions are harmless.</summary>
    public long HarmlessCount { get; private set; }

    public long Leaks { get; private set; }

    public long NotListed { get; private set; }

    public IReadOnlyList<CheckFinding> Listed => _listed;

    public void Corruption(string kind, string structure, long offset, string message, string repair) =>
        Add(kind, CheckSeverity.Corruption, structure, offset, message, repair);

    public void Harmless(string kind, string structure, long offset, string message, string repair) =>
        Add(kind, CheckSeverity.Harmless, structure, offset, message, repair);

    public void Leak(string structure, long offset, string message, string repair) =>
        Add("leak", CheckSeverity.Leak, structure, offset, message, repair);

    public void Unchecked(string kind, string structure, long offset, string message) =>
        Add(kind, CheckSeverity.Unchecked, structure, offset, message, "none: repair the cause first");

    private void Add(string kind, CheckSeverity severity, string structure, long offset, string message, string repair)
    {
        switch (severity)
        {
            case CheckSeverity.Leak:
                Leaks++;
                break;
            case CheckSeverity.Unchecked:
                CheckErrors++;
                break;
            default:
                Corruptions++;
                HarmlessCount += severity == CheckSeverity.Harmless ? 1 : 0;
                break;
        }

        if (_listed.Count < CheckReport.FindingLimit)
            _listed.Add(new CheckFinding(kind, severity, structure, offset, message, repair));
        else
            NotListed++;
    }
}
