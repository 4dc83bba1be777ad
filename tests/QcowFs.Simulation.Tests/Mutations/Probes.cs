// Short forms of the simulation's tests, for mutants: each passes on the real code and must fail on a mutant that names it.
using QcowFs.Simulation.Tests.Invariants;
using QcowFs.Simulation.Tests.Vhdx;

namespace QcowFs.Simulation.Tests.Mutations;

/// <summary>Static, without arguments, so that a copy of this assembly can be asked by name. A probe of several seeds begins with the one
/// that the hardest of its mutants is caught by: it ends there, and the others are tried only where that has changed.</summary>
public static class Probes
{
    public static void Crash()
    {
        foreach (Geometry geometry in new[]
        {
            new Geometry("cluster_size=512", 70_144),
            new Geometry("cluster_size=512", 70_144, InitialContent.Full),
            new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot),
        })
        {
            foreach (ulong seed in new ulong[] { 3, 1, 2, 4 })
                new CrashRun(geometry, seed).EveryInstant(steps: 10, choices: 24, log: null);
        }
    }

    public static void CrashOfNewCountBlocks()
    {
        foreach (ulong seed in new ulong[] { 5, 1, 2, 3, 4, 6 })
            new CrashRun(new Geometry("cluster_size=512,refcount_bits=64", 70_144), seed).EveryInstant(10, 24, log: null);
    }

    public static void CrashOfCompressed()
    {
        for (ulong seed = 1; seed <= 8; seed++)
            new CrashRun(new Geometry("cluster_size=4096", 16_384, InitialContent.Compressed), seed).EveryInstant(10, 24, log: null);
    }

    public static void CrashOfExternalData()
    {
        for (ulong seed = 100; seed < 103; seed++)
            new CrashRun(new Geometry("cluster_size=512", 70_144, InitialContent.ExternalData), seed).RandomInstants(150, 6, 12, log: null);
    }

    public static void Model()
    {
        ModelTests tests = new();
        tests.Agrees_with_bytes_and_with_qemu(new Geometry("cluster_size=4096", 1_000_448, InitialContent.Backing));
        tests.Agrees_with_bytes_and_with_qemu(new Geometry("cluster_size=4096", 1_000_448, InitialContent.Snapshot));
        tests.Agrees_with_bytes_and_with_qemu(new Geometry("cluster_size=16384,extended_l2=on", 1_000_448, InitialContent.Snapshot));
    }

    public static void Invariants()
    {
        foreach (Geometry geometry in new[]
        {
            new Geometry("cluster_size=512", 30_208),
            new Geometry("cluster_size=512", 40_448, InitialContent.Snapshot),
            new Geometry("cluster_size=512,refcount_bits=4", 40_448, InitialContent.Compressed),
        })
        {
            for (ulong seed = 1; seed <= 2; seed++)
            {
                using InvariantRun run = new(geometry, seed) { LosesFlags = seed == 2, CachePages = seed == 2 ? 16 : 2 };
                run.Run(1000);
            }
        }
    }

    public static void Errors() => new FaultTests().An_error_latches_the_image(new Geometry("cluster_size=512", 70_144));

    public static void FullHost() => new FaultTests().A_full_host_loses_nothing(new Geometry("cluster_size=512", 70_144));

    public static void Reader() => new ConcurrencyTests().A_block_is_not_reused_under_a_reader();

    public static void FreedBlock() => new ConcurrencyTests().A_block_is_not_free_before_it_is_punched();

    public static void LateSync() => new ConcurrencyTests().A_sync_does_not_share_a_commit_that_began_before_it();

    public static void EarlySync() => new ConcurrencyTests().A_sync_waits_for_the_commit_that_carries_its_data();

    public static void CommittedSector() => new CompressionTests().No_write_touches_a_sector_of_a_committed_stream();

    public static void StreamUnderWay() => new CompressionTests().A_commit_waits_for_a_stream_under_way();

    public static void GivenUpCluster() => new CompressionTests().A_cluster_that_is_given_up_takes_no_more_streams();

    public static void Ceiling() => new CompressionTests().Streams_share_a_host_cluster_up_to_the_ceiling_of_its_count(2, 22);

    public static void ModelOfCompressing() => new ModelTests().Agrees_with_bytes_and_with_qemu(new Geometry("cluster_size=4096", 1_000_448, InitialContent.Compressed, Compress: true));

    public static void FullHostOfCompressing() => new FaultTests().A_full_host_loses_nothing(new Geometry("cluster_size=2048", 100_352, Compress: true));

    public static void CrashOfBitmaps() => new BitmapTests().A_crash_leaves_no_bitmap_that_is_wrong("cluster_size=512", 70_144, 3, compress: false);

    public static void ExactBitmaps() => new BitmapTests().Exactly_what_was_touched_is_set(new Geometry("cluster_size=512", 70_144, InitialContent.Bitmaps));

    public static void SenselessBitmap() => new BitmapTests().Bitmaps_that_make_no_sense_become_inconsistent("table entry in the refcount table", 2);

    public static void FailedPunch() => new FaultTests().A_host_that_cannot_punch_fails_no_sync();

    public static void Undercounted() => new FaultTests().Closing_cuts_nothing_off_that_only_looks_free();

    public static void ShrunkUnderSnapshot() => new ResizeTests().Every_instant(new Geometry("cluster_size=512", 70_144, InitialContent.Snapshot), 40_448);

    public static void CrashOfResizedBitmaps() => new BitmapTests().A_crash_in_resizing_leaves_no_bitmap_that_is_wrong(70_144, 2_200_064);

    public static void MissingFlags() => new RecoveryTests().A_crash_in_it_leaves_leaks_and_missing_flags_at_worst("cluster_size=512", InitialContent.Snapshot);

    public static void VhdxCrash() => new VhdxCrashRun(VhdxKind.Dynamic, 1).EveryInstant(steps: 12, choices: 9, log: null);

    public static void VhdxCrashOfFull()
    {
        foreach (ulong seed in new ulong[] { 10, 7, 8, 9 })
            new VhdxCrashRun(VhdxKind.Full, seed).EveryInstant(steps: 14, choices: 9, log: null);
    }

    public static void VhdxCrashOfDifferencing() => new VhdxCrashRun(VhdxKind.Differencing, 3).EveryInstant(steps: 12, choices: 9, log: null);

    public static void VhdxRingRules() => new VhdxOrderTests().Every_entry_keeps_the_rings_rules();

    public static void VhdxPageOrder() => new VhdxOrderTests().Pages_of_bitmaps_are_logged_before_those_of_the_table();

    public static void VhdxReplayOrder() => new VhdxOrderTests().A_replay_syncs_and_renews_the_file_write_guid_before_anything_else();

    public static void VhdxReplacedPage() => new VhdxMapTests().A_lookup_believes_no_page_that_was_replaced_under_it();

    public static void VhdxChangedPage() => new VhdxMapTests().A_change_is_made_in_the_page_that_it_is_for();

    public static void VhdxEarlyEntry() => new VhdxMapTests().Bits_are_right_before_the_entry_makes_them_count();

    public static void VhdxBitmapPlace() => new VhdxMapTests().A_sector_bitmap_keeps_its_place_while_the_image_is_open();

    public static void VhdxCrumbs() => new VhdxMapTests().Free_runs_are_remembered_in_bounds();

    public static void VhdxGrownBack() => new VhdxResizeTests().What_grows_back_is_zero();

    public static void VhdxMovedTable() => new VhdxResizeTests().A_table_that_is_too_small_moves(isFirstDamaged: true);

    public static void VhdxShrunk() => new VhdxResizeTests().A_crash_leaves_the_old_disk_or_the_new_one(VhdxKind.Full, 512);

    public static void VhdxMended() => new VhdxRepairTests().A_dirty_image_is_replayed_and_its_entries_are_mended_through_the_log();

    public static void VhdxCopies() => new VhdxRepairTests().A_copy_is_written_beside_a_valid_one(0x30000);

    public static void VhdxSeparated() => new VhdxRepairTests().Blocks_that_share_a_place_get_one_of_their_own(VhdxRepairTests.Sharing.Several);

    public static void VhdxWorseDamage() => new VhdxRepairTests().Beside_worse_damage_nothing_is_moved(500UL << 20);

    public static void VhdxTail() => new VhdxLogTests().What_lies_before_the_tail_is_not_applied_again();

    public static void VhdxStaleBits() => new VhdxWriteTests().Stale_bits_of_an_absent_block_are_not_believed();

    public static void VhdxWriteGuids() => new VhdxWriteTests().Write_guids_are_new_before_the_first_change();

    public static void VhdxHeaderLoss() => new VhdxWriteTests().Either_header_may_be_lost(0x10000);

    public static void VhdxHeaderOrder() => new VhdxWriteTests().The_current_header_is_never_written();

    public static void VhdxHeaderEnd() => new VhdxWriteTests().Sequence_numbers_that_come_to_their_end_begin_anew();

    public static void VhdxFreeSpace() => new VhdxWriteTests().Space_left_by_a_crash_is_clean_when_it_is_taken();

    public static void VhdxCut() => new VhdxWriteTests().The_file_is_cut_after_the_log_is_closed();

    public static void VhdxReader() => new VhdxWriteTests().A_block_is_not_reused_under_a_reader();

    public static void VhdxSpaceReuse() => new VhdxWriteTests().Space_is_used_again_and_given_back();

    public static void VhdxOverlap() => new VhdxWriteTests().A_file_whose_blocks_overlap_is_only_read();

    public static void VhdxFullHost() => new VhdxFaultTests().A_full_host_loses_nothing(VhdxKind.Differencing);

    public static void VhdxLogTargets() => new VhdxLogTests().Changes_of_the_wrong_places_are_refused(0x100000, "the log itself");

    public static void VhdxLogRules()
    {
        VhdxLogTests tests = new();
        tests.Entries_of_an_earlier_log_do_not_count();
        tests.Every_part_of_an_entry_is_held_against_its_rule(4096, (byte)'x');
        tests.A_run_whose_tail_is_gone_does_not_count();
        tests.A_torn_entry_ends_the_run();
    }

    public static void VhdxLargeCommit() => new VhdxRingTests().A_commit_larger_than_the_ring_is_cut();

    public static void Autoclear() => new HeaderTests().Unknown_autoclear_bits_are_cleared_before_the_first_write();

    public static void AddCowCrash()
    {
        for (ulong seed = 1; seed <= 2; seed++)
        {
            new AddCowCrashRun(new AddCowCase(12, 70_001, 50_003), seed).EveryInstant(steps: 6, choices: 12, log: null);
            new AddCowCrashRun(new AddCowCase(12, 20_001, 15_003), seed) { Fills = true, Completes = true }.EveryInstant(steps: 4, choices: 16, log: null);
        }
    }

    public static void AddCowCrashInQcow2() =>
        new AddCowCrashRun(new AddCowCase(12, 70_144, 50_003, IsInQcow2: true), 1).EveryInstant(steps: 10, choices: 16, log: null);

    public static void AddCowModel()
    {
        foreach (AddCowCase image in new AddCowCase[] { new(12, 70_001, 50_003), new(12, 70_001, 200_000), new(9, 50_001, 30_001), new(12, 70_001, -1) })
            new AddCowTests(null!).Agrees_with_bytes(image);
    }

    public static void AddCowResize()
    {
        AddCowResizeTests tests = new();
        tests.Every_instant(new AddCowCase(12, 70_001, 200_000), 90_001);
        tests.Every_instant(new AddCowCase(12, 70_001, 71_000), 90_001);
        tests.Every_instant(new AddCowCase(12, 70_001, 70_001), 30_001);
        tests.A_complete_disk_stays_complete(0);
        tests.A_complete_disk_stays_complete(1);
    }

    public static void AddCowWriters() => new AddCowConcurrencyTests().Two_partial_writes_of_one_missing_cluster_both_stay();

    public static void AddCowDiscard() => new AddCowTests(null!).A_discard_makes_a_hole_and_syncs_it_before_the_bit();

    public static void CommitOfOverlay() => new OverlayCommitTests().Every_instant("cluster_size=512", "cluster_size=512", 20_480, 40_448);

    public static void CommitOfMovedExtension() => new OverlayCommitTests().Every_instant("cluster_size=4096 moved", "cluster_size=512", 40_448, 40_448);

    public static void CrashOfSharing()
    {
        for (ulong seed = 1; seed <= 6; seed++)
            new SharingRun(new Geometry("cluster_size=512", 70_144), seed).EveryInstant(steps: 14, choices: 24);
    }

    public static void FullHostOfSharing() => SharingCrashTests.A_commit_that_failed_takes_the_flags_later();

    public static void ModelOfSharing()
    {
        SharingModelTests tests = new();
        tests.Agrees_with_bytes_and_with_qemu_over_sessions(new Geometry("cluster_size=512", 300_032));
    }

    public static void LimitOfSharing() =>
        new SharingModelTests().A_cluster_is_shared_up_to_the_limit_and_then_overwritten_one_by_one(bits: 2, limit: 2);

    public static void RaceOfSharing() =>
        new SharingConcurrencyTests().An_owner_rewritten_during_the_comparison_is_not_shared_with_its_new_bytes();

    public static void StateOfIndex() => SharingIndexTests.Bits_of_another_state_are_not_believed();

    public static void PageOfIndex() => SharingIndexTests.A_torn_page_is_none();

    public static void JournalOverwrite() => new JournalModel(new Geometry("cluster_size=512", 1024), "").Crash("asa");

    public static void JournalHit() => new JournalModel(new Geometry("cluster_size=512", 1024), "", shares: true).Crash("xsyYs");

    public static void JournalEarlyCount() => new JournalProtocolTests().Counts_do_not_fall_before_their_record_is_durable();

    public static void JournalWriterUnderWay() => new JournalProtocolTests().A_commit_waits_for_a_writer_under_way();

    public static void JournalLargeWriterUnderWay() => new JournalProtocolTests().A_large_commit_waits_for_a_writer_under_way();

    public static void JournalKillInOrdered() => new JournalProtocolTests().A_kill_in_a_commit_too_large_for_a_record_replays_nothing_over_it();

    public static void JournalSpaceAhead() => new JournalAheadTests().Space_is_handed_out_when_its_zeros_are_written();

    public static void JournalOverwriteConfirmed() => new JournalModel(new Geometry("cluster_size=512", 1024), "").Crash("asas");

    public static void JournalNewBlock() => new JournalModel(new Geometry("cluster_size=1024", 2048, InitialContent.Backing), "").Crash("as");

    public static void JournalReuse() => new JournalModel(new Geometry("cluster_size=1024", 2048), "").Crash("absdssas");

    public static void JournalKill() => new JournalReplayTests().Everything_counts_after_a_kill();

    public static void JournalStale() => new JournalReplayTests().Stale_records_of_an_earlier_journal_are_none();

    public static void JournalRevoke() => new JournalReplayTests().A_revoked_block_that_holds_data_now_is_left_alone();

    public static void JournalReplayCrash() => new JournalReplayTests().A_replay_can_be_interrupted(killed: true);

    public static void HeaderEdits()
    {
        HeaderEditTests tests = new();
        tests.A_journals_extension_comes_and_goes_at_every_instant(new HeaderEditTests.Layout(1024, 300, HasNames: false));
        tests.A_journals_extension_comes_and_goes_at_every_instant(new HeaderEditTests.Layout(4096, 333, IsNamesLast: false));
    }

    public static void TailOfDamaged() => new RecoveryTests().The_tail_of_a_damaged_image_stays(isBroken: true);

    public static void TailOfUndercounted() => new RecoveryTests().The_tail_of_a_damaged_image_stays(isBroken: false);

    public static void JournalGap() => new JournalReplayTests().A_chain_that_ends_before_what_was_acknowledged_is_refused();

    public static void JournalLater() => new JournalCrashTests(null!).A_change_during_a_commit_stays_out_of_it();
}
