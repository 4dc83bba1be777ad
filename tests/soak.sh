#!/usr/bin/env bash
# soak.sh MINUTES [STEPS]: runs the simulations and the real mounts again and again, each round with seeds that no round before it had,
# until the time is over, and then the invariants' simulation alone until so many of its steps were judged; or until something fails.
# What failed is repeated with: QCOWFS_SEED_OFFSET=N tests/run-tests.sh Simulation Conformance Images
set -uo pipefail
minutes=${1:-60} wanted=${2:-100000000}
tests=$(dirname "$(readlink -f "$0")")
start=$(date +%s)
end=$((start + minutes * 60))

# Starts at the clock, so that tomorrow's soak is not today's again; the number is printed.
offset=$((start % 1000000 * 1000))
rounds=0 steps=0

# Steps of the invariants' simulation in a round. Each run is short and begins anew, so memory does not grow with their number.
export QCOWFS_INVARIANT_STEPS=${QCOWFS_INVARIANT_STEPS:-2000000}

# Broken images of each kind and use in a round.
export QCOWFS_FUZZ_ROUNDS=${QCOWFS_FUZZ_ROUNDS:-900}

# Turns that each kind of image takes with QEMU in a round.
export QCOWFS_TURNS=${QCOWFS_TURNS:-100}

fail() {
    printf 'soak: failed in round %d; repeat with QCOWFS_SEED_OFFSET=%d QCOWFS_INVARIANT_STEPS=%d\n' $((rounds + 1)) "$offset" "$QCOWFS_INVARIANT_STEPS" >&2
    exit 1
}

end_round() {
    rounds=$((rounds + 1)) offset=$((offset + 1000)) steps=$((steps + QCOWFS_INVARIANT_STEPS))
}

while [ "$(date +%s)" -lt "$end" ]; do
    QCOWFS_SEED_OFFSET=$offset "$tests/run-tests.sh" Simulation Conformance Images || fail
    end_round
done

# Optimised: a fifth of a millisecond of processor time a step, so 10^8 take two and a half hours of two idle cores. A round has fewer runs than a thousand, which is the distance between two rounds' seeds.
QCOWFS_INVARIANT_STEPS=10000000
while [ "$steps" -lt "$wanted" ]; do
    QCOWFS_CONFIGURATION=Release QCOWFS_SEED_OFFSET=$offset QCOWFS_TEST_FILTER=FullyQualifiedName~InvariantTests.Hold_after_every_step "$tests/run-tests.sh" Simulation || fail
    end_round
    printf 'soak: %d steps of the invariants judged in %d minutes\n' "$steps" $((($(date +%s) - start) / 60))
done
printf 'soak: %d rounds, %d steps of the invariants, in %d minutes, no failure\n' "$rounds" "$steps" $((($(date +%s) - start) / 60))
