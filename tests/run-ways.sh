#!/usr/bin/env bash
# run-ways.sh: the tests of real mounts once more for each other way in which the kernel can be served: over io_uring, and out of reflink
# views. The kernel's switch is as it was afterwards, and the file system is gone. Needs root, Linux 6.14 and mkfs.xfs.
set -uo pipefail
tests=$(dirname "$(readlink -f "$0")")
switch=/sys/module/fuse/parameters/enable_uring
before=$(cat "$switch" 2>/dev/null) || {
    echo "run-ways: this kernel has no FUSE over io_uring (Linux 6.14)" >&2
    exit 1
}
host=$(mktemp -d /tmp/qfs-ways-XXXXXX)
chmod 755 "$host"    # ordinary users work below it

restore() {
    echo "$before" >"$switch"
    umount "$host/xfs" 2>/dev/null || umount -l "$host/xfs" 2>/dev/null
    rm -rf "$host"
}
trap restore EXIT

# Left out is what looks at the device or at the variables themselves.
echo Y >"$switch"
QCOWFS_TRANSPORT=uring QCOWFS_TEST_FILTER='FullyQualifiedName!~ConfigTests&FullyQualifiedName!~The_devices_sync_precedes' "$tests/run-tests.sh" Conformance
over_rings=$?
echo "$before" >"$switch"

# Left out is what XFS counts in its own way, what needs a file system that cannot share blocks, and what counts requests.
mkdir "$host/xfs" && truncate -s 12G "$host/disk" && mkfs.xfs -q -m reflink=1 "$host/disk" && mount -o loop "$host/disk" "$host/xfs" || exit 1
QCOWFS_REFLINK_VIEW=true QCOWFS_TEST_BASE=$host/xfs \
    QCOWFS_TEST_FILTER='FullyQualifiedName!~ConfigTests&FullyQualifiedName!~Holes_are_found_copied&FullyQualifiedName!~Where_a_view_is_not_possible&FullyQualifiedName!~CostTests' \
    "$tests/run-tests.sh" Conformance
with_views=$?
printf 'run-ways: over io_uring %s, with reflink views %s\n' "$([ $over_rings = 0 ] && echo passed || echo FAILED)" "$([ $with_views = 0 ] && echo passed || echo FAILED)"
[ $over_rings = 0 ] && [ $with_views = 0 ]
