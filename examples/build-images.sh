#!/bin/bash
# Makes real nginx and redis images of Debian's packages, as OCI archives for `podling images load`.
#
#   examples/build-images.sh [DIRECTORY]    writes nginx.tar and redis.tar (default: podling-example-images)
#   podling images load podling-example-images/nginx.tar
#   podling images load podling-example-images/redis.tar
#   podling run examples/real/
#
# Needs mmdebstrap (apt-get install mmdebstrap) and a Debian mirror; no root, no docker, no registry.
# Set in the environment: SUITE (default bookworm), MIRROR (a URL or an apt sources file; default: mmdebstrap's own),
# SOURCE_DATE_EPOCH (default 0: the same packages give the same image).
# The hooks are shell for mmdebstrap, which gives them the new root as $1.
# shellcheck disable=SC2016
set -euo pipefail

SUITE=${SUITE:-bookworm}
MIRROR=${MIRROR:-}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}

main() {
    local out=${1:-podling-example-images}
    command -v mmdebstrap >/dev/null || {
        echo "$0: mmdebstrap is missing: apt-get install mmdebstrap" >&2
        exit 1
    }
    mkdir -p "$out"
    out=$(realpath "$out")
    # Removed on any exit.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT

    # nginx: workers as www-data, logs to the container's output, a graceful end on SIGQUIT.
    root_tar nginx-light "$work/nginx.tar" \
        --customize-hook='ln -sf /dev/stdout "$1/var/log/nginx/access.log"' \
        --customize-hook='ln -sf /dev/stderr "$1/var/log/nginx/error.log"'
    archive "$work/nginx.tar" podling.local/nginx:latest "$out/nginx.tar" '{
        "Cmd": ["/usr/sbin/nginx", "-g", "daemon off;"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT"
    }'

    # redis: as its own user, data in its home directory, reachable from other containers.
    root_tar redis-server,redis-tools "$work/redis.tar"
    archive "$work/redis.tar" podling.local/redis:latest "$out/redis.tar" '{
        "Entrypoint": ["/usr/bin/redis-server"],
        "Cmd": ["--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/var/lib/redis"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": {"6379/tcp": {}},
        "User": "redis",
        "Volumes": {"/var/lib/redis": {}},
        "WorkingDir": "/var/lib/redis"
    }'
    echo "Load them with:"
    echo "  podling images load $out/nginx.tar"
    echo "  podling images load $out/redis.tar"
}

# root_tar PACKAGES TAR [OPTION...]: a small Debian with these packages, without manuals and translations.
root_tar() {
    local packages=$1 tar=$2
    shift 2
    local sources=()
    [ -z "$MIRROR" ] || sources=("$MIRROR")
    echo "$packages: installing" >&2
    mmdebstrap --quiet --variant=essential --include="$packages" --format=tar \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -rf "$1"/var/log/*.log "$1"/var/log/apt "$1"/var/cache/* "$1"/etc/machine-id' \
        "$@" "$SUITE" "$tar" "${sources[@]}"
}

# archive TAR NAME FILE CONFIG: an OCI archive of one layer (image-spec: image-layout.md, manifest.md, config.md).
archive() {
    local tar=$1 name=$2 file=$3 config=$4
    local layout=$work/layout
    rm -rf "$layout"
    mkdir -p "$layout/blobs/sha256"

    local diff_id
    diff_id=$(sha256 "$tar")
    # Without name and time in it, the same tar gives the same blob.
    gzip -n -6 <"$tar" >"$work/layer.tar.gz"
    rm "$tar"
    cat >"$work/config.json" <<JSON
{
  "created": "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)",
  "architecture": "$(architecture)",
  "os": "linux",
  "config": $config,
  "rootfs": {"type": "layers", "diff_ids": ["sha256:$diff_id"]},
  "history": [{"created_by": "examples/build-images.sh", "comment": "Debian $SUITE"}]
}
JSON
    local layer_blob config_blob
    layer_blob=$(descriptor application/vnd.oci.image.layer.v1.tar+gzip "$work/layer.tar.gz")
    config_blob=$(descriptor application/vnd.oci.image.config.v1+json "$work/config.json")
    cat >"$work/manifest.json" <<JSON
{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {$config_blob},
  "layers": [{$layer_blob}]
}
JSON
    local manifest_blob
    manifest_blob=$(descriptor application/vnd.oci.image.manifest.v1+json "$work/manifest.json")
    cat >"$layout/index.json" <<JSON
{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.index.v1+json",
  "manifests": [{$manifest_blob, "annotations": {"org.opencontainers.image.ref.name": "$name"}}]
}
JSON
    echo '{"imageLayoutVersion": "1.0.0"}' >"$layout/oci-layout"
    local blob
    for blob in "$work/layer.tar.gz" "$work/config.json" "$work/manifest.json"; do
        mv "$blob" "$layout/blobs/sha256/$(sha256 "$blob")"
    done
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
        -C "$layout" -cf "$file" oci-layout index.json blobs
    echo "$name: $file" >&2
}

# descriptor MEDIA_TYPE FILE: the members of a descriptor, without braces.
descriptor() {
    printf '"mediaType": "%s", "digest": "sha256:%s", "size": %s' "$1" "$(sha256 "$2")" "$(stat -c %s "$2")"
}

sha256() {
    local sum
    sum=$(sha256sum "$1")
    echo "${sum%% *}"
}

# Debian's name of the architecture in Go's words.
architecture() {
    case $(dpkg --print-architecture) in
    i386) echo 386 ;;
    armhf | armel) echo arm ;;
    ppc64el) echo ppc64le ;;
    *) dpkg --print-architecture ;;
    esac
}

main "$@"
