#!/bin/sh
# Gets this checkout ready to run: `scripts/setup.sh demo|test|bench`. The Makefile calls it; it is quick when nothing changed.
#
# It needs a Debian or Ubuntu with Python 3.11 or newer. As root it installs the packages of the system that are missing;
# as anybody else it names them, with the command, and stops. All Python packages go into .venv, by requirements.lock.
set -eu
cd "$(dirname "$0")/.."
lane=${1:-demo}

say() { printf '%s\n' "$*" >&2; }

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# Sets `packages` to those of the given `what:package` that are missing; `what` is a program, or lib/<file name>.
find_missing() {
    packages=
    for pair in "$@"; do
        what=${pair%%:*}
        case $what in
            lib/*) for file in /usr/lib/"${what#lib/}" /usr/lib/*/"${what#lib/}"; do [ -e "$file" ] && continue 2; done ;;
            *) have "$what" && continue ;;
        esac
        packages="$packages ${pair#*:}"
    done
}

need() {
    find_missing "$@"
    if [ -n "$packages" ]; then install_packages; fi
}

install_packages() {
    if [ "$(id -u)" != 0 ]; then
        say "Missing packages of the system. Run:  sudo apt-get install -y$packages"
        exit 1
    fi
    if ! have apt-get; then
        say "Missing, and this is neither Debian nor Ubuntu: install what they call$packages"
        exit 1
    fi
    say "installing with apt-get:$packages"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of words
    if ! apt-get install -y -qq --no-install-recommends $packages >/dev/null 2>&1; then
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends $packages >/dev/null
    fi
}

# The system's own Python first: the one that the default template is made with.
find_python() {
    for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    say "Python 3.11 or newer is missing. Run:  apt-get install python3"
    exit 1
}

make_venv() {
    python=$(find_python)
    # Debian and Ubuntu ship Python without pip's installer (python3-venv(1)).
    if ! "$python" -m ensurepip --version >/dev/null 2>&1; then
        packages=" python3-venv"
        install_packages
    fi
    say "making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv
}

install_python_packages() {
    # What decides of .venv's content; the path, because the project is installed in place.
    wanted=$(cat requirements.lock pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)-$(pwd)
    if [ -x .venv/bin/python ] && [ "$(cat .venv/.installed 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    .venv/bin/python -c 'import pip' 2>/dev/null || make_venv
    rm -f .venv/.installed
    # pip installs the locked uv, which installs the rest in seconds.
    awk '/^[^ #]/ { on = /^uv==/ } on' requirements.lock >.venv/uv.lock
    say "installing the locked Python packages"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
    .venv/bin/python -m uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock
    .venv/bin/python -m uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
    printf '%s' "$wanted" >.venv/.installed
}

install_javascript_packages() {
    wanted=$(sha256sum tests/js/package-lock.json | cut -d' ' -f1)
    [ "$(cat tests/js/node_modules/.installed 2>/dev/null)" = "$wanted" ] && return
    say "installing the JavaScript SDKs"
    (cd tests/js && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --update-notifier=false >/dev/null)
    printf '%s' "$wanted" >tests/js/node_modules/.installed
}

need lib/libseccomp.so.2:libseccomp2
if [ "$(id -u)" = 0 ]; then
    need sudo:sudo # `sudo` inside a sandbox is the host's program
else
    need newuidmap:uidmap # an ordinary user's sandboxes have ids of their own by it
fi
case $lane in
    demo | bench) ;; # the benchmark installs its contenders itself: python -m bench --setup
    test)
        need node:nodejs npm:npm gcc:gcc lib/crt1.o:libc6-dev newuidmap:uidmap fish:fish
        install_javascript_packages
        ;;
    *)
        say "usage: $0 demo|test|bench"
        exit 2
        ;;
esac
install_python_packages
