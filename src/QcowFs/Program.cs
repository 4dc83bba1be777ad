// Entry point of the program.
namespace QcowFs;

internal static class Program
{
    private static int Main() => 64;
}
