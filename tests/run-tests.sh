#!/usr/bin/env bash
# run-tests.sh [NAME...]: builds and runs every test project (or those whose name contains a NAME), one after the other,
# and ends with the sum of their real counts. Exits with 1 if a test failed, a project crashed, hung or reported nothing,
# anything was left behind, or, in CI, a test was skipped. What failed, and why, is said once more at the very end: the last
# lines of a run are enough to know.
#
# All temporary files of the run are kept in one directory, and all its processes carry one variable: so what is left
# behind at the end is found exactly, named, and cleaned up, whatever else this machine is doing.
set -uo pipefail

root=$(dirname "$(dirname "$(readlink -f "$0")")")
dotnet=${DOTNET:-dotnet}
results=${QCOWFS_TEST_RESULTS:-$root/build/test-results}
hang_limit=${QCOWFS_HANG_LIMIT:-20m}    # one test without an end
project_limit=${QCOWFS_PROJECT_LIMIT:-90m}
configuration=${QCOWFS_CONFIGURATION:-Debug}

export QCOWFS_PROGRAM=$root/build/qcowfs
export MSBUILDDISABLENODEREUSE=1 DOTNET_CLI_USE_MSBUILD_SERVER=0 DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1

passed=0 failed=0 skipped=0
troubles=()

trouble() {
    troubles+=("$1")
    printf 'run-tests: %s\n' "$1" >&2
}

# Processes of this run other than this script and what it is made of.
leftover_processes() {
    local directory pid
    for directory in /proc/[0-9]*; do
        pid=${directory#/proc/}
        [ "$pid" = "$$" ] || [ "$pid" = "$BASHPID" ] && continue
        [ "$(awk '/^PPid:/ { print $2 }' "$directory/status" 2>/dev/null)" = "$$" ] && continue
        tr '\0' '\n' 2>/dev/null <"$directory/environ" | grep -qx "QCOWFS_TEST_RUN=$QCOWFS_TEST_RUN" || continue
        printf '%s %s\n' "$pid" "$(tr '\0' ' ' <"$directory/cmdline" 2>/dev/null)"
    done
}

leftover_mounts() {
    awk -v base="$TMPDIR" 'index($5, base) == 1 { print $5 }' /proc/self/mountinfo | tac
}

# Devices over files of the run, and new ones over files that can no longer be found: their mount has gone before them.
leftover_loops() {
    local name file
    losetup -n -l -O NAME,BACK-FILE 2>/dev/null | while read -r name file; do
        case $file in
            "$TMPDIR"/*) echo "$name" ;;
            *) [ -e "${file% (deleted)}" ] || grep -qxF "$name" <<<"$loops_before" || echo "$name" ;;
        esac
    done
}

# What the .NET runtime and the test platform themselves keep there is not the tests' doing: pipes, and for each test host
# two empty directories with six random characters.
leftover_files() {
    find "$TMPDIR" -mindepth 1 -maxdepth 1 ! -name 'clr-debug-pipe-*' ! -name 'dotnet-diagnostic-*' ! -name '.dotnet' \
        ! -name 'CoreFxPipe_*' ! \( -type d -empty -name '??????' \) -printf '%f\n'
}

# Order matters: a loop device holds a mount, a mount holds a process.
find_and_clean_leftovers() {
    local line
    for line in $(leftover_loops); do
        trouble "loop device left behind: $line"
        losetup -d "$line"
    done
    while read -r line; do
        [ -n "$line" ] || continue
        trouble "mount left behind: $line"
        umount -l "$line" 2>/dev/null || fusermount3 -u -z "$line"
    done < <(leftover_mounts)
    while read -r line; do
        [ -n "$line" ] || continue
        trouble "process left behind: $line"
        kill -9 "${line%% *}" 2>/dev/null
    done < <(leftover_processes)
    while read -r line; do
        [ -n "$line" ] || continue
        trouble "temporary file left behind: $TMPDIR/$line"
    done < <(leftover_files)
    rm -rf --one-file-system "$TMPDIR"
}

# The counters of one result file; a test that was not executed was skipped.
counter() {
    grep -o '<Counters [^>]*>' "$1" | grep -o " $2=\"[0-9]*\"" | grep -o '[0-9]*'
}

# The failed tests of a result file: for each its name with the line of the test, and the start of its message.
failures() {
    awk '
    function attribute(line, name) {
        return match(line, " " name "=\"[^\"]*\"") ? substr(line, RSTART + length(name) + 3, RLENGTH - length(name) - 4) : ""
    }
    function plain(text) {
        gsub(/&#x[DdAa];/, " ", text); gsub(/&lt;/, "<", text); gsub(/&gt;/, ">", text)
        gsub(/&quot;/, "\"", text); gsub(/&apos;|&#39;/, "\047", text); gsub(/&amp;/, "\\&", text)
        sub(/[ \t]+$/, "", text)
        return length(text) > 300 ? substr(text, 1, 297) "..." : text
    }
    function flush() {
        if (name == "") return
        printf "FAILED %s%s\n", plain(name), place == "" ? "" : " (" place ")"
        for (i = 1; i <= lines; i++) printf "    %s\n", plain(message[i])
        name = place = ""
        lines = inside = 0
    }
    /<UnitTestResult / {
        flush()
        if (attribute($0, "outcome") == "Failed") name = attribute($0, "testName")
    }
    /<\/Results>/ { flush() }
    name == "" { next }
    /<Message>/ { inside = 1; sub(/.*<Message>/, "") }
    inside {
        line = $0
        if (sub(/<\/Message>.*/, "", line)) inside = 0
        sub(/^[ \t]+/, "", line); sub(/[ \t\r]+$/, "", line)
        if (line != "" && lines < 3) message[++lines] = line
    }
    match($0, / in [^:]*Tests\/[^:]*\.cs:line [0-9]+/) {
        place = substr($0, RSTART, RLENGTH)
        sub(/.*\//, "", place); sub(/:line /, ":", place)
    }' "$1"
}

