// What IStorage promises, tried on every implementation: whatever is done, it reads like an array of bytes.
using System.Globalization;
using FsCheck;
using FsCheck.Fluent;
using QcowFs.Native;
using QcowFs.Testing;
using Xunit;

namespace QcowFs.Storage.Tests;

public sealed class StorageContractTests
{
    private const int Size = 40_000;

    public static TheoryData<StorageKind> AllKinds => StorageFixture.AllKinds;

    public enum Action
    {
        Read,
        Write,
        Zero,
        Discard,
        Reserve,
        SetLength,
    }

    public readonly record struct Step(Action Action, int Offset, int Length);

    [SkippableTheory]
    [MemberData(nameof(AllKinds))]
    public void Behaves_like_an_array_of_bytes(StorageKind kind)
    {
        using var fixture = new StorageFixture(kind, Size);
        int rounds = kind is StorageKind.Memory or StorageKind.Simulated ? 200 : 40;
        Arbitrary<Step[]> steps = Arb.ToArbitrary(
            (from action in Gen.Elements(Enum.GetValues<Action>())
             from offset in Gen.OneOf(Gen.Choose(0, Size), Gen.Choose(0, Size / 512).Select(sector => sector * 512), Gen.Choose(0, 9).Select(page => page * 4096))
             from length in Gen.OneOf(Gen.Choose(0, 20_000), Gen.Choose(0, 30), Gen.Constant(512), Gen.Constant(4096))
             select new Step(action, offset, length)).ArrayOf());
        Check.One(
            Config.QuickThrowOnFailure.WithMaxTest(rounds).WithEndSize(30).WithReplay(1, 3),
            Prop.ForAll(steps, run => Run(fixture, run)));
    }

    private static void Run(StorageFixture fixture, Step[] steps)
    {
        IStorage storage = fixture.Storage;
        // Block devices have a length of their own; the others begin at the same odd one.
        if (!fixture.HasFixedLength)
        {
            storage.SetLength(0);
            storage.SetLength(Size);
        }
        storage.Discard(0, storage.Length);
        byte[] model = new byte[2 * Size];
        int length = (int)storage.Length;
        ulong seed = 0;
        foreach (Step step in steps)
        {
            seed++;
            int end = step.Offset + step.Length;
            if (fixture.HasFixedLength && (end > length || step.Action == Action.SetLength))
                continue;
            switch (step.Action)
            {
                case Action.Read:
                    byte[] back = new byte[step.Length];
                    back.AsSpan().Fill(0xcc);
                    storage.Read(step.Offset, back);
                    Assert.True(back.AsSpan().SequenceEqual(model.AsSpan(step.Offset, step.Length)), $"read {step}");
                    break;
                case Action.Write:
                    Pattern.Fill(model.AsSpan(step.Offset, step.Length), seed, step.Offset);
                    storage.Write(step.Offset, model.AsSpan(step.Offset, step.Length));
                    length = step.Length == 0 ? length : Math.Max(length, end);
                    break;
                case Action.Zero:
                    model.AsSpan(step.Offset, step.Length).Clear();
                    storage.WriteZeroes(step.Offset, step.Length);
                    length = step.Length == 0 ? length : Math.Max(length, end);
                    break;
                case Action.Discard:
                    model.AsSpan(step.Offset, Math.Max(0, Math.Min(end, length) - step.Offset)).Clear();
                    storage.Discard(step.Offset, step.Length);
                    break;
                case Action.Reserve:
                    storage.Reserve(step.Offset, step.Length);
                    bool extends = step.Length > 0 && fixture.Kind != StorageKind.Ramfs;
                    length = extends ? Math.Max(length, end) : length;
                    break;
                case Action.SetLength:
                    model.AsSpan(step.Offset).Clear();
                    storage.SetLength(step.Offset);
                    length = step.Offset;
                    break;
                default:
                    throw new InvalidOperationException(step.Action.ToString());
            }
            Assert.Equal(length, storage.Length);
        }
        byte[] all = new byte[2 * Size];
        all.AsSpan().Fill(0xcc);
        storage.Read(0, all);
        int difference = all.AsSpan().CommonPrefixLength(model);
        Assert.True(difference == all.Length, string.Create(CultureInfo.InvariantCulture, $"byte {difference} differs"));
        if (storage is FileStorage file)
            Assert.Equal(length, file.QueryFacts().Length);
        storage.Sync();
    }

    [SkippableTheory]
    [MemberData(nameof(AllKinds))]
    public void Large_ranges_of_zeros_and_discards_are_exact_at_both_ends(StorageKind kind)
    {
        const int Large = 1 << 20;
        using var fixture = new StorageFixture(kind, Large);
        byte[] model = Pattern.Bytes(1, 0, Large);
        byte[] back = new byte[Large];
        foreach ((int offset, int length) in new[] { (1000, 300_001), (4096, 262_144), (511, 600_000), (0, Large), (Large - 70_001, 70_001) })
        {
            foreach (bool discard in new[] { false, true })
            {
                Pattern.Fill(model, 1, 0);
                fixture.Storage.Write(0, model);
                model.AsSpan(offset, length).Clear();
                if (discard)
                    fixture.Storage.Discard(offset, length);
                else
                    fixture.Storage.WriteZeroes(offset, length);
                fixture.Storage.Read(0, back);
                Assert.Equal(Large, back.AsSpan().CommonPrefixLength(model));
            }
        }
        Assert.Equal(Large, fixture.Storage.Length);
    }

