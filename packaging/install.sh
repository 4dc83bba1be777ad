#!/bin/sh
# install.sh BUILD DESTDIR PREFIX: installs what `make build` made, the mount helpers, the manual page and the completion.
set -eu
build=$1 destdir=$2 prefix=$3
packaging=$(dirname "$(readlink -f "$0")")

put() { # put MODE FILE DIRECTORY [NAME]: @bindir@ in a text is the directory of the program as installed
    mkdir -p "$destdir$3"
    sed "s|@bindir@|$prefix/bin|g" "$2" >"$destdir$3/${4:-$(basename "$2")}"
    chmod "$1" "$destdir$3/${4:-$(basename "$2")}"
}

library=$prefix/lib/qcowfs
mkdir -p "$destdir$library" "$destdir$prefix/bin"
find "$build" -maxdepth 1 -type f ! -name '*.pdb' ! -name '*.xml' -exec install -m 644 -t "$destdir$library" {} +
chmod 755 "$destdir$library/qcowfs"
ln -sf ../lib/qcowfs/qcowfs "$destdir$prefix/bin/qcowfs"

put 755 "$packaging/mount.qcowfs" "$prefix/sbin"
ln -sf mount.qcowfs "$destdir$prefix/sbin/mount.fuse.qcowfs"
put 755 "$packaging/umount.fuse.qcowfs" "$prefix/sbin"
# Only an example: a file in /etc is read at every start, though it states nothing.
put 644 "$packaging/qcowfs.json" "$prefix/share/doc/qcowfs/examples"
put 644 "$packaging/qcowfs.1" "$prefix/share/man/man1"
put 644 "$packaging/qcowfs@.service" "$prefix/lib/systemd/system"
put 644 "$packaging/qcowfs.bash" "$prefix/share/bash-completion/completions" qcowfs

# mount(8) and umount(8) look for helpers in /sbin only.
if [ "$prefix" != /usr ] && [ "$prefix" != / ]; then
    mkdir -p "$destdir/sbin"
    for helper in mount.qcowfs mount.fuse.qcowfs umount.fuse.qcowfs; do
        ln -sf "$prefix/sbin/$helper" "$destdir/sbin/$helper"
    done
fi
