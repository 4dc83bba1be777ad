// One image that QcowFs and QEMU change in turns, and a model of what it must hold.
using System.Globalization;
using System.Text.Json;
using QcowFs.Images;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

/// <summary>A kind of image for the matrix.</summary>
/// <param name="Options">qemu-img's creation options; `@data` stands for the path of the data file.</param>
/// <param name="Size">Virtual size in bytes.</param>
/// <param name="Chain">Formats of the images below, the lowest first; each is a little larger than the one below it.</param>
/// <param name="Snapshots">Whether snapshots are made, applied and deleted between the operations.</param>
/// <param name="Compress">Whether both write compressed clusters.</param>
public sealed record TurnsCase(string Options, long Size, string Chain = "", bool Snapshots = false, bool Compress = false)
{
    public override string ToString() => $"{Options} {Size}{(Chain.Length > 0 ? $" over {Chain}" : "")}{(Snapshots ? " snapshots" : "")}{(Compress ? " compressed" : "")}";
}

/// <summary>The image, its model, and both programs. Every judgement is QEMU's and ours.</summary>
internal sealed class QemuTurns
{
    private const int OperationsInTurn = 14;

    private readonly TempDirectory _temp;
    private readonly TurnsCase _case;
    private readonly Random _random;
    private readonly byte[] _model;
    private readonly string _image;
    private readonly string _raw;
    private readonly string? _data;
    private readonly Dictionary<string, byte[]> _snapshots = [];
    private readonly ImageOpener _opener = new(HostFileSystem.Instance);
    private readonly List<(int Offset, int Length)> _discards = [];
    private int _names;

    public QemuTurns(TempDirectory temp, TurnsCase turns, ulong seed)
    {
        _temp = temp;
        _case = turns;
        _random = new Random(unchecked((int)seed));
        _model = new byte[turns.Size];
        _image = temp["image.qcow2"];
        _raw = temp["model.raw"];
        _data = turns.Options.Contains("@data", StringComparison.Ordinal) ? temp["image.data"] : null;
        Create();
    }

    private int ClusterSize { get; set; }

