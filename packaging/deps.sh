#!/bin/sh
# Installs the Debian packages that building, the tests, the demo and the benchmarks use. Does nothing, and needs no
# network, when all are there. Without root it says what to run and goes on: most of the tests work without some of them.
# `deps.sh bench` is about the packages that only the benchmarks compare with.
set -eu

# fuse3: fusermount3. qemu-utils, qemu-system-common: qemu-img, qemu-io, qemu-storage-daemon. libz, libzstd, libxxhash: loaded
# by the program. The rest is what the tests, the demo and the benchmarks run on a mounted disk.
packages='fuse3 qemu-utils qemu-system-common fio e2fsprogs xfsprogs btrfs-progs dosfstools fdisk fuse2fs parted rsync strace
          util-linux mount procps libzstd1 libxxhash0 zlib1g bzip2 libvhdi-utils ntfs-3g'

# qcowmount; nbdfuse, which serves what qemu-nbd has.
[ "${1-}" != bench ] || packages='libqcow-utils libnbd-bin'

missing=
for package in $packages; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true) in
        *' installed') ;;
        *) missing="$missing $package" ;;
    esac
done

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "deps: this is not a Debian system; needed here under its own names:$missing" >&2
    elif [ "$(id -u)" -ne 0 ]; then
        echo "deps: missing packages, install them with: sudo apt-get install$missing" >&2
    else
        echo "deps: installing$missing"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q
        # Word splitting is wanted: one argument a package.
        # shellcheck disable=SC2086
        apt-get install -q -y --no-install-recommends $missing </dev/null
    fi
fi

# udev gives /dev/fuse the mode 0666; in a container no udev runs, and ordinary users could not mount.
if [ "$(id -u)" -eq 0 ] && [ ! -e /run/udev/control ]; then
    [ -e /dev/fuse ] || mknod /dev/fuse c 10 229 || true
    [ "$(stat -c %a /dev/fuse 2>/dev/null)" = 666 ] || chmod 0666 /dev/fuse || true
fi