    [SkippableTheory]
    [MemberData(nameof(AllKinds))]
    public void Threads_that_write_neighbouring_bytes_lose_none(StorageKind kind)
    {
        // Pieces of odd sizes, so that every block holds several threads' bytes; each thread writes its own again and again.
        const int Length = 64 << 10;
        const int Piece = 777;
        const int Threads = 6;
        using var fixture = new StorageFixture(kind, Length);
        byte[] model = Pattern.Bytes(5, 0, Length);
        using var failures = new ThreadFailures();
        for (int number = 0; number < Threads; number++)
        {
            int mine = number;
            failures.Start(() =>
            {
                for (int round = 0; round < 4; round++)
                {
                    for (int piece = mine; piece * Piece < Length; piece += Threads)
                    {
                        int at = piece * Piece;
                        ReadOnlySpan<byte> bytes = model.AsSpan(at, Math.Min(Piece, Length - at));
                        fixture.Storage.Write(at, round < 3 ? Pattern.Bytes((ulong)round, at, bytes.Length) : bytes);
                    }
                }
            });
        }
        failures.Join();
        byte[] back = new byte[Length];
        fixture.Storage.Read(0, back);
        Assert.Equal(Length, back.AsSpan().CommonPrefixLength(model));
    }

    [SkippableTheory]
    [MemberData(nameof(AllKinds))]
    public void Whole_block_survives_a_neighbour_that_changes_part_of_it(StorageKind kind)
    {
        // The bytes that both write may be either's. The others are the whole-block writer's alone.
        using var fixture = new StorageFixture(kind, 8192);
        using var block = new AlignedBuffer(4096);
        using var before = new AlignedBuffer(4096);
        block.Span.Fill(1);
        before.Span.Fill(3);
        byte[] part = new byte[100];
        part.AsSpan().Fill(2);
        byte[] back = new byte[4096];
        using var barrier = new Barrier(2);
        using var failures = new ThreadFailures();
        const int Rounds = 300;
        failures.Start(() =>
        {
            for (int round = 0; round < Rounds; round++)
            {
                fixture.Storage.Write(4096, before.Span);
                barrier.SignalAndWait();
                if (round % 3 == 0)
                    fixture.Storage.Discard(4096, 4096);
                else
                    fixture.Storage.Write(4096, block.Span);
                barrier.SignalAndWait();
                byte expected = (byte)(round % 3 == 0 ? 0 : 1);
                fixture.Storage.Read(4096, back);
                Assert.Equal(-1, back.AsSpan(0, 300).IndexOfAnyExcept(expected));
                Assert.Equal(-1, back.AsSpan(400).IndexOfAnyExcept(expected));
            }
        });
        failures.Start(() =>
        {
            for (int round = 0; round < Rounds; round++)
            {
                barrier.SignalAndWait();
                fixture.Storage.Write(4096 + 300, part);
                barrier.SignalAndWait();
            }
        });
        failures.Join();
    }

    [SkippableTheory]
    [MemberData(nameof(AllKinds))]
    public void Threads_that_extend_the_end_lose_nothing(StorageKind kind)
    {
        // The hard case of direct I/O: an odd end is cut to length while others write beyond it.
        using var fixture = new StorageFixture(kind, 0);
        if (fixture.HasFixedLength)
            return;
        const int Threads = 4;
        const int Pieces = 60;
        const int Piece = 5000;
        using var failures = new ThreadFailures();
        int next = 0;
        for (int number = 0; number < Threads; number++)
        {
            failures.Start(() =>
            {
                for (int piece = Interlocked.Increment(ref next) - 1; piece < Pieces; piece = Interlocked.Increment(ref next) - 1)
                    fixture.Storage.Write((long)piece * Piece, Pattern.Bytes(9, (long)piece * Piece, Piece));
            });
        }
        failures.Join();
        Assert.Equal(Pieces * Piece, fixture.Storage.Length);
        byte[] back = new byte[Pieces * Piece];
        fixture.Storage.Read(0, back);
        Assert.Equal(back.Length, back.AsSpan().CommonPrefixLength(Pattern.Bytes(9, 0, back.Length)));
        if (fixture.Storage is FileStorage file)
            Assert.Equal(Pieces * Piece, file.QueryFacts().Length);
    }

    [SkippableTheory]
    [MemberData(nameof(AllKinds))]
    public void Bad_ranges_are_bugs_of_the_caller(StorageKind kind)
    {
        using var fixture = new StorageFixture(kind, 4096);
        Assert.Throws<ArgumentOutOfRangeException>(() => fixture.Storage.Read(-1, new byte[1]));
        Assert.Throws<ArgumentOutOfRangeException>(() => fixture.Storage.Write(-1, [1]));
        Assert.Throws<ArgumentOutOfRangeException>(() => fixture.Storage.Discard(0, -1));
        Assert.Throws<ArgumentOutOfRangeException>(() => fixture.Storage.WriteZeroes(-5, 1));
        Assert.Throws<ArgumentOutOfRangeException>(() => fixture.Storage.Reserve(5, -1));
        Assert.Throws<ArgumentOutOfRangeException>(() => fixture.Storage.SetLength(-1));
    }
}
