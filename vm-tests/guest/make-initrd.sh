#!/bin/sh
# Makes /initrd.img of /initrd/init, in the guest's root: what the kernel needs to reach its disk, and no more. Debian's own
# brings a second udev and a shell's worth of scripts, which take an emulated machine longer than all its services.
set -e
cd /initrd
mkdir bin dev modules root
cp /bin/busybox bin
number=100
for module in crc32c_generic virtio_pci virtio_blk ext4; do
    modprobe --set-version "$(ls /lib/modules)" --show-depends "$module"
done | while read -r what file _; do
    if [ "$what" = insmod ] && ! ls modules/*-"${file##*/}" >/dev/null 2>&1; then
        cp "$file" "modules/$number-${file##*/}"
        number=$((number + 1))
    fi
done
rm -f /initrd.img
find . | cpio --quiet --create --format newc >/initrd.img
cd /
rm -r /initrd
