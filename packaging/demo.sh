#!/usr/bin/env bash
# demo.sh PROGRAM: the main job, shown. Makes a qcow2 image with a file system in it, mounts it with qcowfs, reads and writes
# through it, unmounts, and has QEMU check the result. Every line after "$" is the command that runs next; what follows is its
# real output. As root the file system is mounted through a loop device, else read and written by debugfs.
set -euo pipefail

program=$(readlink -f "$1")
[ -x "$program" ] || { echo "demo: $1 is not there: run make build" >&2; exit 1; }
export PATH=${program%/*}:/usr/sbin:/sbin:$PATH

work=$(mktemp -d "${TMPDIR:-/tmp}/qcowfs-demo-XXXXXX")
cd "$work"

clean_up() {
    status=$?
    trap - EXIT INT TERM
    cd /
    mountpoint -q "$work/files" && umount "$work/files"
    [ -z "${device:-}" ] || losetup -d "$device" 2>/dev/null
    mountpoint -q "$work/disk" && { qcowfs umount "$work/disk" || fusermount3 -u -z "$work/disk"; }
    rm -rf --one-file-system "$work"
    [ "$status" -eq 0 ] || echo "demo: failed (exit code $status)" >&2
    exit "$status"
}
trap clean_up EXIT INT TERM

say() { printf '\n# %s\n' "$*"; }

# Shows a command as typed, then runs it.
run() {
    printf '$ %s\n' "$1"
    eval "$1"
}

say 'A qcow2 image with an ext4 file system in it, made by other programs.'
mkdir tree
echo 'written before the image was made' >tree/hello.txt
run 'mkfs.ext4 -q -d tree plain.img 256M'
run 'qemu-img convert -O qcow2 -c plain.img disk.qcow2'
run 'qcowfs info disk.qcow2'

say 'Mounted, it is a raw file.'
mkdir disk
run 'qcowfs mount -w disk.qcow2 disk'
run 'ls -ls disk'
run 'qcowfs list'
run 'cmp plain.img disk/disk.qcow2.raw && echo the same bytes'

if [ "$(id -u)" -eq 0 ] && device=$(losetup --find --show disk/disk.qcow2.raw 2>/dev/null); then
    say 'The kernel mounts it through a loop device.'
    mkdir files
    printf '$ losetup --find --show disk/disk.qcow2.raw\n%s\n' "$device"
    run "mount $device files"
    run 'cat files/hello.txt'
    run 'echo "written through qcowfs" > files/new.txt'
    run 'dd if=/dev/urandom of=files/data bs=1M count=16 conv=fsync status=none'
    run 'sha256sum files/data | tee sum'
    run 'ls -l files'
    run 'umount files'
    run "losetup -d $device"
    device=
else
    say 'No root is needed: the tools of e2fsprogs work on the file.'
    echo 'written through qcowfs' >new.txt
    head -c 16M /dev/urandom >data
    run 'debugfs -R "cat hello.txt" disk/disk.qcow2.raw'
    run 'debugfs -w -R "write new.txt new.txt" disk/disk.qcow2.raw'
    run 'debugfs -w -R "write data data" disk/disk.qcow2.raw'
    run 'sha256sum data | tee sum'
fi
run 'e2fsck -fn disk/disk.qcow2.raw'

say 'Unmounting returns when the image is complete on stable storage; then QEMU looks at it.'
run 'qcowfs umount disk'
run 'qemu-img check disk.qcow2'

say 'Mounted again, read-only now: what was written is there.'
run 'qcowfs mount disk.qcow2 disk'
run 'debugfs -R "cat new.txt" disk/disk.qcow2.raw 2>/dev/null'
debugfs -R 'dump data read-back' disk/disk.qcow2.raw 2>/dev/null
run 'sha256sum read-back'
[ "$(cut -d' ' -f1 sum)" = "$(sha256sum read-back | cut -d' ' -f1)" ] || { echo 'demo: the data differs' >&2; exit 1; }
run 'qcowfs umount disk'

say 'A partitioned disk: each partition is a file, and so is each snapshot, made while the image is mounted.'
run 'qcowfs create -f qcow2 parts.qcow2 1G'
run 'qcowfs mount -w parts.qcow2 disk'
run 'printf "label: gpt\n,300M\n,\n" | sfdisk -q disk/parts.qcow2.raw'
run 'mkfs.ext4 -q -d tree disk/parts.qcow2.p1.raw'
run 'qcowfs snapshot create parts.qcow2 "clean system"'
run 'debugfs -w -R "rm hello.txt" disk/parts.qcow2.p1.raw 2>/dev/null'
run 'find disk -type f -printf "%M %10s %P\n" | sort -k3'
run 'debugfs -R "cat hello.txt" disk/parts.qcow2.p1.raw'
run 'qcowfs check parts.qcow2'
run 'qcowfs umount disk'
run 'qemu-img snapshot -l parts.qcow2'

printf '\nThe demo is done: every step worked.\n'
