# Sourced by scripts/setup and scripts/llama-build: messages, missing system packages, and steps with progress that one
# signal stops as a whole. The caller sets `log` (a file) and `temporary` (a folder that is removed at the end).
# shellcheck shell=bash disable=SC2154

child=
say() { printf '%s\n' "$*"; }
give_up() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

# ---- System packages. Each is tested by its purpose, and has its names in Debian and in Fedora.
compiles() {  # LANGUAGE COMPILER OPTION... < source
    local language=$1 compiler=$2
    shift 2
    "$compiler" -x "$language" - "$@" -o /dev/null 2>/dev/null
}
missing=() debian=() fedora=()
lacks() { missing+=("$1"); debian+=("$2"); fedora+=("$3"); }

demand_packages() {  # exits when packages are missing that only the user can install
    [ ${#missing[@]} -gt 0 ] || return 0
    local names need
    names=$(printf ', %s' "${missing[@]}")
    need="missing: ${names#, }"
    if command -v apt-get >/dev/null; then
        [ "$(id -u)" = 0 ] || give_up "$need. Install with: sudo apt-get update && sudo apt-get install -y ${debian[*]}"
    elif command -v dnf >/dev/null; then
        give_up "$need. Install with: sudo dnf install -y ${fedora[*]}"
    else
        give_up "$need. Install them with your system's package manager (Debian's names: ${debian[*]})"
    fi
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    dpkg --configure -a # completes what an interrupted run left half installed
    apt-get update
    # Without a terminal of its own, dpkg stops when this script is stopped.
    apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "${debian[@]}"
}

# ---- Running a step: its output goes to the log. Its progress is shown on one line of a terminal, otherwise as a line
# every ten seconds.
terminal=
if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then terminal=1; fi

doing() {  # the latest progress in the log: "[12/83] ops.cpp" of a compiler, or that of pip or apt-get
    tail -c 65536 "$log" | LC_ALL=C awk '
        /^== / { line = "" }
        /^ *\[ *[0-9]+(%|\/[0-9]+)\]/ {
            match($0, /\[[^]]*\]/); count = substr($0, RSTART, RLENGTH)
            what = "linking"
            if (match($0, / -c [^ ]+/)) { what = substr($0, RSTART + 4, RLENGTH - 4); sub(/.*\//, "", what) }
            line = count " " what
        }
        /^ *(Collecting|Downloading|Using cached|Building|Installing|Preparing|Getting requirements|Get:|Unpacking|Setting up) ?/ {
            line = $0; sub(/^ */, "", line); sub(/ \(.*/, "", line); sub(/: (started|finished).*/, "", line)
            if (line ~ /^Installing collected/) line = "Installing packages"
            if (line ~ /^Downloading/) { sub(/https?:[^ ]*\//, "", line) }
        }
        END { print line }'
}

tell() {
    [ -n "$terminal" ] || [ $((SECONDS - told)) -ge 10 ] || return 0
    local elapsed=$((SECONDS - started)) news line width
    news=$(doing) || true
    at=${news:-$at} # a page of compiler warnings can hide it
    printf -v line '  %s  %d:%02d  %s' "$label" $((elapsed / 60)) $((elapsed % 60)) "$at"
    if [ -n "$terminal" ]; then
        width=$(stty size <&1 2>/dev/null | cut -d' ' -f2)
        if [ "${width:-0}" -lt 20 ]; then width=80; fi
        printf '\r\033[K%s' "${line:0:width-1}"
    else
        told=$SECONDS
        say "$line"
    fi
}

stop_child() {
    # SIGINT first: ninja ends the compilers, which are in groups of their own, and pip restores what it was about to
    # replace. SIGKILL after that.
    [ -n "$child" ] || return 0
    kill -INT -- "-$child" 2>/dev/null || true
    local tries=50
    while [ $tries -gt 0 ] && kill -0 -- "-$child" 2>/dev/null; do
        tries=$((tries - 1))
        sleep 0.1
    done
    kill -KILL -- "-$child" 2>/dev/null || true
    child=
}
stopped() {
    trap '' INT TERM HUP
    if [ -n "$terminal" ]; then printf '\r\033[K'; fi
    say "Stopping ..." # pip cleans up for some seconds
    stop_child
    say "Stopped. The next run continues from here."
    exit 130
}
begin_steps() {  # from here on, things change
    trap stopped INT TERM HUP
    trap 'stop_child; rm -rf "$temporary"' EXIT
    mkdir -p "$temporary"
    : >"$log"
    # Temporary files of pip and the compilers stay inside, so that none is left when they are stopped. Retries bridge an
    # unstable network; everything else is as pip is configured on this machine.
    export TMPDIR=$temporary PIP_RETRIES=${PIP_RETRIES:-8} PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
    if [ ${#missing[@]} -gt 0 ]; then step "system packages (${debian[*]})" install_packages; fi
}

step() {  # LABEL COMMAND...
    label=$1 started=$SECONDS told=$SECONDS at=
    shift
    say "  $label ..."
    printf '\n== %s: %s\n' "$label" "$*" >>"$log"
    set -m # a process group of its own, which can be stopped as a whole
    "$@" </dev/null >>"$log" 2>&1 &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        tell
        sleep 0.3
    done
    local status=0
    wait "$child" 2>/dev/null || status=$?
    child=
    if [ -n "$terminal" ]; then printf '\r\033[K\033[1A\033[K'; fi
    if [ "$status" != 0 ]; then
        say "  $label: failed. The last lines of $log:"
        tail -n 30 "$log"
        say ""
        say "${0##*/}: $label failed (exit $status). All of it is in $log; the next run continues from here."
        exit 1
    fi
    say "  $label: done in $((SECONDS - started)) s"
}
