// Medians and spreads of a few rounds.
namespace QcowFs.Benchmarks;

internal static class Statistics
{
    /// <summary>The middle value, the mean of the middle two, or null where there is none.</summary>
    public static double? Median(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        return sorted.Length switch
        {
            0 => null,
            _ when sorted.Length % 2 == 1 => sorted[sorted.Length / 2],
            _ => (sorted[(sorted.Length / 2) - 1] + sorted[sorted.Length / 2]) / 2,
        };
    }

    /// <summary>(max - min) / median.</summary>
    public static double Spread(IReadOnlyCollection<double> values) => Median(values) is { } median and > 0 ? (values.Max() - values.Min()) / median : 0;

    /// <summary>The median of the rounds' ratios. Rounds are paired: the ratio of one round is not disturbed by what the machine did in
    /// another. Null where one of the two has no value.</summary>
    public static double? Ratio(IReadOnlyDictionary<string, List<double>> values, string above, string below) =>
        values.TryGetValue(above, out List<double>? dividends) && values.TryGetValue(below, out List<double>? divisors)
            ? Median(dividends.Zip(divisors, (dividend, divisor) => dividend / divisor))
            : null;
}
