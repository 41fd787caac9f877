#!/bin/sh
# Runs the host's commands, one at a time: see vm-tests/src/machine.rs for the protocol.
exec 3<>/dev/virtio-ports/podling.control
echo "ready $(cat /proc/sys/kernel/random/boot_id)" >&3
while read -r number script <&3; do
    printf '%s' "$script" | base64 -d >/run/vm-command
    sh /run/vm-command >/run/vm-output 2>&1 </dev/null 3>&-
    code=$?
    printf 'done %s %s %s\n' "$number" "$code" "$(base64 -w 0 /run/vm-output)" >&3
done
