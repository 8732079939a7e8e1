# Functions for trying packages on a bare Debian: sourced by try-packages, try-pythons and image. Needs root.

base_folder=${BARE_BASE:-$root/.builds/bare-debian}

say() { printf '%s\n' "$*"; }
give_up() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

mirror() {
    { cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; } |
        sed -nE 's/^URIs: *//p; s/^deb +(\[[^]]*\] *)?([^ ]+).*/\2/p' | grep -v security | head -n 1
}

make_base() { # RELEASE FOLDER [PACKAGE...]: a Debian with nothing but these packages
    release=$1 folder=$2
    shift 2
    [ ! -e "$folder/.complete" ] || return 0
    [ "$(id -u)" = 0 ] || give_up "this needs root: a bare Debian is made by debootstrap and entered by chroot"
    command -v debootstrap >/dev/null || give_up "debootstrap is missing: apt-get install debootstrap"
    say "Making a bare Debian ($release) in $folder ..."
    rm -rf "$folder"
    mkdir -p "$folder"
    packages=$(printf ',%s' "$@")
    # (an older debootstrap does not know the names of later releases)
    script=/usr/share/debootstrap/scripts/$release
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    debootstrap --variant=minbase ${1:+--include=${packages#,}} "$release" "$folder" "$(mirror)" "$script" \
        >"$folder.log" 2>&1 ||
        { tail -n 5 "$folder.log" >&2; give_up "debootstrap failed; all of its output is in $folder.log"; }
    rm -rf "$folder/var/cache/apt/archives"/*.deb
    touch "$folder/.complete"
}

pip_folders() { # the folders of this machine that pip takes packages from
    { python3 -m pip config list; env | grep "^PIP_"; } 2>/dev/null | grep -oE "(file://)?/[^ ']+" | sed 's,^file://,,' |
        while read -r path; do
            case $path in */simple) path=${path%/simple} ;; esac
            if [ -d "$path" ] && [ "$path" != / ]; then echo "$path"; fi
        done | sort -u
}
export -f pip_folders

# Runs a command in a copy of the base that is gone afterwards, with processes and mounts of
# its own, and fails when a process is left. $share, a folder of this machine, is /share there. With $no_network there is
# only the loopback device. With $with_pip packages come from where pip of this machine has them, and, unless it is
# "cold", with its cache of wheels.
in_bare() { # BASE COMMAND
    [ -z "${no_network:-}" ] || command -v ip >/dev/null || give_up "this needs ip: apt-get install iproute2"
    unshare --mount --pid --fork --kill-child ${no_network:+--net} bash -euc '
        [ -z "${no_network:-}" ] || ip link set lo up
        base=$1 command=$2
        work=$(mktemp -d)
        mount -t tmpfs -o size=70% tmpfs "$work"
        mkdir "$work/up" "$work/wk" "$work/root"
        r=$work/root
        mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/up,workdir=$work/wk" "$r"
        mount -t proc proc "$r/proc"
        mount --rbind /dev "$r/dev"
        mkdir -p "$r/share"
        mount --bind "$share" "$r/share"
        for file in /etc/resolv.conf /etc/hosts; do [ -e "$file" ] && cp -L "$file" "$r$file"; done
        if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
            mkdir -p "$r/etc/ssl/certs"
            cp -L /etc/ssl/certs/ca-certificates.crt "$r/etc/ssl/certs/"
            cp -L /etc/ssl/certs/ca-certificates.crt "$r/etc/ssl/of-this-machine.crt" # (the other one apt may write anew)
        fi
        pip=
        if [ "${with_pip:-}" ]; then
            mkdir -p "$r/etc/xdg" "$r/root/.cache/pip"
            [ ! -e /etc/xdg/pip ] || cp -r /etc/xdg/pip "$r/etc/xdg/"
            [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$r/etc/"
            [ "$with_pip" = cold ] || [ ! -e ~/.cache/pip ] || mount --bind ~/.cache/pip "$r/root/.cache/pip"
            for folder in $(pip_folders); do
                mkdir -p "$r$folder"
                mount --bind "$folder" "$r$folder"
            done
            pip=$(env | grep "^PIP_" | grep -v "^PIP_CERT=" || true)
            [ ! -e "$r/etc/ssl/of-this-machine.crt" ] || pip="$pip PIP_CERT=/etc/ssl/of-this-machine.crt"
        fi
        code=0
        env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb \
            ${pip:+$pip} chroot "$r" bash -c "$command" || code=$?
        left=$(for one in "$r"/proc/[0-9]*; do
            [ "$(readlink "$one/root" 2>/dev/null)" = "$r" ] && tr "\0" " " <"$one/cmdline" && echo; done 2>/dev/null || true)
        [ -z "$left" ] || { echo "left running: $left" >&2; exit 3; }
        exit "$code"
    ' bare "$1" "$2"
}
