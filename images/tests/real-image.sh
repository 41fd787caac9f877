#!/bin/sh
# Makes a real image of Debian packages: an OCI layout with the tag `latest` and two or three layers.
#
#   real-image.sh LAYOUT SUITE [PACKAGE...]
#
# The first layer is Debian's base, as one tar, which is kept beside the layout for the next image. The second, if there
# are packages, is what installing them changes, by umoci: with whiteouts where they remove something. The last removes
# a directory, fills one again (which umoci writes as whiteouts of all that was there), puts a file in place of a
# directory and a link in place of a file, and has hard links, a capability, big owners and a sparse file.
#
# Needs root, mmdebstrap, umoci and the package sources of this machine. Mounts are made in a namespace of its own.
set -eu
[ "${IN_OWN_NAMESPACE:-}" ] || IN_OWN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"

layout=$1 suite=$2
shift 2
work=$(mktemp -d "${TMPDIR:-/tmp}/real-image.XXXXXX")
trap 'rm -rf "$work"' EXIT

mkdir -p "$(dirname "$layout")"
base=$(dirname "$layout")/base-$suite.tar
bootstrap() {
    mmdebstrap --quiet --mode=root --variant=minbase "$@"
}
if ! [ -e "$base" ]; then
    bootstrap "$suite" "$work/base.tar"
    mv "$work/base.tar" "$base"
fi

umoci init --layout "$work/layout"
umoci new --image "$work/layout:latest"
umoci raw add-layer --image "$work/layout:latest" "$base"

umoci unpack --image "$work/layout:latest" "$work/bundle"
root=$work/bundle/rootfs
if [ $# -gt 0 ]; then
    packages=$(IFS=,; echo "$*")
    bootstrap --include="$packages" "$suite" "$work/full.tar"
    find "$root" -mindepth 1 -delete
    tar -C "$root" -xf "$work/full.tar" --xattrs --xattrs-include='*' --numeric-owner
    umoci repack --refresh-bundle --image "$work/layout:latest" "$work/bundle"
fi

rm -rf "$root/usr/share/doc" "$root/var/cache"
mkdir "$root/usr/share/doc"
echo new > "$root/usr/share/doc/README"
rm -rf "$root/opt"
echo 'a file now' > "$root/opt"
rm "$root/etc/issue"
ln -s issue.net "$root/etc/issue"
mkdir -m 2775 "$root/srv/data"
echo linked > "$root/srv/data/one"
ln "$root/srv/data/one" "$root/srv/data/two"
ln "$root/srv/data/one" "$root/usr/share/three"
cp "$root/bin/true" "$root/srv/server"
chown 4000000000:3999999999 "$root/srv/data/one" "$root/srv/data"
chmod 4711 "$root/srv/server"
setcap cap_net_bind_service=ep "$root/srv/server"
mkfifo -m 640 "$root/srv/pipe"
mknod -m 666 "$root/srv/null" c 1 3
truncate --size 20M "$root/srv/holes"
echo end >> "$root/srv/holes"
umoci repack --image "$work/layout:latest" "$work/bundle"
umoci gc --layout "$work/layout"

rm -rf "$layout"
mv "$work/layout" "$layout"