    /// <summary>Takes turns, judging after each.</summary>
    public void Run(int turns)
    {
        Judge();
        for (int turn = 0; turn < turns; turn++)
        {
            bool ours = turn % 2 == 0;
            if (ours)
                OurTurn();
            else
                TheirTurn();
            try
            {
                AdoptDiscards();
                Judge();
                if (_case.Snapshots)
                    EditSnapshots(ours);
            }
            catch (Exception exception)
            {
                throw new InvalidOperationException($"turn {turn}, {(ours ? "ours" : "QEMU's")}: {exception.Message}", exception);
            }
        }
    }

    private void Create()
    {
        List<string> arguments = ["create", "-q", "-f", "qcow2", "-o", _case.Options.Replace("@data", _data, StringComparison.Ordinal)];
        if (_case.Chain.Length > 0)
            arguments.AddRange(["-b", CreateChain(out string format), "-F", format]);
        Qemu.Img([.. arguments, _image, _case.Size.ToString(CultureInfo.InvariantCulture)]);
        ClusterSize = Qemu.Info(_image).GetProperty("cluster-size").GetInt32();
    }

    private string CreateChain(out string format)
    {
        string below = "";
        format = "";
        string[] formats = _case.Chain.Split('>');
        for (int i = 0; i < formats.Length; i++)
        {
            string name = $"below{i}.{formats[i]}";
            long size = _case.Size * (i + 1) / (formats.Length + 1) / 512 * 512;
            Qemu.Img(["create", "-q", "-f", formats[i], .. below.Length == 0 ? Array.Empty<string>() : ["-b", below, "-F", format],
                _temp[name], size.ToString(CultureInfo.InvariantCulture)]);
            (below, format) = (name, formats[i]);
            List<string> commands = [];
            for (int j = 0; j < 5; j++)
            {
                int length = _random.Next(1, (int)Math.Min(size / 3, 300_000));
                int offset = _random.Next(0, (int)size - length);
                byte fill = (byte)(_random.Next(3) == 0 ? 0 : _random.Next(256));
                commands.Add($"write -P {fill} {offset} {length}");
                _model.AsSpan(offset, length).Fill(fill);
            }

            Qemu.Io(formats[i], _temp[name], [.. commands]);
        }

        return below;
    }

    private void OurTurn()
    {
        using IDiskImage image = _opener.Open(_image, new OpenOptions { Writable = true, CommitInterval = TimeSpan.Zero, Compress = _case.Compress });
        byte[] read = new byte[Math.Min(_model.Length, 2_000_000)];
        for (int i = 0; i < OperationsInTurn; i++)
        {
            (int offset, int length) = Range(read.Length);
            Span<byte> model = _model.AsSpan(offset, length);
            switch (_random.Next(9))
            {
                case <= 3:
                    Fill(model);
                    image.Write(offset, model);
                    break;
                case 4:
                    model.Clear();
                    image.WriteZeroes(offset, length);
                    break;
                case 5:
                    model.Clear();
                    image.Discard(offset, length);
                    break;
                case 6:
                    image.Reserve(offset, length);
                    break;
                case 7:
                    image.Sync();
                    break;
                default:
                    image.Read(offset, read.AsSpan(0, length));
                    Assert.True(model.SequenceEqual(read.AsSpan(0, length)), $"we read something else at byte {offset}");
                    break;
            }
        }

        image.Close();
    }

    private void Fill(Span<byte> bytes)
    {
        if (!_case.Compress)
        {
            _random.NextBytes(bytes);
            return;
        }

        for (int i = 0; i < bytes.Length; i += 100)
            bytes[i..Math.Min(i + 100, bytes.Length)].Fill((byte)_random.Next(256));
    }

    // One process for the whole turn. A read whose pattern does not match fails it.
    private void TheirTurn()
    {
        List<string> commands = [];

        // What QEMU makes of a discard is its own choice, but for the bytes that are written afterwards.
        for (int i = _random.Next(3); i > 0; i--)
        {
            (int offset, int length) = Range(2_000_000);
            commands.Add($"discard {offset} {length}");
            _discards.Add((offset, length));
        }

        if (_case.Compress)
            commands.Add(CompressedWrite());
        for (int i = 0; i < OperationsInTurn; i++)
        {
            (int offset, int length) = Range(2_000_000);
            byte fill = (byte)_random.Next(256);
            switch (_random.Next(9))
            {
                case <= 3:
                    commands.Add($"write -P {fill} {offset} {length}");
                    _model.AsSpan(offset, length).Fill(fill);
                    break;
                case 4:
                    commands.Add($"write -z {(_random.Next(2) == 0 ? "-u " : "")}{offset} {length}");
                    _model.AsSpan(offset, length).Clear();
                    break;
                case 5:
                    commands.Add("flush");
                    break;
                default:
                    length = _model.AsSpan(offset, length).IndexOfAnyExcept(_model[offset]) is var same and > 0 ? same : length;
                    if (!_model.AsSpan(offset, length).ContainsAnyExcept(_model[offset]) && _discards.Count == 0)
                        commands.Add($"read -P {_model[offset]} {offset} {length}");
                    break;
            }
        }

        Qemu.Io("qcow2", _image, [.. commands]);
    }

    // QEMU compresses only what has no place yet. 
    private string CompressedWrite()
    {
        using IDiskImage image = _opener.Open(_image, new OpenOptions());
        int clusters = _model.Length / ClusterSize;
        int first = _random.Next(clusters);
        for (int i = 0; i < clusters; i++)
        {
            int offset = (first + i) % clusters * ClusterSize;
            Extent extent = image.QueryExtent(offset, ClusterSize);
            bool discarded = _discards.Exists(d => d.Offset < offset + ClusterSize && d.Offset + d.Length > offset);
            if (extent.Kind != ExtentKind.Backing || extent.Length < ClusterSize || discarded || _model.AsSpan(offset, ClusterSize).ContainsAnyExcept((byte)0))
                continue;
            _model.AsSpan(offset, ClusterSize).Fill(77);
            return $"write -c -P 77 {offset} {ClusterSize}";
        }

        return "flush";
    }

    private (int Offset, int Length) Range(int most)
    {
        int limit = Math.Min(most, _model.Length);
        int length = _random.Next(4) switch
        {
            0 => _random.Next(1, 3000),
            1 => Math.Min(limit - 1, ClusterSize * _random.Next(1, 4)),
            2 => _random.Next(1, Math.Min(limit, ClusterSize * 6)),
            _ => _random.Next(1, Math.Max(2, limit / 4)),
        };
        int offset = _random.Next(0, _model.Length - length);
        return _random.Next(3) switch
        {
            0 => (offset, length),
            1 => (offset & -512, Math.Max(512, length & -512)),
            _ => (Math.Min(offset & -ClusterSize, _model.Length - length), length),
        };
    }

    // A discarded range reads as before or as zeros, byte by byte; and both of us must agree which.
    private void AdoptDiscards()
    {
        if (_discards.Count == 0)
            return;
        using IDiskImage image = _opener.Open(_image, new OpenOptions());
        foreach ((int offset, int length) in _discards)
        {
            byte[] read = new byte[length];
            image.Read(offset, read);
            for (int i = 0; i < length; i++)
                Assert.True(read[i] == _model[offset + i] || read[i] == 0, $"byte {offset + i} is {read[i]} after a discard");
            read.CopyTo(_model, offset);
        }

        _discards.Clear();
    }

    private void Judge()
    {
        using (IDiskImage image = _opener.Open(_image, new OpenOptions()))
        {
            byte[] read = new byte[_model.Length];
            image.Read(0, read);
            int same = read.AsSpan().CommonPrefixLength(_model);
            Assert.True(same == _model.Length, $"we read something else at byte {same}: {image.QueryExtent(same, 1)}");
            CompareMap(image);
        }

        File.WriteAllBytes(_raw, _model);
        Qemu.CheckClean(_image);
        CheckReport report = _opener.Check(_image);
        Assert.True(report.ExitCode == 0, string.Join("; ", report.Findings.Select(finding => finding.Message)));
        Qemu.Img("compare", "-q", "-f", "qcow2", "-F", "raw", _image, _raw);
        if (_case.Options.Contains("data_file_raw=on", StringComparison.Ordinal))
            Assert.True(File.ReadAllBytes(_data!).AsSpan().StartsWith(_model), "the raw data file differs from the disk");
    }

    // Where QEMU says data, and where in which file, we say the same; where it says zeros we say zeros or nothing.
    private void CompareMap(IDiskImage image)
    {
        using JsonDocument map = JsonDocument.Parse(Qemu.Img("map", "-f", "qcow2", "--output=json", _image));
        foreach (JsonElement theirs in map.RootElement.EnumerateArray())
        {
            long start = theirs.GetProperty("start").GetInt64();
            long end = start + theirs.GetProperty("length").GetInt64();
            bool isData = theirs.GetProperty("data").GetBoolean();
            long? host = theirs.TryGetProperty("offset", out JsonElement offset) ? offset.GetInt64() : null;
            for (long at = start; at < end;)
            {
                Extent ours = image.QueryExtent(at, end - at);
                string what = $"at {at} QEMU says {theirs}, we {ours}";
                bool raw = _case.Chain.StartsWith("raw", StringComparison.Ordinal) && theirs.GetProperty("depth").GetInt32() == _case.Chain.Split('>').Length;
                if (isData)
                {
                    Assert.True(ours.Kind is ExtentKind.Data or ExtentKind.Compressed, what);
                    Assert.True(ours.Depth == theirs.GetProperty("depth").GetInt32(), what);
                    Assert.True(ours.Kind == ExtentKind.Compressed ? host is null : host + (at - start) == ours.Host, what);
                }
                else
                {
                    // A raw file below has holes that are the host's affair.
                    Assert.True(ours.Kind is ExtentKind.Zero or ExtentKind.Backing || raw, what);
                }

                at += ours.Length;
            }
        }
    }

    // One of us edits, both read what came of it.
    private void EditSnapshots(bool ours)
    {
        string[] names = [.. _snapshots.Keys.Order(StringComparer.Ordinal)];
        // To apply a snapshot, QEMU counts its clusters once more before it counts the others less.
        int most = _case.Options.Contains("refcount_bits=2", StringComparison.Ordinal) ? 1 : 2;
        string name = names.Length < most ? $"s{_names++}" : names[_random.Next(names.Length)];
        string action = names.Length < most ? "-c" : _random.Next(2) == 0 ? "-a" : "-d";
        if (ours)
            Qemu.Img("snapshot", action, name, _image);
        else
            new ImageEditor(HostFileSystem.Instance, TimeProvider.System).EditSnapshot(_image, "qcow2", ActionOf(action), name);
        switch (action)
        {
            case "-c":
                _snapshots.Add(name, [.. _model]);
                break;
            case "-a":
                _snapshots[name].CopyTo(_model, 0);
                break;
            default:
                _snapshots.Remove(name);
                break;
        }

        Judge();
        foreach ((string kept, byte[] content) in _snapshots)
        {
            string raw = _temp["snapshot.raw"];
            Qemu.Img("convert", "-f", "qcow2", "-O", "raw", "-l", $"snapshot.name={kept}", _image, raw);
            Assert.True(File.ReadAllBytes(raw).AsSpan().SequenceEqual(content), $"snapshot {kept} changed");
        }
    }

    private static SnapshotAction ActionOf(string option) => option switch
    {
        "-c" => SnapshotAction.Create,
        "-a" => SnapshotAction.Apply,
        _ => SnapshotAction.Delete,
    };
}
