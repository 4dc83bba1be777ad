// Mounts a memory file, or a plain file, for the tests and for measuring what the library itself costs.
// Lines on standard input: "stats" answers one line of JSON, "collect" collects garbage first, "lazy" and "unmount" unmount,
// "expect-waits" tells the session that handlers are going to wait, "invalidate" drops the disk's cached pages. End of input unmounts lazily, so that a test that dies leaves nothing mounted.
using System.Globalization;
using System.Text.Json;
using QcowFs.Fuse;
using QcowFs.Fuse.TestServer;
using QcowFs.Native;

string Option(string name, string otherwise)
{
    int index = Array.IndexOf(args, "--" + name);
    return index >= 0 ? args[index + 1] : otherwise;
}

int Number(string name, int otherwise) => int.Parse(Option(name, otherwise.ToString(CultureInfo.InvariantCulture)), CultureInfo.InvariantCulture);

string mountPoint = args[0];
string? backing = Option("backing", "") is { Length: > 0 } path ? path : null;
long size = backing is null ? (long)Number("size-kib", 65536) * 1024 : new FileInfo(backing).Length;
using var fileSystem = new MemoryFileSystem(new(
    size, Number("files", 0), backing, File.Exists(mountPoint), args.Contains("--cached"), Number("rendezvous", 0), Libc.GetUserId())
{
    Passthrough = Number("passthrough", 0),
    DelayMs = Number("delay-ms", 0),
});
var sessionOptions = new FuseSessionOptions
{
    Threads = Number("threads", 0),
    MaxThreads = Number("max-threads", 16),
    MaxPayload = Number("payload", 1 << 20),
    CloneDevice = !args.Contains("--shared"),
    Transport = Enum.Parse<FuseTransport>(Option("transport", nameof(FuseTransport.Device))),
    RingPayloadCut = Number("ring-cut", 0),
    TransportRefused = reason => Console.Error.WriteLine("no io_uring: " + reason),
    Report = fault =>
    {
        Interlocked.Increment(ref fileSystem.Statistics.Faults);
        Console.Error.WriteLine($"{fault.Opcode} of node {fault.Node}: {fault.Message}");
    },
};
var mountOptions = new FuseMountOptions
{
    MountPoint = mountPoint,
    Source = Option("source", "/memory"),
    Subtype = "qcowfs",
    AllowOther = args.Contains("--allow-other"),
    ReadOnly = args.Contains("--read-only"),
    NoExec = args.Contains("--noexec"),
    NoAccessTime = args.Contains("--noatime"),
};

FuseMount mount;
try
{
    mount = FuseMount.Create(mountOptions);
}
catch (FuseMountException exception)
{
    Console.WriteLine($"failed {exception.Failure} {exception.Errno} {exception.Path}: {exception.Message}; {exception.Advice}");
    return 1;
}

using var session = new FuseSession(fileSystem, mount.TakeDevice(), sessionOptions);
FuseConnection connection = session.Start();
Console.WriteLine($"ready direct={mount.IsDirect} {connection}");
new Thread(Obey) { IsBackground = true }.Start();
FuseSessionEnd end = session.WaitForEnd();
Console.WriteLine($"ended {end} {Describe()}");
return 0;

string Describe()
{
    var serializer = new JsonSerializerOptions { IncludeFields = true };
    var facts = JsonSerializer.SerializeToNode(fileSystem.Statistics, serializer)!.AsObject();
    facts["Allocated"] = GC.GetTotalAllocatedBytes(precise: true);
    facts["Threads"] = session.ThreadCount;
    facts["Transport"] = session.Transport.ToString();
    facts["Devices"] = session.DeviceCount;
    Span<FuseRequestInFlight> inFlight = new FuseRequestInFlight[64];
    int count = session.CopyRequestsInFlight(inFlight);
    facts["InFlight"] = count;
    facts["Passthrough"] = fileSystem.Passthrough;
    facts["InFlightOpcode"] = count > 0 ? inFlight[0].Opcode.ToString() : "";
    return facts.ToJsonString();
}

void Obey()
{
    while (Console.ReadLine() is { } line)
    {
        try
        {
            switch (line)
            {
                case "stats": Console.WriteLine(Describe()); break;
                case "unmount": mount.Unmount(lazy: false); break;
                case "lazy": mount.Unmount(lazy: true); Console.WriteLine("detached"); break;
                case "invalidate": Console.WriteLine(session.InvalidateInode(MemoryFileSystem.Disk, 0, 0)); break;
                case "expect-waits": session.ExpectWaits(true); Console.WriteLine("expected"); break;
                case "expire": Console.WriteLine(session.InvalidateEntry(IFuseFileSystem.RootNode, "disk"u8)); break;
                default: Console.WriteLine("unknown command"); break;
            }
        }
        catch (FuseMountException exception)
        {
            Console.WriteLine($"failed {exception.Failure} {exception.Errno} {exception.Path}: {exception.Message}; {exception.Advice}");
        }
    }
    if (session.HasEnded) return;
    try
    {
        mount.Unmount(lazy: true);
    }
    catch (FuseMountException exception)
    {
        Console.Error.WriteLine(exception.Message);
    }
}
