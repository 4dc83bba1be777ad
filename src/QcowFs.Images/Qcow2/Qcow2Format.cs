// qcow2 as the opener sees it: the header's names, what may be opened how, facts, check.
using QcowFs.Images.Qcow2.Journal;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

internal sealed class Qcow2Format : IImageFormat
{
    public const string FormatName = "qcow2";

    public string Name => FormatName;

    public bool Recognises(ReadOnlySpan<byte> start) => Qcow2HeaderReader.HasMagic(start);

    public IImageLayer Read(IStorage file) => new Qcow2Layer(Qcow2HeaderReader.Read(file), file);

    public IImageBlueprint Design(ImageRequest request, CreateOptions options) =>
        new Qcow2Blueprint(Qcow2CreateOptions.Parse(request, options));

    private sealed class Qcow2Layer(Qcow2Header header, IStorage file) : IOverlayLayer
    {
        private Action<double>? _progress;

        public IReadOnlyList<NamedReference> References { get; } = FindReferences(header);

        public IImageLayer AtSnapshot(string name, bool isId) =>
            new Qcow2Layer(Qcow2SnapshotTable.Read(header, file).HeaderAt(header, file, name, isId), file);

        public int BlockSize => header.ClusterSize;

        public string? SharingObstacle =>
            header.Version < 3 ? "version 2 has no room for the mark of a dedup index"
            : header.HasExternalDataFile ? "an external data file keeps one place for each block"
            : header.RefcountBits == 1 ? "its reference counts have one bit, too few to share"
            : null;

        public string? WhyNotCompressed => header.HasExternalDataFile ? "clusters in an external data file cannot be compressed" : null;

        // What a crash left of an older journal is taken away first.
        public (string Problem, string Advice)? WhyNoJournal =>
            JournalHeader.FindObstacle(header) is { } problem ? (problem, JournalHeader.AdviceFor(header, file.Name)) : null;

        public void RequireOpenable(bool writable) => Qcow2OpenRules.Require(header, file, writable);

        public IDiskImage Open(IStorage? dataFile, IDiskImage? backing, OpenOptions options) =>
            Qcow2Image.Open(new Qcow2Parts(header, file, dataFile, backing, options));

        public void EditSnapshot(SnapshotAction action, string name, DateTimeOffset now)
        {
            Qcow2OpenRules.RequireNoJournal(header, file);
            Qcow2SnapshotEdit edit = new(header, file);
            switch (action)
            {
                case SnapshotAction.Create:
                    edit.Create(name, now);
                    break;
                case SnapshotAction.Apply:
                    edit.Apply(name);
                    break;
                default:
                    edit.Delete(name);
                    break;
            }
        }

        public void Resize(long size, IStorage? dataFile, IDiskImage? backing)
        {
            Qcow2OpenRules.RequireNoJournal(header, file);
            Qcow2Resize.Run(header, file, dataFile, backing, size);
        }

        public ImageFileFacts Describe() => Qcow2Description.Of(header, file);

        public JournalFacts? DescribeJournal() => header.HasJournal ? JournalReplay.Plan(header, file).Describe() : null;

        public CheckReport Check() => Qcow2Checker.Diagnose(file, progress: _progress).Report;

        public CheckReport Check(Func<NamedReference, NamedDisk> look) => WithDataFile(Check(), look);

        // As in QEMU, a check without the data file is none, though nothing but metadata is checked. What the gate keeps closed is not
        // held against the image.
        private CheckReport WithDataFile(CheckReport report, Func<NamedReference, NamedDisk> look)
        {
            NamedReference data = References.FirstOrDefault(r => r.Kind == ReferenceKind.DataFile);
            NamedDisk disk = data.Name is null ? new NamedDisk(null, "the image does not name it") : look(data);
            if (!header.HasExternalDataFile || disk.Problem is null || disk.IsRefused)
                return report;
            CheckFinding finding = new("data-file-unreachable", CheckSeverity.Unchecked, "data file", -1, disk.Problem, RepairText.None);
            return report with { CheckErrors = report.CheckErrors + 1, Findings = [.. report.Findings, finding] };
        }

        public CheckReport Repair(RepairMode mode) => Qcow2Repair.Run(file, mode, progress: _progress);

        public void ReportTo(Action<double> progress) => _progress = progress;

        public BaseIdentity? Base => Qcow2Overlay.ReadBase(header);

        public void Remember(BaseIdentity identity) => Qcow2Overlay.WriteBase(header, file, identity);

        public void Empty() => Qcow2Overlay.Empty(header, file);
    }

    private sealed class Qcow2Blueprint(Qcow2CreateOptions options) : IImageBlueprint
    {
        public string? DataFileName => options.DataFileName;

        public void Build(IStorage file, IStorage? dataFile) => Qcow2Creator.Create(file, dataFile, options);
    }

    private static List<NamedReference> FindReferences(Qcow2Header header)
    {
        List<NamedReference> references = [];
        if (header.HasExternalDataFile && header.DataFileName is not null)
            references.Add(new NamedReference(ReferenceKind.DataFile, header.DataFileName, "raw"));
        if (header.BackingName is not null)
            references.Add(new NamedReference(ReferenceKind.Backing, header.BackingName, header.BackingFormat) { Rebase = "qemu-img rebase" });
        return references;
    }
}