# The same of all projects, and the tests that a crash or a hang ended; bounded: the last lines of a log have to hold it.
list_failures() {
    local file
    {
        for file in "$results"/*.trx; do
            [ -s "$file" ] && failures "$file"
        done
        find "$results" -name 'Sequence_*.xml' -exec grep -ho '<Test [^>]*Completed="False"[^>]*>' {} + 2>/dev/null |
            sed 's/.* DisplayName="\([^"]*\)".*/UNFINISHED \1/'
    } | awk 'NR <= 60; END { if (NR > 60) printf "... and %d lines more: see build/test-results\n", NR - 60 }'
}

run_project() {
    local project=$1 name file status total executed ok bad
    name=$(basename "$project" .csproj)
    file=$results/$name.trx
    printf '\n== %s\n' "$name"
    timeout --kill-after=30s "$project_limit" "$dotnet" test "$project" --no-build -c "$configuration" --results-directory "$results" \
        --logger "trx;LogFileName=$name.trx" --logger 'console;verbosity=minimal' \
        --blame-hang --blame-hang-timeout "$hang_limit" --blame-hang-dump-type none \
        ${QCOWFS_TEST_FILTER:+--filter "$QCOWFS_TEST_FILTER"} </dev/null
    status=$?

    if [ ! -s "$file" ] || ! total=$(counter "$file" total) || [ "$total" -eq 0 ]; then
        trouble "$name: no result (exit code $status)"
        failed=$((failed + 1))
        return
    fi
    executed=$(counter "$file" executed) ok=$(counter "$file" passed) bad=$((executed - ok))
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + total - executed))
    if [ "$bad" -gt 0 ]; then
        trouble "$name: $bad failed"
    elif [ "$status" -ne 0 ]; then
        trouble "$name: crashed or hung (exit code $status)"
        failed=$((failed + 1))
    fi
    if [ "$total" -ne "$executed" ]; then
        printf 'run-tests: %s: %d SKIPPED:\n' "$name" $((total - executed))
        grep -o '<UnitTestResult [^>]*outcome="NotExecuted"[^>]*>' "$file" | grep -o ' testName="[^"]*"' | sed 's/^/ /'
    fi
}

selected() {
    [ $# -gt 1 ] || return 0
    local project=$1 word
    shift
    for word; do
        case $(basename "$project") in *"$word"*) return 0 ;; esac
    done
    return 1
}

# A kernel that hangs a FUSE request would otherwise keep the clean-up from ending, so the end is one function, run once.
finish() {
    trap - EXIT INT TERM
    find_and_clean_leftovers
    if [ -n "${CI:-}" ] && [ "$skipped" -gt 0 ]; then
        trouble "$skipped skipped, and CI skips nothing"
    fi
    printf '\n'
    if [ "${#troubles[@]}" -gt 0 ]; then
        printf 'run-tests: %s\n' "${troubles[@]}"
    fi
    list_failures
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    [ "${#troubles[@]}" -eq 0 ] && exit 0
    exit 1
}
"$dotnet" build "$root/QcowFs.sln" -c "$configuration" -v quiet </dev/null || {
    printf '\nrun-tests: the build failed\n0 passed, 1 failed, 0 skipped\n'
    exit 1
}
rm -rf "$results"
mkdir -p "$results"
loops_before=$(losetup -n -l -O NAME 2>/dev/null | tr -d ' ')
TMPDIR=$(mktemp -d "${QCOWFS_TEST_BASE:-/tmp}/qfs-XXXXXX")
QCOWFS_TEST_RUN=$(basename "$TMPDIR")
export TMPDIR QCOWFS_TEST_RUN
chmod 1777 "$TMPDIR"    # tests run parts of themselves as an ordinary user
trap finish EXIT
trap 'trouble "interrupted"; finish' INT TERM

printf 'run-tests: seed offset %d; repeat a run with QCOWFS_SEED_OFFSET=%d\n' "${QCOWFS_SEED_OFFSET:-0}" "${QCOWFS_SEED_OFFSET:-0}"
ran=0
for project in "$root"/tests/*.Tests/*.Tests.csproj; do
    selected "$project" "$@" || continue
    ran=$((ran + 1))
    run_project "$project"
done
[ "$ran" -gt 0 ] || trouble "no test project is named like: $*"
