// Who wins among the sources of settings, and what each refuses.
using QcowFs.CommandLine;
using QcowFs.Commands;
using QcowFs.Images;
using QcowFs.Server;
using QcowFs.Settings;
using Xunit;

namespace QcowFs.Tests;

/// <summary>Variables belong to the process: these tests run one at a time, and no other class sets any.</summary>
public sealed class SettingsTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("qcowfs-settings-").FullName;
    private readonly List<string> _variables = [];

    private SettingSources Sources => new(_folder + "/system.json", _folder + "/user.json");

    public void Dispose()
    {
        foreach (string variable in _variables) Environment.SetEnvironmentVariable(variable, null);
        Directory.Delete(_folder, recursive: true);
    }

    /// <summary>Every combination of sources: the last of those that state a value wins. The value of a source is its number of threads.</summary>
    [Theory]
    [InlineData(false, false, false, false, 0)]
    [InlineData(true, false, false, false, 1)]
    [InlineData(false, true, false, false, 2)]
    [InlineData(true, true, false, false, 2)]
    [InlineData(false, false, true, false, 3)]
    [InlineData(true, false, true, false, 3)]
    [InlineData(false, true, true, false, 3)]
    [InlineData(true, true, true, false, 3)]
    [InlineData(false, false, false, true, 4)]
    [InlineData(true, false, false, true, 4)]
    [InlineData(false, true, false, true, 4)]
    [InlineData(true, true, false, true, 4)]
    [InlineData(false, false, true, true, 4)]
    [InlineData(true, false, true, true, 4)]
    [InlineData(false, true, true, true, 4)]
    [InlineData(true, true, true, true, 4)]
    public void Precedence(bool system, bool user, bool variable, bool line, int threads)
    {
        if (system) Write("system", """{ "threads": 1, "cache": "none" }""");
        if (user) Write("user", """{ "threads": 2 }""");
        if (variable) Set("QCOWFS_THREADS", "3");
        MountSettings settings = Mount(line ? ["--threads=4"] : []);
        Assert.Equal(threads, settings.ThreadCount);
        Assert.Equal(system, settings.Open.DirectIo);
    }

    [Fact]
    public void All_of_them_reach_their_place()
    {
        Write("system",
            """
            {
              // a comment, and a comma at the end
              "allow-references": "all", "allow-other": true, "uid": 7, "gid": "8", "mode": "0640", "cache_size": "64M",
              "cache": "none", "threads": 3, "transport": "device", "direct-io": "on", "reflink-view": true, "log": "/var/log/x",
            }
            """);
        MountSettings settings = Mount();
        Assert.Equal(ReferencePolicy.All, settings.Open.References);
        Assert.True(settings.OthersAllowed && settings.Open.DirectIo && settings.Tree.AlwaysDirect);
        Assert.Equal((7u, 8u, 0x1A0u), (settings.Tree.Uid, settings.Tree.Gid, settings.Tree.FileMode));
        Assert.Equal(64L << 20, settings.Open.CacheSize);
        Assert.Equal((3, Fuse.FuseTransport.Device), (settings.ThreadCount, settings.TransportChoice));
        Assert.True(settings.MakesViews);
        Assert.Equal("/var/log/x", settings.LogFile);
        // Every setting is in this file, but for those that are about deduplication alone.
        Assert.Equal(
            SettingSources.Known.Select(o => o.Name).Where(n => !n.StartsWith("dedup-", StringComparison.Ordinal)),
            SettingReader.Read(Sources).Select(s => s.Option.Name).Order(StringComparer.Ordinal));
    }

    [Fact]
    public void A_switch_can_be_taken_back_by_every_later_source()
    {
        Write("system", """{ "allow-other": true }""");
        Assert.True(Mount().OthersAllowed);
        Assert.False(Mount("--allow-other=false").OthersAllowed);
        Assert.False(Mount("-o", "allow_other=false").OthersAllowed);
        Write("user", """{ "allow-other": false }""");
        Assert.False(Mount().OthersAllowed);
        Assert.True(Mount("--allow-other").OthersAllowed);
        Assert.True(Mount("--allow-other=true").OthersAllowed);
        Set("QCOWFS_ALLOW_OTHER", "true");
        Assert.True(Mount().OthersAllowed);
    }

    [Fact]
    public void Other_commands_take_the_settings_that_they_have_options_for()
    {
        Write("system", """{ "allow-references": "none", "threads": 2 }""");
        ParsedLine line = LineParser.Parse(InfoCommand.Table, ["disk.qcow2"]);
        Sources.ApplyTo(line);
        Assert.Equal(ReferencePolicy.None, ImageOptions.ReferencesOf(line));
        Assert.False(line.Has(MountSettings.Threads));
    }

    [Theory]
    [InlineData("""{ "treads": 2 }""", ": treads: there is no such setting; see \"qcowfs config --help\"")]
    [InlineData("""{ "writable": true }""", ": writable: only the command line may state this; remove it from the file")]
    [InlineData("""{ "threads": "many" }""", ": threads: \"many\" is not a number from 1 to 256; see \"qcowfs mount --help\"")]
    [InlineData("""{ "threads": true }""", ": threads: \"True\" is not a number from 1 to 256; see \"qcowfs mount --help\"")]
    [InlineData("""{ "threads": { "most": 3 } }""", ": threads: is an object or a list, expected one value; see \"qcowfs config --help\"")]
    [InlineData("""{ "cache": ["none"] }""", ": cache: is an object or a list, expected one value; see \"qcowfs config --help\"")]
    [InlineData("""{ "cache": "some" }""", ": cache: \"some\" is not one of its values; use host, none")]
    [InlineData("""{ "cache": null }""", ": cache: has no value; state one, or leave it out")]
    [InlineData("""{ "cache-size": "4k" }""", ": cache-size: 4096 bytes are too few; give at least 1M")]
    [InlineData("""{ "cache-size": 4.5 }""", ": cache-size: \"4.5\" is not a size; give a number of bytes, or one with k, M, G or T")]
    [InlineData("""{ "mode": "0999" }""", ": mode: \"0999\" is not an octal mode up to 0777; give one such as 0640")]
    [InlineData("""{ "allow-other": "yes" }""", ": allow-other: \"yes\" is not true or false; write one of them")]
    [InlineData("""{ "log": "x.log" }""", ": log: \"x.log\" is not an absolute path; write it from the root on")]
    [InlineData("{\n \"threads\": 2\n \"cache\": 3 }", ": the settings cannot be read: line 3 is not JSON; correct the file")]
    [InlineData("", ": the settings cannot be read: line 1 is not JSON; correct the file")]
    [InlineData("[]", ": the settings cannot be read: Top-level JSON element must be an object. Instead, 'Array' was found; correct the file")]
    public void A_wrong_file_is_named_with_its_key(string content, string problem)
    {
        foreach (string name in new[] { "system", "user" })
        {
            Write(name, content);
            CommandFailure failure = Assert.Throws<CommandFailure>(() => Mount());
            Assert.Equal($"{_folder}/{name}.json{problem}", failure.Message);
            Assert.Equal(ExitCode.Failed, failure.ExitCode);
            // A later source does not excuse what an earlier one says.
            Assert.Throws<CommandFailure>(() => Mount("--threads=1", "--cache=none", "--cache-size=1M", "--mode=0600", "--log=x"));
            File.Delete($"{_folder}/{name}.json");
        }
    }

    [Fact]
    public void A_wrong_variable_is_named_and_a_foreign_one_is_not_ours()
    {
        Set("QCOWFS_SOMETHING_ELSE", "1");
        Assert.Equal(0, Mount().ThreadCount);
        Set("QCOWFS_CACHE_SIZE", "much");
        Assert.Equal(
            "QCOWFS_CACHE_SIZE: \"much\" is not a size; give a number of bytes, or one with k, M, G or T", Assert.Throws<CommandFailure>(() => Mount()).Message);
    }

    [Fact]
    public void Contradictions_between_sources_name_the_setting()
    {
        Write("user", """{ "direct-io": "off" }""");
        Assert.Equal(
            $"{_folder}/user.json: direct-io: off is not possible with --writable; leave it out: cached pages would go stale",
            Assert.Throws<CommandFailure>(() => Mount("-w")).Message);
        Assert.True(Mount("-w", "--direct-io=auto").IsWritable);
    }

    [Fact]
    public void Without_sources_nothing_is_loaded()
    {
        Assert.False(Sources.HasAny());
        Write("system", "{}");
        Assert.True(Sources.HasAny());
    }

    private MountSettings Mount(params string[] words)
    {
        ParsedLine line = LineParser.Parse(MountCommand.Table, [.. words, "disk.img", "/mnt"]);
        Sources.ApplyTo(line);
        return MountSettings.From(line);
    }

    private void Write(string name, string content) => File.WriteAllText($"{_folder}/{name}.json", content);

    private void Set(string variable, string value)
    {
        _variables.Add(variable);
        Environment.SetEnvironmentVariable(variable, value);
    }
}
