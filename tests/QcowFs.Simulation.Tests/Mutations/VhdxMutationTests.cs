// Proof that the VHDX tests can fail: for each invariant a defect, planted in the real sources, that a test catches.
using Xunit;
using Xunit.Abstractions;

namespace QcowFs.Simulation.Tests.Mutations;

public sealed class VhdxMutationTests(ITestOutputHelper output)
{
    private const string Commit = "Vhdx/VhdxCommit.cs";
    private const string Writer = "Vhdx/VhdxLogWriter.cs";
    private const string Reader = "Vhdx/VhdxLogReader.cs";
    private const string Replay = "Vhdx/VhdxReplay.cs";
    private const string Headers = "Vhdx/VhdxHeaders.cs";
    private const string Change = "Vhdx/VhdxBlockMap.Change.cs";
    private const string Space = "Vhdx/VhdxSpace.cs";
    private const string Resize = "Vhdx/VhdxResize.cs";
    private const string Repair = "Vhdx/VhdxRepair.cs";

    private static readonly Mutation[] Commits =
    [
        new Mutation(
            "VHDX I1 an entry is written before its data is synced",
            Commit,
            "if (dataDirty || state.HasGrown)\n                SyncData(); // I1",
            "",
            nameof(Probes.VhdxCrash)),
        new Mutation(
            "VHDX I3 a block is reused before its removal is durable",
            Change,
            "_state.Remove(entry.Offset, _geometry.BlockSize); // M5",
            "{ _file.Discard(entry.Offset, _geometry.BlockSize); _state.Space!.Free(entry.Offset, _geometry.BlockSize); }",
            nameof(Probes.VhdxCrashOfFull)),
        new Mutation(
            "VHDX I6 a block is punched under a reader",
            Commit,
            "state.Epoch.Synchronize(); // I6",
            "",
            nameof(Probes.VhdxReader)),
        new Mutation(
            "VHDX I7 pages that could not be put home are forgotten",
            Commit,
            "            _owed = content;\n            WriteHome();",
            "            _owed = content;\n            try\n            {\n                WriteHome();\n            }\n            catch (QcowFs.Storage.StorageException)\n            {\n                _owed = [];\n            }",
            nameof(Probes.VhdxFullHost)),
        new Mutation(
            "VHDX I9 the headers name a log without an entry",
            Commit,
            "        log.Append([]);\n",
            "",
            nameof(Probes.VhdxCrash)),
        new Mutation(
            "VHDX C2 the data write GUID stays",
            Commit,
            ", DataWriteGuid = keepsData ? header.DataWriteGuid : dataWritten }",
            " }",
            nameof(Probes.VhdxWriteGuids)),
        new Mutation(
            "VHDX C3 the file is cut while its log is in use",
            Commit,
            "            state.Layout.Headers.Change(state.File, header => header with { LogGuid = Guid.Empty });\n            _log = null;\n",
            "            state.File.SetLength(System.Math.Min(state.File.Length, state.Space!.UsedEnd()));\n            state.Layout.Headers.Change(state.File, header => header with { LogGuid = Guid.Empty });\n            _log = null;\n",
            nameof(Probes.VhdxCut)),
        new Mutation(
            "VHDX M5 an unmapped block is never given up",
            Change,
            "_state.Remove(entry.Offset, _geometry.BlockSize); // M5",
            "entry.ToString();",
            nameof(Probes.VhdxSpaceReuse)),
        new Mutation(
            "VHDX M3 a block becomes partially present with the bits of an earlier use",
            Change,
            "            if (!reservation.InPlace)\n                ChangeBits(pins, start, start, start + _blockMask + 1, value: false);\n",
            "",
            nameof(Probes.VhdxStaleBits)),
        new Mutation(
            "VHDX A1 space that a crash left is believed to be zero",
            Space,
            "        if (!run.IsClean)\n            _file.Discard(run.Start << UnitBits, units << UnitBits);\n",
            "",
            nameof(Probes.VhdxFreeSpace)),
        new Mutation(
            "VHDX A2 blocks that overlap are written",
            "Vhdx/UsedSpace.cs",
            "isNew &= (_bits[unit >> 6] & bit) == 0;",
            "",
            nameof(Probes.VhdxOverlap)),
        new Mutation(
            "VHDX A3 a sector bitmap is freed while the log may hold pages for it",
            Change,
            "        SetEntry(table, block, new BatEntry(BlockState.Zero, 0));\n",
            "        SetEntry(table, block, new BatEntry(BlockState.Zero, 0));\n        if (_geometry.HasParent && BitmapBlock(block) is { } bitmap)\n            _state.Remove(bitmap, VhdxLimits.BitmapBlockSize);\n",
            nameof(Probes.VhdxBitmapPlace)),
        new Mutation(
            "VHDX A4 every free run is remembered",
            Space,
            "        if (_byStart.Count >= MaxRuns)\n            return;\n",
            "",
            nameof(Probes.VhdxCrumbs)),
        new Mutation(
            "VHDX M1 a lookup believes a page that changed under it",
            "Vhdx/VhdxBlockMap.cs",
            "                if (page.Sequence == sequence)\n                {\n                    if (scan.Problem",
            "                if (page.Sequence >= 0)\n                {\n                    if (scan.Problem",
            nameof(Probes.VhdxReplacedPage)),
        new Mutation(
            "VHDX M2 a change is made in a page that is not pinned",
            Change,
            "MetadataPage table = pins.Add(pageOffset);",
            "MetadataPage table = _cache.Get(pageOffset);",
            nameof(Probes.VhdxChangedPage)),
        new Mutation(
            "VHDX M4 an entry counts before its bits are right",
            Change,
            "            // M3, M4\n",
            "            SetEntry(table, block, new BatEntry(BlockState.PartiallyPresent, host));\n            _ = _file.Length;\n",
            nameof(Probes.VhdxEarlyEntry)),
        new Mutation(
            "VHDX C1 pages of the table are logged before those of bitmaps",
            Commit,
            "IsTablePage(page) ? 1 : 0",
            "IsTablePage(page) ? 0 : 1",
            nameof(Probes.VhdxPageOrder)),
        new Mutation(
            "VHDX Z1 a grown disk shows what was behind its end",
            Resize,
            "            ClearTail(edit, file, old);\n",
            "            edit.ToString();\n",
            nameof(Probes.VhdxGrownBack)),
        new Mutation(
            "VHDX Z2 the table's new place is named before it is durable",
            Resize,
            "        file.Sync();\n        byte[] table",
            "        byte[] table",
            nameof(Probes.VhdxMovedTable)),
        new Mutation(
            "VHDX Z3 blocks are unmapped before the smaller size is durable",
            Resize,
            "        SetSize(edit, geometry.VirtualSize);\n        BatGeometry old = edit.Layout.Geometry;\n        for (long index = geometry.EntryCount; index < old.EntryCount; index++)\n        {",
            "        BatGeometry old = edit.Layout.Geometry;\n        for (long index = geometry.EntryCount; index <= old.EntryCount; index++)\n        {\n            if (index == old.EntryCount)\n            {\n                edit.Commit();\n                SetSize(edit, geometry.VirtualSize);\n                return;\n            }\n",
            nameof(Probes.VhdxShrunk)),
        new Mutation(
            "VHDX F1 a repair does not replay",
            Repair,
            "string? replayed = VhdxReplay.Run(file, guids); // F1",
            "string? replayed = null;",
            nameof(Probes.VhdxMended)),
        new Mutation(
            "VHDX F2 the valid copy is overwritten",
            Repair,
            "        file.Read(layout.Regions.TableOffset, table);\n",
            "        file.Write(layout.Regions.TableOffset, table);\n        file.Sync();\n        file.Read(layout.Regions.TableOffset, table);\n",
            nameof(Probes.VhdxCopies)),
        new Mutation(
            "VHDX F3 an entry is mended in its place",
            Repair,
            "            edit.Write(edit.Layout.Regions.Bat.Offset + mend.Index * BatEntry.Size, bytes);",
            "            file.Write(edit.Layout.Regions.Bat.Offset + mend.Index * BatEntry.Size, bytes);",
            nameof(Probes.VhdxMended)),
        new Mutation(
            "VHDX F4 a block loses its bytes with its place",
            Repair,
            "            if (chunk.AsSpan().ContainsAnyExcept((byte)0))\n                file.Write(host + done, chunk);\n",
            "",
            nameof(Probes.VhdxSeparated)),
        new Mutation(
            "VHDX F4 blocks are moved beside worse damage",
            Repair,
            "bool isTrusted = found.CheckErrors == 0 && found.Corruptions == found.HarmlessCorruptions + shared; // F4",
            "bool isTrusted = true;",
            nameof(Probes.VhdxWorseDamage)),
        new Mutation(
            "VHDX F5 a repair of a parent breaks its children",
            Repair,
            "keepsData: true",
            "keepsData: false",
            nameof(Probes.VhdxSeparated)),
    ];

