// Settings as the program reads them from its real places.
using System.Text.Json;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class ConfigTests : IDisposable
{
    // What is mounted there is the sandbox's own, but the place itself has to exist on the machine.
    private const string SystemSettings = "/etc/qcowfs";

    private readonly bool _wasThere = Directory.Exists(SystemSettings);

    public void Dispose()
    {
        if (!_wasThere && Directory.Exists(SystemSettings)) Directory.Delete(SystemSettings);
    }

    [SkippableFact]
    public void Config_says_what_counts_and_where_it_comes_from()
    {
        using Sandbox box = new();
        box.Shell("mkdir -p etc/qcowfs home/.config/qcowfs xdg/qcowfs; mkdir -p /etc/qcowfs; mount --bind etc/qcowfs /etc/qcowfs").Expect();
        (string Name, string Value, string Source)[] all = [.. Read([], ["HOME=home"])];
        Assert.All(all, s => Assert.Equal("default", s.Source));
        Assert.Contains(("cache-size", "32M", "default"), all);
        box.Shell("""
            echo '{ "cache": "none", "threads": 2, "cache-size": "16M" }' > /etc/qcowfs/qcowfs.json
            echo '{ "threads": 3, "cache-size": "17M" }' > home/.config/qcowfs/qcowfs.json
            """).Expect();
        string home = $"HOME={box.Path}/home";
        Assert.Equal(
            $"cache none /etc/qcowfs/qcowfs.json,cache-size 17M {box.Path}/home/.config/qcowfs/qcowfs.json,"
            + $"threads 9 command line,uid 5 QCOWFS_UID",
            Stated("--threads=9", home, "QCOWFS_UID=5"));
        // $XDG_CONFIG_HOME takes the place of ~/.config.
        Assert.Equal(
            "cache none /etc/qcowfs/qcowfs.json,cache-size 16M /etc/qcowfs/qcowfs.json,threads 2 /etc/qcowfs/qcowfs.json",
            Stated("--cache=none", home, $"XDG_CONFIG_HOME={box.Path}/xdg").Replace("cache none command line", "cache none /etc/qcowfs/qcowfs.json", StringComparison.Ordinal));
        Assert.Contains("cache-size        17M ", box.Run("env", home, Sandbox.Program, "config").Expect(), StringComparison.Ordinal);

        box.Shell("echo '{ \"cashe\": 1 }' > xdg/qcowfs/qcowfs.json").Expect();
        string image = box.Make("qcow2", "1M");
        Assert.Equal(
            $"qcowfs: {box.Path}/xdg/qcowfs/qcowfs.json: cashe: there is no such setting; see \"qcowfs config --help\"",
            box.Run("env", $"XDG_CONFIG_HOME={box.Path}/xdg", Sandbox.Program, "info", image).ExpectError());

        string Stated(string option, params string[] environment) =>
            string.Join(',', Read([option], environment).Where(s => s.Source != "default").Select(s => $"{s.Name} {s.Value} {s.Source}"));
        IEnumerable<(string Name, string Value, string Source)> Read(string[] options, string[] environment)
        {
            using JsonDocument json = JsonDocument.Parse(box.Run("env", [.. environment, Sandbox.Program, "config", "--json", .. options]).Expect());
            return [.. json.RootElement.GetProperty("settings").EnumerateArray().Select(s =>
                (s.GetProperty("name").GetString()!, s.GetProperty("value").GetString()!, s.GetProperty("source").GetString()!))];
        }
    }

    [SkippableFact]
    public void A_mount_takes_its_settings_and_the_command_line_wins()
    {
        using Sandbox box = new();
        box.Shell("mkdir -p etc/qcowfs m; mkdir -p /etc/qcowfs; mount --bind etc/qcowfs /etc/qcowfs; echo '{ \"mode\": \"0640\", \"log\": \"'$PWD'/our.log\" }' > etc/qcowfs/qcowfs.json").Expect();
        string image = box.Make("qcow2", "1M");
        string raw = box.MountReadOnly(image);
        Assert.Equal("440", box.Run("stat", "-c", "%a", raw).Expect());
        box.QcowFs("umount", "m").Expect();
        Assert.Contains("mounted", File.ReadAllText(box.Path + "/our.log"), StringComparison.Ordinal);
        box.MountReadOnly(image, "--mode=0444");
        Assert.Equal("444", box.Run("stat", "-c", "%a", raw).Expect());
        box.QcowFs("umount", "m").Expect();
        File.WriteAllText(box.Path + "/etc/qcowfs/qcowfs.json", "{");
        Assert.StartsWith("qcowfs: /etc/qcowfs/qcowfs.json: the settings cannot be read: ", box.QcowFs("mount", image, "m").ExpectError(), StringComparison.Ordinal);
        box.QcowFs("umount", "m").ExpectError(); // nothing was mounted
    }

    /// <summary>Loading the library takes longer than all else that a start does.</summary>
    [SkippableFact]
    public void Without_settings_the_library_is_not_loaded()
    {
        using Sandbox box = new();
        box.Shell("mkdir -p etc m; mkdir -p /etc/qcowfs; mount --bind etc /etc/qcowfs").Expect();
        string image = box.Make("qcow2", "1M");
        foreach ((string settings, bool loads) in new[] { ("", false), ("QCOWFS_THREADS=2", true) })
        {
            box.Shell($"env HOME={box.Path} {settings} $QCOWFS mount {image} m").Expect();
            string maps = File.ReadAllText($"/proc/{Assert.Single(box.Servers())}/maps");
            Assert.Equal(loads, maps.Contains("Microsoft.Extensions.Configuration", StringComparison.Ordinal));
            box.QcowFs("umount", "m").Expect();
            box.WaitForServersToEnd();
        }
    }

    /// <summary>The example documents every setting and is right as it stands.</summary>
    [SkippableFact]
    public void The_example_is_valid_and_complete()
    {
        using Sandbox box = new();
        string example = Sandbox.Packaging + "/qcowfs.json";
        box.Shell($"mkdir -p etc/qcowfs; mkdir -p /etc/qcowfs; mount --bind etc/qcowfs /etc/qcowfs; cp {example} etc/qcowfs/qcowfs.json").Expect();
        using JsonDocument json = JsonDocument.Parse(box.QcowFs("config", "--json").Expect());
        string text = File.ReadAllText(example);
        foreach (JsonElement setting in json.RootElement.GetProperty("settings").EnumerateArray())
        {
            Assert.Equal("default", setting.GetProperty("source").GetString()); // all of it is commented out
            Assert.Contains($"\"{setting.GetProperty("name").GetString()}\":", text, StringComparison.Ordinal);
        }
        box.Shell("sed -i 's|^  // \"|  \"|' etc/qcowfs/qcowfs.json").Expect();
        Assert.DoesNotContain("default", box.QcowFs("config").Expect(), StringComparison.Ordinal);
    }
}
