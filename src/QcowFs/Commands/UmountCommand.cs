// qcowfs umount: returns only when every image is closed and durable (promise 6).
using System.Text.Json;
using QcowFs.CommandLine;
using QcowFs.Fuse;
using QcowFs.Native;
using QcowFs.Server;

namespace QcowFs.Commands;

/// <summary>Unmounts and prints the receipt.</summary>
internal static class UmountCommand
{
    private static readonly Option Lazy = new("lazy", "detach at once, then wait for the last close");

    private static readonly TimeSpan LeavingLimit = TimeSpan.FromSeconds(5);

    public static Command Table { get; } = new(
        "umount", "unmount, wait until all is on stable storage, and say what was done", ["MOUNTPOINT"], [Lazy, ImageOptions.Json], Run);

    private static int Run(ParsedLine line) => Run(line.Operands[0], line.Has(Lazy), line.Has(ImageOptions.Json));

    /// <summary>Unmounts what is mounted at a path and prints the receipt.</summary>
    public static int Run(string given, bool lazy, bool json)
    {
        MountEntry mount = OurMounts.At(given);
        Receipt receipt = Unmount(given, mount, lazy);
        if (json) Output.WriteJson(receipt.Write);
        else foreach (string text in receipt.Lines()) Console.Out.WriteLine(text);
        foreach (FileSystem.ImageReceipt image in receipt.Images)
        {
            if (image.Error is not null)
                throw new CommandFailure(Output.Safe(image.Name), $"not everything is on stable storage: {image.Error}", $"run \"qcowfs check\" on it");
        }
        return ExitCode.Done;
    }

    private static Receipt Unmount(string given, MountEntry mount, bool lazy)
    {
        // A close that has just returned may still be on its way through the kernel, and so may the end of a loop device: who holds
        // nothing in the end was not busy. The server takes a moment for each attempt but the first.
        long started = TimeProvider.System.GetTimestamp();
        for (bool again = false; ; again = true)
        {
            using JsonDocument? answer = ControlClient.Ask(
                mount,
                json =>
                {
                    json.WriteStartObject();
                    json.WriteString("command", "umount");
                    json.WriteBoolean("lazy", lazy);
                    json.WriteBoolean("again", again);
                    json.WriteEndObject();
                },
                isLast: static answer => answer.TryGetProperty("receipt", out _));
            if (answer is null) throw WithoutServer(given, mount);
            if (answer.RootElement.TryGetProperty("receipt", out JsonElement receipt)) return Receipt.Read(receipt);
            if (answer.RootElement.TryGetProperty("failure", out JsonElement failure)) throw new ServerFailure(failure.GetString()!);
            if (answer.RootElement.TryGetProperty("error", out JsonElement error))
                throw new CommandFailure(given, error.GetString()!, answer.RootElement.GetProperty("advice").GetString()!);
            List<Holder> holders = Holders.Find(mount);
            if (holders.TrueForAll(holder => holder.IsLeaving) && TimeProvider.System.GetElapsedTime(started) < LeavingLimit) continue;
            string who = holders.Count > 0 ? string.Join(", ", holders.Select(holder => holder.Name)) : "a process that you may not see";
            throw new CommandFailure(given, $"in use by {who}", "end that first, or give --lazy");
        }
    }

    /// <summary>No server listens. A dead one leaves a mount that answers ENOTCONN; that is taken away.</summary>
    private static CommandFailure WithoutServer(string given, MountEntry mount)
    {
        if (Libc.Status(mount.MountPoint, Libc.AT_STATX_FORCE_SYNC, out _) is not (Errno.ENOTCONN or Errno.ECONNABORTED))
        {
            return MountTable.FindTop(mount.MountPoint) == mount
                ? new CommandFailure(given, "the server cannot be reached over its control socket", "run \"fusermount3 -u\" as its user")
                : new CommandFailure(given, "it was unmounted by someone else", "see \"qcowfs list\"");
        }
        try
        {
            FuseMount.Unmount(mount.MountPoint, lazy: true);
        }
        catch (FuseMountException fault)
        {
            return new CommandFailure(given, $"its server had died, and {fault.Message}", fault.Advice);
        }
        ControlClient.RemoveStaleSocket(mount);
        return new CommandFailure(given, "its server had died; the stale mount is removed", $"run \"qcowfs check {mount.Source}\"");
    }
}
