// Broken images behind a real mount and under the commands: the server goes on serving, within its memory, and ends when it is told to;
// a command ends with one of its exit codes and at most one line on stderr. A failure names the seed, which gives the images again.
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class HostileMountTests
{
    // The contract's cap and the default metadata cache.
    private const long MemoryLimitMiB = 256 + 32;

    [SkippableFact]
    public void Broken_images_are_served()
    {
        using TempDirectory temp = new();
        IReadOnlyList<Specimen> specimens = Specimen.MakeAll(temp);
        int served = 0;
        foreach (ulong seed in Seeds.Between(1, 3))
        {
            using Sandbox box = new();
            box.MakeDirectory("m");
            foreach (string file in Damage(box, specimens, seed).Where((_, i) => (i + (int)(seed % 3)) % 3 == 0))
            {
                if (box.QcowFs("mount", "-w", file, "m").ExitCode != 0)
                    continue;
                Use(box, $"seed {seed}, {file}");
                served++;
            }
        }

        Assert.True(served > 4, $"only {served} broken images could be mounted");
    }

    /// <summary>One server for all of them, broken headers too: who is broken harms no other.</summary>
    [SkippableFact]
    public void A_directory_of_broken_images_is_served()
    {
        using TempDirectory temp = new();
        IReadOnlyList<Specimen> specimens = Specimen.MakeAll(temp);
        ulong seed = Seeds.Between(1, 1).Single();
        using Sandbox box = new();
        Damage(box, specimens, seed, headers: true);
        box.Run("qemu-img", "create", "-q", "-f", "qcow2", "images/sound.qcow2", "1M").Expect();
        box.MakeDirectory("m");
        box.QcowFs("mount", "-w", "images", "m").Expect();
        Use(box, $"seed {seed}");
        Qemu.CheckClean(box.Path + "/images/sound.qcow2");
    }

    // Every use of the disk may fail; what counts is that none hangs and that the server lives.
    private static void Use(Sandbox box, string where)
    {
        int server = Assert.Single(box.Servers());
        box.Shell(
            """
            for disk in m/*.raw; do
                timeout 60 dd if="$disk" of=/dev/null bs=256k count=8 2>/dev/null || true
                timeout 60 dd if=/dev/urandom of="$disk" bs=33333 count=5 seek=1 conv=notrunc,fsync 2>/dev/null || true
                timeout 60 fallocate -p -o 5000 -l 100000 "$disk" 2>/dev/null || true
            done
            for fact in m/.qcowfs/*/*; do timeout 60 cat "$fact" > /dev/null 2>&1 || true; done
            """).Expect();
        Assert.Equal(server, Assert.Single(box.Servers()));
        long peak = Sandbox.PeakKilobytes(server) >> 10;
        Assert.True(peak < MemoryLimitMiB, $"{where}: the server took {peak} MiB");
        Outcome end = box.QcowFs("umount", "m");
        Assert.True(end.ExitCode is 0 or 1, $"{where}: {end.Errors}");
        box.WaitForServersToEnd();
    }

    [SkippableFact]
    public void Commands_end_as_they_should()
    {
        using TempDirectory temp = new();
        IReadOnlyList<Specimen> specimens = Specimen.MakeAll(temp);
        ulong seed = Seeds.Between(1, 1).Single();
        using Sandbox box = new();
        foreach (string file in Damage(box, specimens, seed).Where((_, i) => i % 3 == 0))
        {
            Ends(box.QcowFs("info", file), 1);
            Ends(box.QcowFs("inspect", file), 1);
            Ends(box.QcowFs("map", file), 1);
            Ends(box.QcowFs("check", file), 3);
            Ends(box.QcowFs("check", "--repair", file), 3);
        }

        void Ends(Outcome outcome, int highest)
        {
            Assert.True(outcome.ExitCode >= 0 && outcome.ExitCode <= highest, $"seed {seed}: {outcome.Command} ended with {outcome.ExitCode}: {outcome.Errors}");
            Assert.True(outcome.Errors.Trim().Split('\n').Length == 1, $"seed {seed}: {outcome.Command}: {outcome.Errors}");
        }
    }

    private static List<string> Damage(Sandbox box, IReadOnlyList<Specimen> specimens, ulong seed, bool headers = false)
    {
        box.MakeDirectory("images");
        List<string> files = [];
        foreach (Specimen specimen in specimens)
        {
            files.Add($"images/{specimen.Name.Replace(' ', '-')}.qcow2");
            int number = unchecked((int)seed * 100);
            File.WriteAllBytes($"{box.Path}/{files[^1]}", headers ? specimen.Damage(number) : specimen.DamageBehindHeader(number));
        }

        return files;
    }
}
