// The plot: one group of bars a row, one bar a contender, as long as its share of the row's largest value; a line shows the rounds' range.
using System.Globalization;
using System.Text;

namespace QcowFs.Benchmarks;

internal static class Plot
{
    private const int Width = 960;
    private const int LabelWidth = 110;
    private const int ValueWidth = 110;
    private const int BarHeight = 13;
    private const int HeadHeight = 24;
    private const int Gap = 12;

    private static readonly string[] Colours =
        ["#9e9e9e", "#616161", "#c62828", "#ef6c00", "#ad1457", "#6a1b9a", "#1565c0", "#0277bd", "#00838f", "#2e7d32", "#558b2f", "#4527a0"];

    /// <summary>The document.</summary>
    public static string Draw(IReadOnlyList<RowResult> rows, IReadOnlyList<string> contenders)
    {
        StringBuilder body = new();
        int y = Gap;
        foreach (RowResult row in rows)
            y = DrawRow(body, row, contenders, y) + Gap;
        return string.Create(CultureInfo.InvariantCulture,
            $"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{Width}\" height=\"{y}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n");
    }

    private static int DrawRow(StringBuilder body, RowResult row, IReadOnlyList<string> contenders, int y)
    {
        double most = row.Values.Values.SelectMany(values => values).DefaultIfEmpty(1).Max();
        double scale = (Width - LabelWidth - ValueWidth) / Math.Max(most, double.Epsilon);
        string better = row.Workload.Measure == Measure.SyncsPerSync ? ", less is better" : "";
        Append(body, $"<text x=\"8\" y=\"{y + 14}\" font-size=\"13\" font-weight=\"bold\">{row.Workload.Name} ({row.Workload.Unit}{better})</text>");
        y += HeadHeight;
        for (int i = 0; i < contenders.Count; i++)
        {
            List<double> values = row.Values[contenders[i]];
            if (Statistics.Median(values) is not { } median)
                continue;
            Append(body, $"<text x=\"{LabelWidth - 6}\" y=\"{y + 10}\" text-anchor=\"end\">{contenders[i]}</text>");
            Append(body, $"<rect x=\"{LabelWidth}\" y=\"{y + 1}\" width=\"{median * scale:0.0}\" height=\"{BarHeight - 2}\" fill=\"{Colours[i % Colours.Length]}\"/>");
            double middle = y + (BarHeight / 2.0);
            Append(body, $"<line x1=\"{LabelWidth + (values.Min() * scale):0.0}\" y1=\"{middle:0.0}\" x2=\"{LabelWidth + (values.Max() * scale):0.0}\" y2=\"{middle:0.0}\" stroke=\"black\"/>");
            Append(body, $"<text x=\"{LabelWidth + (values.Max() * scale) + 6:0.0}\" y=\"{y + 10}\">{(median < 100 ? median.ToString("0.0", CultureInfo.InvariantCulture) : median.ToString("N0", CultureInfo.InvariantCulture))}</text>");
            y += BarHeight;
        }

        return y;
    }

    private static void Append(StringBuilder body, FormattableString element) => body.Append(element.ToString(CultureInfo.InvariantCulture)).Append('\n');
}
