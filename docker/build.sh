#!/usr/bin/env bash
# Builds the image of docker/Dockerfile without a daemon: buildah, chroot isolation, files instead of overlays.
set -euo pipefail

usage() {
    cat <<'END'
Usage: docker/build.sh [OPTIONS]

  Build trueup's image with buildah: no daemon, and with --debootstrap no image registry.

Options:
  --tag NAME            Name of the image.  [default: trueup]
  --base IMAGE          Image to build on.  [default: the Dockerfile's]
  --debootstrap SUITE   Make the base from Debian's packages instead, e.g. bookworm; needs root and debootstrap.
  --mirror URL          Where --debootstrap takes packages from.  [default: debootstrap's]
  --torch-index URL     Index with torch's builds besides pip's own; '' for pip's own alone.  [default: the Dockerfile's]
  --extras LIST         Extras of trueup to install, e.g. s3,deepspeed; '' for none.  [default: the Dockerfile's]
  --build-arg KEY=VALUE Any other argument of the Dockerfile; repeatable.
  --mount HOST:PATH     Mount read-only while it builds; only the empty place stays in the image. Repeatable.
  --host-pip            Mount this host's certificates, pip configuration and the folders that names.
  --storage DIR         Where buildah keeps images and what pip fetched.  [default: buildah's]
  --run                 Afterwards run `trueup doctor` and the quickstart's first stages inside.
  -h, --help            Show this message and exit.
END
}

fail() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tag=trueup base='' suite='' mirror='' storage='' run=no host_pip=no
build_args=() mounts=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --run) run=yes && shift && continue ;;
        --host-pip) host_pip=yes && shift && continue ;;
        --tag | --base | --debootstrap | --mirror | --torch-index | --extras | --build-arg | --mount | --storage) ;;
        *) fail "unknown option $1; see docker/build.sh --help" ;;
    esac
    [ $# -ge 2 ] || fail "$1 needs a value; see docker/build.sh --help"
    case $1 in
        --tag) tag=$2 ;;
        --base) base=$2 ;;
        --debootstrap) suite=$2 ;;
        --mirror) mirror=$2 ;;
        --torch-index) build_args+=(--build-arg "TORCH_INDEX=$2") ;;
        --extras) build_args+=(--build-arg "EXTRAS=$2") ;;
        --build-arg) build_args+=(--build-arg "$2") ;;
        --mount)
            case $2 in /*:/*) ;; *) fail "--mount is $2, expected HOST:PATH, both absolute" ;; esac
            [ -e "${2%%:*}" ] || fail "--mount names ${2%%:*}, which does not exist"
            mounts+=(--volume "$2:ro")
            ;;
        --storage) storage=$2 ;;
    esac
    shift 2
done
[ -z "$base" ] || [ -z "$suite" ] || fail 'both --base and --debootstrap given, expected one'
command -v buildah >/dev/null || fail 'buildah is not installed; on Debian: apt-get install buildah'
if [ -n "$suite" ]; then
    command -v debootstrap >/dev/null || fail 'debootstrap is not installed; on Debian: apt-get install debootstrap'
    [ "$(id -u)" = 0 ] || fail '--debootstrap needs root'
fi

container=''
buildah=(buildah --storage-driver vfs)
if [ -n "$storage" ]; then
    mkdir -p "$storage/tmp"
    storage=$(cd "$storage" && pwd)
    buildah+=(--root "$storage/root" --runroot "$storage/run")
    export TMPDIR=$storage/tmp # where buildah keeps what pip has fetched, for the next build
fi
[ "$host_pip" = no ] || python3 -m pip --version >/dev/null 2>&1 || fail '--host-pip needs python3 with pip'

scratch=$(mktemp -d)
tidy() {
    [ -z "$container" ] || "${buildah[@]}" rm "$container" >/dev/null || true
    rm -rf "$scratch"
}
trap tidy EXIT
export BUILDAH_ISOLATION=chroot

# A base image made of a distribution's packages, certificates included; the Dockerfile adds Python to it.
make_base() {
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$scratch/base" ${mirror:+"$mirror"} >"$scratch/log" \
        || { tail -n 5 "$scratch/log" >&2; fail "debootstrap could not make $suite"; }
    rm -rf "$scratch/base/var/cache/apt/archives" "$scratch/base/var/lib/apt/lists"
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add --quiet "$container" "$scratch/base" / >/dev/null
    "${buildah[@]}" config --cmd /bin/sh "$container"
    base=localhost/trueup-base:$suite
    "${buildah[@]}" commit --quiet "$container" "$base" >/dev/null
    "${buildah[@]}" rm "$container" >/dev/null
    container=''
    rm -rf "$scratch/base"
}

# What pip has been told on this host, as one file, and every local folder or file it was told of.
mount_host_pip() {
    local key value word
    printf '[global]\n' >"$scratch/pip.conf"
    while IFS='=' read -r key value; do
        key=${key##*.} value=${value#\'} value=${value%\'}
        case $key in cert | index-url | extra-index-url | find-links | trusted-host | proxy | default-timeout | timeout) ;; *) continue ;; esac
        printf '%s = %s\n' "$key" "$value" >>"$scratch/pip.conf"
        for word in $value; do
            word=${word#file://} word=${word%/simple}  # an index's files lie beside its pages
            case $word in /etc/ssl/certs/*) ;; /*) [ ! -e "$word" ] || echo "$word" ;; esac
        done
    done < <(python3 -m pip config list | awk -F '[.=]' '!seen[$2]++') >"$scratch/places"  # the environment's come first
    [ ! -d /etc/ssl/certs ] || echo /etc/ssl/certs >>"$scratch/places"
    mounts+=(--volume "$scratch/pip.conf:/etc/pip.conf:ro")
    while read -r word; do
        mounts+=(--volume "$word:$word:ro")
    done < <(sort -u "$scratch/places")
}

started=$SECONDS
[ -z "$suite" ] || make_base
[ "$host_pip" = no ] || mount_host_pip
[ -z "$base" ] || build_args+=(--build-arg "BASE=$base")
# The format of docker keeps the health check, which OCI's has no place for.
"${buildah[@]}" build --format docker --file "$root/docker/Dockerfile" --tag "$tag" \
    ${mounts[@]+"${mounts[@]}"} ${build_args[@]+"${build_args[@]}"} "$root"
printf 'built %s in %d min %02d s\n' "$tag" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
"${buildah[@]}" images --format '{{.Name}}:{{.Tag}} {{.ID}} {{.Size}}' "$tag"

if [ "$run" = yes ]; then
    container=$("${buildah[@]}" from --pull-never "$tag")
    entry=$("${buildah[@]}" inspect --type image --format '{{index .Docker.Config.Entrypoint 0}}' "$tag")
    "${buildah[@]}" run "$container" -- "$entry" doctor
    "${buildah[@]}" run "$container" -- "$entry" new --example quickstart demo
    "${buildah[@]}" run --workingdir /project/demo "$container" -- "$entry" run recipes/quickstart.yaml \
        --until base --set stages.base.train.max_steps=5
fi
