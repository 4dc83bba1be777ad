// The table of medians, spreads and ratios, and whether each row reached what is asked of it.
using System.Globalization;

namespace QcowFs.Benchmarks;

internal static class Report
{
    public static void Write(TextWriter output, IReadOnlyList<RowResult> results, IReadOnlyList<Contender> contenders, IReadOnlyDictionary<string, long> peakMemory)
    {
        string[] names = [.. contenders.Select(contender => contender.Name)];
        output.WriteLine();
        output.WriteLine($"{"row",-24} {"unit",-5} {string.Concat(names.Select(name => $" {name,12}"))} {"spread",7} {"of null",8} {"x qemu",7}  asked");
        foreach (RowResult result in results)
        {
            string medians = string.Concat(names.Select(name => $" {Number(Median(result.Values[name])),12}"));
            double spread = names.Max(name => Spread(result.Values[name]));
            double? ofNull = Ratio(result, "qcowfs", "null");
            double? timesQemu = Ratio(result, "qcowfs", "qemu");
            output.WriteLine(
                $"{result.Workload.Name,-24} {result.Workload.Unit,-5} {medians} {spread,7:P0} {Percent(ofNull),8} {Times(timesQemu),7}  {Verdict(result, ofNull, timesQemu)}");
        }

        output.WriteLine();
        foreach ((string name, long bytes) in peakMemory)
        {
            output.WriteLine($"{name}: at most {bytes >> 20} MiB resident");
        }

        output.WriteLine("Values are medians over the rounds, ratios medians of the rounds' ratios; spread is the widest (max - min) / median of the row.");
    }

    private static string Verdict(RowResult result, double? ofNull, double? timesQemu)
    {
        Workload row = result.Workload;
        double? own = Median(result.Values.GetValueOrDefault("qcowfs") ?? []);
        List<(string Text, bool Reached)> rules = [];
        if (row.OfNullServer is { } share && ofNull is { } foundShare)
        {
            rules.Add(($"{share:P0} of null", foundShare >= share));
        }

        if (row.TimesQemu is { } factor && timesQemu is { } foundFactor)
        {
            rules.Add(($"{factor:0.#} x qemu", foundFactor >= factor));
        }

        if (row.AtMost is { } limit && own is { } value)
        {
            rules.Add(($"at most {limit:0.#}", value <= limit * 1.02));
        }

        AddRulesOfAddCow(result, rules);
        return string.Join(", ", rules.Select(rule => $"{(rule.Reached ? "pass" : "MISS")} {rule.Text}"));
    }

    // Before it is complete it may cost what any copy on write costs; complete it is a raw disk.
    private static void AddRulesOfAddCow(RowResult result, List<(string Text, bool Reached)> rules)
    {
        if (result.Workload.OfNullServer is { } share && Ratio(result, "add-cow", "null") is { } found)
        {
            rules.Add(($"add-cow {found:P0} of null, asked {share:P0}", found >= share));
        }

        const double nearRaw = 0.9;
        if (result.Workload.State == DiskState.Written && Ratio(result, "add-cow-full", "raw") is { } ofRaw)
        {
            rules.Add(($"add-cow-full {ofRaw:P0} of raw, asked {nearRaw:P0}", ofRaw >= nearRaw));
        }
    }

    // Rounds are paired: the ratio of one round is not disturbed by what the machine did in another.
    private static double? Ratio(RowResult result, string above, string below) =>
        result.Values.TryGetValue(above, out List<double>? dividends) && result.Values.TryGetValue(below, out List<double>? divisors)
            ? Median([.. dividends.Zip(divisors, (dividend, divisor) => dividend / divisor)])
            : null;

    private static double? Median(IReadOnlyList<double> values)
    {
        double[] sorted = [.. values.Order()];
        return sorted.Length switch
        {
            0 => null,
            _ when sorted.Length % 2 == 1 => sorted[sorted.Length / 2],
            _ => (sorted[(sorted.Length / 2) - 1] + sorted[sorted.Length / 2]) / 2,
        };
    }

    private static double Spread(IReadOnlyList<double> values) => Median(values) is { } median && median > 0 ? (values.Max() - values.Min()) / median : 0;

    private static string Number(double? value) => value switch
    {
        null => "-",
        < 100 => value.Value.ToString("0.00", CultureInfo.InvariantCulture),
        _ => value.Value.ToString("N0", CultureInfo.InvariantCulture),
    };

    private static string Percent(double? value) => value?.ToString("P0", CultureInfo.InvariantCulture) ?? "-";

    private static string Times(double? value) => value?.ToString("0.00", CultureInfo.InvariantCulture) ?? "-";
}