    private static readonly Mutation[] Log =
    [
        new Mutation(
            "VHDX W1 an entry is acknowledged before its sync",
            Writer,
            "            _state.SyncFile();\n        }\n        finally",
            "        }\n        finally",
            nameof(Probes.VhdxCrash)),
        new Mutation(
            "VHDX W2 the ring is overwritten from the tail on",
            Writer,
            "if (_used + length + Sector > _ring.Length) // W2, W4",
            "_used = System.Math.Min(_used, Sector);\n        if (_used + length + Sector > _ring.Length) // W2, W4",
            nameof(Probes.VhdxRingRules)),
        new Mutation(
            "VHDX W3 the tail moves past entries whose pages are not home",
            Writer,
            "long tail = _homePending ? _tail : _head; // W3",
            "long tail = _head;",
            nameof(Probes.VhdxRingRules)),
        new Mutation(
            "VHDX W4 a full ring is emptied without a sync",
            Writer,
            "            if (_homePending)\n                Sync(homeComplete: true);\n",
            "            _homePending = false;\n",
            nameof(Probes.VhdxRingRules)),
        new Mutation(
            "VHDX W5 numbers do not rise by one",
            Writer,
            "        _sequence++; // W5\n",
            "        _sequence += _sequence % 3 == 1 ? 1UL : 2UL;\n",
            nameof(Probes.VhdxRingRules)),
        new Mutation(
            "VHDX W5 two entries have one number",
            Writer,
            "        _sequence++; // W5\n",
            "        _sequence += _sequence % 4 == 3 ? 0UL : 1UL;\n",
            nameof(Probes.VhdxRingRules)),
        new Mutation(
            "VHDX P1 an entry is replayed that could still vanish",
            Replay,
            "        file.Sync(); // P1\n",
            "",
            nameof(Probes.VhdxReplayOrder)),
        new Mutation(
            "VHDX P2 a replay keeps the file write GUID",
            Replay,
            "        layout.Headers.Change(file, header => header with { FileWriteGuid = guids.Next() }); // P2\n",
            "",
            nameof(Probes.VhdxReplayOrder)),
        new Mutation(
            "VHDX P4 a replayed log stays in use",
            Replay,
            "        layout.Headers.Change(file, header => header with { LogGuid = Guid.Empty }); // P4\n",
            "",
            nameof(Probes.VhdxTail)),
        new Mutation(
            "VHDX P3 a log is closed before what it says is durable",
            Replay,
            "        file.Sync(); // P3\n",
            "",
            nameof(Probes.VhdxCrashOfDifferencing)),
        new Mutation(
            "VHDX H1 the current header is overwritten",
            Headers,
            "        file.Write(OtherOffset, _bytes);\n        file.Sync();\n        _currentOffset = OtherOffset;\n",
            "        file.Write(_currentOffset, _bytes);\n        file.Sync();\n",
            nameof(Probes.VhdxHeaderOrder)),
        new Mutation(
            "VHDX H2 only one header holds a change",
            Headers,
            "        WriteOther(file, changed with { Sequence = sequence + 2 });\n",
            "",
            nameof(Probes.VhdxHeaderLoss)),
        new Mutation(
            "VHDX H3 sequence numbers overflow",
            Headers,
            "        if (sequence >= ulong.MaxValue - 1)\n            sequence = 0;\n",
            "",
            nameof(Probes.VhdxHeaderEnd)),
        new Mutation(
            "VHDX R1 an entry of an earlier log counts",
            Reader,
            " || header.LogGuid != _guid",
            "",
            nameof(Probes.VhdxLogRules)),
        new Mutation(
            "VHDX R1 the checksum of an entry is not asked",
            Reader,
            " && crc.Value == header.Checksum",
            "",
            nameof(Probes.VhdxLogRules)),
        new Mutation(
            "VHDX R2 a run without its tail counts",
            Reader,
            "run.Exists(entry => entry.Position == run[^1].Header.Tail)",
            "run.Count > 0",
            nameof(Probes.VhdxLogRules)),
        new Mutation(
            "VHDX R3 entries before the tail are applied again",
            Reader,
            "for (int i = first; i < run.Count; i++) // R3",
            "for (int i = 0; i < run.Count; i++)",
            nameof(Probes.VhdxTail)),
        new Mutation(
            "VHDX R5 the log may change itself",
            Reader,
            "operation.Start < _offset + _length && _offset < operation.End",
            "operation.Start < 0",
            nameof(Probes.VhdxLogTargets)),
    ];

    public static TheoryData<Mutation> Mutations => [.. Commits, .. Log];

    [Theory]
    [MemberData(nameof(Mutations))]
    public void Is_caught(Mutation mutation) => Mutant.MustBeCaught(mutation, output);
}
