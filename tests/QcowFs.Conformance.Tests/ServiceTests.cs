// Servers under a service manager: readiness and end by sd_notify, and the unit that is installed.
using System.Diagnostics;
using System.Globalization;
using System.Net.Sockets;
using System.Text;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Conformance.Tests;

public sealed class ServiceTests
{
    [SkippableFact]
    public void The_manager_is_told_when_the_mount_answers_and_when_it_ends()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "64M");
        box.MakeDirectory("m");
        using Socket manager = new(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
        manager.Bind(new UnixDomainSocketEndPoint(box.Path + "/notify"));
        manager.ReceiveTimeout = (int)Wait.HangLimit.TotalMilliseconds;
        using Process server = box.Start("env", $"NOTIFY_SOCKET={box.Path}/notify", Sandbox.Program, "mount", "-w", "--foreground", image, "m");
        Assert.Equal($"READY=1\nSTATUS={box.Path}/{image} on {box.Path}/m", Receive(manager));
        // Ready means that the mount answers at once.
        box.Shell($"echo data | dd of=m/{image}.raw conv=notrunc status=none").Expect();
        using Process holder = box.Start("bash", "-c", $"exec 3<>m/{image}.raw; echo open; read wait; echo more >&3");
        Assert.Equal("open", holder.StandardOutput.ReadLine());
        box.Run("kill", server.Id.ToString(CultureInfo.InvariantCulture)).Expect();
        Assert.StartsWith("STOPPING=1\nSTATUS=committing", Receive(manager), StringComparison.Ordinal);
        Assert.False(server.HasExited);
        holder.StandardInput.WriteLine("go on");
        Assert.True(server.WaitForExit(Wait.HangLimit));
        Assert.Equal(0, server.ExitCode);
        box.Check(image);
        Assert.Contains("closed and durable", server.StandardOutput.ReadToEnd(), StringComparison.Ordinal);
    }

    [SkippableFact]
    public void A_server_in_the_background_leaves_the_callers_manager_alone()
    {
        using Sandbox box = new();
        string image = box.Make("qcow2", "1M");
        box.MakeDirectory("m");
        using Socket manager = new(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
        manager.Bind(new UnixDomainSocketEndPoint(box.Path + "/notify"));
        box.Run("env", $"NOTIFY_SOCKET={box.Path}/notify", Sandbox.Program, "mount", image, "m").Expect();
        box.QcowFs("umount", "m").Expect();
        Assert.Equal(0, manager.Available);
    }

    /// <summary>The unit as it is installed, judged by systemd's own check and run by hand as systemd would.</summary>
    [SkippableFact]
    public void The_unit_is_right()
    {
        using Sandbox box = new();
        string packaging = Sandbox.Packaging;
        string bin = Path.GetDirectoryName(Sandbox.Program)!;
        box.Shell($"mkdir units; sed 's|@bindir@|{bin}|g' {packaging}/qcowfs@.service > units/qcowfs@.service; cp units/qcowfs@.service units/qcowfs@disk.service").Expect();
        if (Tools.Find("systemd-analyze") is not null)
            Assert.Equal("", box.Shell("systemd-analyze verify --man=no units/qcowfs@disk.service 2>&1 | grep -F qcowfs@ || true").Expect());

        string image = box.Make("qcow2", "1M");
        box.MakeDirectory("m");
        File.WriteAllText(box.Path + "/disk", $"SOURCE={box.Path}/{image}\nMOUNTPOINT={box.Path}/m\nOPTIONS=--writable --cache=none\n");
        string start = File.ReadLines(box.Path + "/units/qcowfs@.service").First(l => l.StartsWith("ExecStart=", StringComparison.Ordinal))["ExecStart=".Length..];
        string stop = File.ReadLines(box.Path + "/units/qcowfs@.service").First(l => l.StartsWith("ExecStop=-", StringComparison.Ordinal))["ExecStop=-".Length..];
        using Socket manager = new(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
        manager.Bind(new UnixDomainSocketEndPoint(box.Path + "/notify"));
        manager.ReceiveTimeout = (int)Wait.HangLimit.TotalMilliseconds;
        using Process server = box.Start("env", $"NOTIFY_SOCKET={box.Path}/notify", "bash", "-c", $"eval $(sed 's/OPTIONS=\\(.*\\)/OPTIONS=\"\\1\"/' disk | paste -sd';'); exec {start}");
        Assert.StartsWith("READY=1\n", Receive(manager), StringComparison.Ordinal);
        box.Shell($"echo data | dd of=m/{image}.raw conv=notrunc,fsync status=none; MOUNTPOINT=$PWD/m; {stop}").Expect();
        Assert.True(server.WaitForExit(Wait.HangLimit));
        Assert.Equal(0, server.ExitCode);
        box.Check(image);
    }

    private static string Receive(Socket manager)
    {
        byte[] message = new byte[4096];
        return Encoding.UTF8.GetString(message, 0, manager.Receive(message));
    }
}
