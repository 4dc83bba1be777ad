// What a run found, as text for a terminal and as a page of Markdown with a plot beside it. Everything in the page comes from the run,
// so running again is the way to change it.
using System.Globalization;
using System.Text;

namespace QcowFs.Benchmarks;

/// <summary>What a run found.</summary>
/// <param name="Options">How it was run.</param>
/// <param name="Contenders">Who was measured.</param>
/// <param name="Rows">fio rows.</param>
/// <param name="PeakMemory">Contender -> the largest resident memory of its servers in bytes.</param>
/// <param name="Others">Lines of the rows that are not fio's.</param>
internal sealed record Report(
    BenchOptions Options, IReadOnlyList<Contender> Contenders, IReadOnlyList<RowResult> Rows, IReadOnlyDictionary<string, long> PeakMemory,
    IReadOnlyList<string> Others)
{
    private const string PageName = "BENCHMARKS.md";
    private const string PlotName = "BENCHMARKS.svg";
    private const string Legend =
        "Values are medians over the rounds, ratios medians of the rounds' ratios; spread is the widest (max - min) / median of the row.";

    private IReadOnlyList<Verdict> Judged => [.. Rows.SelectMany(Verdicts.Of)];

    public void Write(TextWriter output)
    {
        if (Rows.Count == 0)
            return;
        output.WriteLine();
        WriteTable(output, [.. Heads], [.. Rows.Select(row => Cells(row).ToArray())]);
        output.WriteLine();
        WriteTable(output, ["row", "of ours", "asked", "found", ""], [.. Judged.Select(VerdictCells)]);
        output.WriteLine();
        foreach (string line in Notes.Append(Legend))
            output.WriteLine(line);
    }

    /// <summary>Writes the page and the plot.</summary>
    public void WritePage(string directory)
    {
        _ = Directory.CreateDirectory(directory);
        StringBuilder page = new();
        page.Append("# Benchmarks\n\nWritten by `make bench BENCH=\"--report tests/QcowFs.Benchmarks\"`; do not edit.\n\n");
        foreach (string fact in Machine.Facts())
            page.Append(CultureInfo.InvariantCulture, $"- {fact}\n");
        if (Options.NewerQemu is { } newer && Contenders.Any(contender => contender.Name.StartsWith("qemu-new", StringComparison.Ordinal)))
            page.Append(CultureInfo.InvariantCulture, $"- qemu-new: {Command.Run(newer, ["--version"]).Split('\n')[0].Trim()}; qemu-new-threads: the same on an I/O thread for each processor\n");
        page.Append(CultureInfo.InvariantCulture,
            $"- {Options.Rounds} rounds of {Options.Seconds} s, the contenders in turns in each; disks of {Options.DiskSize >> 20} MiB, written in full, or new where the row says alloc\n\n");
        page.Append(CultureInfo.InvariantCulture, $"qcowfs, vhdx, raw, add-cow and add-cow-full are QcowFs over these formats; add-cow-full holds all of its disk itself; raw-pass and null-pass\nare raw and null by FUSE passthrough, qcowfs-uring and null-uring are qcowfs and null over io_uring. null is a FUSE server\nthat passes each request to a plain file: what the protocol allows. bare is the plain file without FUSE. {Legend}\n\n");
        if (Rows.Count > 0)
        {
            page.Append("## Medians\n\n");
            AppendTable(page, [.. Heads], Rows.Select(row => Cells(row).ToArray()));
            page.Append(CultureInfo.InvariantCulture, $"\n![Every row, its fastest contender at full width]({PlotName})\n\n## What is asked\n\n");
            AppendTable(page, ["row", "of ours", "asked", "found", ""], Judged.Select(VerdictCells));
            page.Append("\n## Notes\n\n");
            foreach (string note in Notes)
                page.Append(CultureInfo.InvariantCulture, $"- {note}\n");
            File.WriteAllText(Path.Combine(directory, PlotName), Plot.Draw(Rows, [.. Contenders.Select(contender => contender.Name)]));
        }

        if (Others.Count > 0)
        {
            page.Append("\n## Other rows\n\n");
            foreach (string line in Others)
                page.Append(CultureInfo.InvariantCulture, $"- {line}\n");
        }

        File.WriteAllText(Path.Combine(directory, PageName), page.ToString());
    }

    private IEnumerable<string> Heads => ["row", "unit", .. Contenders.Select(contender => contender.Name), "spread"];

    private IEnumerable<string> Cells(RowResult row) =>
    [
        row.Workload.Name, row.Workload.Unit,
        .. Contenders.Select(contender => Number(Statistics.Median(row.Values[contender.Name]))),
        row.Values.Values.Max(Statistics.Spread).ToString("P0", CultureInfo.InvariantCulture).Replace(" ", "", StringComparison.Ordinal),
    ];

    private static string[] VerdictCells(Verdict verdict) =>
        [verdict.Row, verdict.Subject, verdict.Asked, verdict.Found, verdict.IsReached ? "pass" : "MISS" + (verdict.Limit is null ? "" : $": {verdict.Limit}")];

    private IEnumerable<string> Notes =>
    [
        .. from contender in Contenders
           from left in Rows.Select(row => (Row: row.Workload.Name, Why: contender.LeftOutOf(row.Workload))).Where(left => left.Why is not null).GroupBy(left => left.Why)
           select $"{contender.Name} is left out where {left.Key}: {string.Join(", ", left.Select(l => l.Row))}",
        .. PeakMemory.Select(peak => $"{peak.Key}: at most {peak.Value >> 20} MiB resident"),
    ];

    private static void WriteTable(TextWriter output, string[] heads, IReadOnlyList<string[]> rows)
    {
        int[] widths = [.. heads.Select((head, i) => rows.Select(row => row[i].Length).Append(head.Length).Max())];
        foreach (string[] row in rows.Prepend(heads))
        {
            output.WriteLine(string.Join("  ", row.Select((cell, i) => IsNumber(cell) ? cell.PadLeft(widths[i]) : cell.PadRight(widths[i]))).TrimEnd());
        }
    }

    private static void AppendTable(StringBuilder page, string[] heads, IEnumerable<string[]> rows)
    {
        page.Append(CultureInfo.InvariantCulture, $"| {string.Join(" | ", heads)} |\n|{string.Concat(heads.Select(_ => "---|"))}\n");
        foreach (string[] row in rows)
            page.Append(CultureInfo.InvariantCulture, $"| {string.Join(" | ", row)} |\n");
    }

    private static bool IsNumber(string cell) => cell == "-" || double.TryParse(cell.TrimEnd('%'), CultureInfo.InvariantCulture, out _);

    private static string Number(double? value) => value switch
    {
        null => "-",
        < 100 => value.Value.ToString("0.00", CultureInfo.InvariantCulture),
        _ => value.Value.ToString("N0", CultureInfo.InvariantCulture),
    };
}
