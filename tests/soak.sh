#!/usr/bin/env bash
# soak.sh MINUTES: runs the simulations and the real mounts again and again, each round with seeds that no round before it had, until
# the time is over or something fails. What failed is repeated with: QCOWFS_SEED_OFFSET=N tests/run-tests.sh Simulation Conformance Images
set -uo pipefail
minutes=${1:-60}
tests=$(dirname "$(readlink -f "$0")")
end=$(($(date +%s) + minutes * 60))

# Starts at the clock, so that tomorrow's soak is not today's again; the number is printed.
offset=$(($(date +%s) % 1000000 * 1000))
rounds=0

# Steps of the invariants' simulation in a round, about a quarter of a millisecond each: a day's soak makes hundreds of millions.
export QCOWFS_INVARIANT_STEPS=${QCOWFS_INVARIANT_STEPS:-2000000}

# Broken images of each kind and use in a round.
export QCOWFS_FUZZ_ROUNDS=${QCOWFS_FUZZ_ROUNDS:-900}

# Turns that each kind of image takes with QEMU in a round.
export QCOWFS_TURNS=${QCOWFS_TURNS:-100}
while [ "$(date +%s)" -lt "$end" ]; do
    QCOWFS_SEED_OFFSET=$offset "$tests/run-tests.sh" Simulation Conformance Images || {
        printf 'soak: failed in round %d; repeat with QCOWFS_SEED_OFFSET=%d\n' $((rounds + 1)) "$offset" >&2
        exit 1
    }
    rounds=$((rounds + 1)) offset=$((offset + 1000))
done
printf 'soak: %d rounds in %d minutes, no failure\n' "$rounds" "$minutes"
