"""The generated part of the default template: everything but /usr and /opt/glovebox, as a list of entries.

/etc is written here, not copied: a host's own is full of names, addresses and secrets. What is taken from the host is
listed in `_STATIC` and `_taken`, is the distribution's, and must be readable by everybody there.
"""

import os
import pathlib
import stat
from collections.abc import Iterator

from glovebox import errors
from glovebox_server.images import tree

HOSTNAME = "sandbox"
USER_ID = 1000
ENVIRONMENT = "/opt/glovebox"
PATH = f"{ENVIRONMENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The links into /usr that a merged root has; a host without some (lib32) needs none.
_USR_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DIRECTORIES = {
    "": 0o755, "proc": 0o755, "sys": 0o755, "dev": 0o755, "run": 0o755, "run/lock": 0o1777, "mnt": 0o755, "usr": 0o755,
    "opt": 0o755, "srv": 0o755, "media": 0o755, "home": 0o755, "root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777,
    "var/log": 0o755, "var/lib": 0o755, "var/cache": 0o755, "var/spool": 0o755, "etc/profile.d": 0o755,
    "etc/sudoers.d": 0o755,
}  # fmt: skip
# The distribution's own tables, the same on every host. Not /etc/profile, bash.bashrc, environment: administrators
# put proxies with passwords there.
_STATIC = (
    "protocols", "services", "rpc", "mime.types", "magic", "magic.mime", "inputrc", "debian_version", "ld.so.cache",
    "ssl/openssl.cnf", "ssl/certs/ca-certificates.crt", "ssl/certs/java/cacerts", "fonts/fonts.conf",
)  # fmt: skip

_PASSWD = f"""\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
user:x:{USER_ID}:{USER_ID}:user:/home/user:/bin/bash
"""
_GROUP = f"""\
root:x:0:
daemon:x:1:
tty:x:5:
mail:x:8:
sudo:x:27:user
shadow:x:42:
utmp:x:43:
users:x:100:
nogroup:x:65534:
user:x:{USER_ID}:
"""
_NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
rpc: files
"""
_HOSTS = f"""\
127.0.0.1 localhost {HOSTNAME}
::1 localhost ip6-localhost ip6-loopback
"""
_LOGIN_DEFS = """\
MAIL_DIR /var/mail
UID_MIN 1000
UID_MAX 60000
GID_MIN 1000
GID_MAX 60000
UMASK 022
ENCRYPT_METHOD SHA512
USERGROUPS_ENAB yes
CREATE_HOME yes
"""
# root inside is nobody outside, so `user` becoming root gives nothing that the sandbox did not have.
_SUDOERS = f"""\
Defaults env_reset, !use_pty
Defaults secure_path="{PATH}"
root ALL=(ALL:ALL) ALL
user ALL=(ALL:ALL) NOPASSWD:ALL
#includedir /etc/sudoers.d
"""
_PAM_PERMIT = """\
auth sufficient pam_permit.so
account sufficient pam_permit.so
password sufficient pam_permit.so
session sufficient pam_permit.so
"""
_PAM_OTHER = _PAM_PERMIT.replace("sufficient pam_permit.so", "required pam_deny.so")
_PAM_SU = _PAM_PERMIT.replace(
    "auth sufficient pam_permit.so", "auth sufficient pam_rootok.so\nauth required pam_deny.so"
)
# Login shells (`bash -lc`, which the E2B SDKs use) must find the environment first, and keep what the caller put in PATH.
_PROFILE = f"""\
case ":$PATH:" in
  *:{ENVIRONMENT}/bin:*) ;;
  *) PATH="{ENVIRONMENT}/bin:${{PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}}" ;;
esac
export PATH
if [ -n "${{BASH-}}" ] && [ -n "${{PS1-}}" ] && [ -r /etc/bash.bashrc ]; then . /etc/bash.bashrc; fi
for script in /etc/profile.d/*.sh; do
  if [ -r "$script" ]; then . "$script"; fi
done
unset script
"""
_BASHRC = """\
[ -z "${PS1-}" ] && return
shopt -s checkwinsize
PS1='\\u@\\h:\\w\\$ '
"""
_HOME_BASHRC = """\
case $- in *i*) ;; *) return ;; esac
HISTCONTROL=ignoreboth
shopt -s histappend checkwinsize
PS1='\\[\\e[32m\\]\\u@\\h\\[\\e[0m\\]:\\[\\e[34m\\]\\w\\[\\e[0m\\]\\$ '
alias ls='ls --color=auto' grep='grep --color=auto' ll='ls -alF'
"""
_HOME_PROFILE = """\
if [ -n "${BASH_VERSION-}" ] && [ -r "$HOME/.bashrc" ]; then . "$HOME/.bashrc"; fi
for directory in "$HOME/bin" "$HOME/.local/bin"; do
  if [ -d "$directory" ]; then PATH="$directory:$PATH"; fi
done
unset directory
"""


def entries(host: pathlib.Path = pathlib.Path("/")) -> list[tree.Entry]:
    """The generated tree for a host whose root is `host`. Raises UnsupportedError where /bin is not under /usr."""
    return [
        *_links(host),
        *(tree.directory(path, mode) for path, mode in _DIRECTORIES.items()),
        tree.symlink("var/run", "/run"),
        tree.symlink("var/lock", "/run/lock"),
        *_written(),
        *_home("root", 0),
        tree.directory("home/user", 0o755, USER_ID),
        *_home("home/user", USER_ID),
        *_taken(host),
    ]


def _links(host: pathlib.Path) -> Iterator[tree.Entry]:
    for name in _USR_LINKS:
        path = host / name
        if path.is_symlink():
            yield tree.symlink(name, f"usr/{name}")
        elif path.exists():
            raise errors.UnsupportedError(
                f"/{name} of this host is not a link into /usr, which the default template is made of: "
                "on Debian or Ubuntu, run: apt-get install usrmerge"
            )


def _written() -> Iterator[tree.Entry]:
    accounts = [line.partition(":")[0] for line in _PASSWD.splitlines()]
    groups = [line.split(":") for line in _GROUP.splitlines()]
    texts = {
        "passwd": _PASSWD,
        "group": _GROUP,
        "nsswitch.conf": _NSSWITCH,
        "hostname": HOSTNAME + "\n",
        "hosts": _HOSTS,
        "host.conf": "multi on\n",
        "resolv.conf": "# No name server: this sandbox has no way out.\n",
        "login.defs": _LOGIN_DEFS,
        "profile": _PROFILE,
        "bash.bashrc": _BASHRC,
        "skel/.bashrc": _HOME_BASHRC,
        "skel/.profile": _HOME_PROFILE,
        "shells": "/bin/sh\n/bin/bash\n/usr/bin/sh\n/usr/bin/bash\n",
        "machine-id": "",  # empty: whoever needs one makes its own; never the host's
        "fstab": "",
        "timezone": "Etc/UTC\n",
        "pam.d/sudo": _PAM_PERMIT,
        "pam.d/su": _PAM_SU,
        "pam.d/other": _PAM_OTHER,
    }
    for name, text in texts.items():
        yield tree.file(f"etc/{name}", text)
    # "!": no password at all opens these accounts; 1 is a date long ago, so that the file is the same everywhere.
    yield tree.file("etc/shadow", "".join(f"{name}:!:1:0:99999:7:::\n" for name in accounts), 0o600)
    yield tree.file("etc/gshadow", "".join(f"{name}:!::{members}\n" for name, _, _, members in groups), 0o600)
    yield tree.file("etc/sudoers", _SUDOERS, 0o440)
    yield tree.symlink("etc/os-release", "../usr/lib/os-release")
    yield tree.symlink("etc/mtab", "../proc/self/mounts")
    yield tree.symlink("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")


def _home(path: str, owner: int) -> Iterator[tree.Entry]:
    yield tree.file(f"{path}/.bashrc", _HOME_BASHRC, owner=owner)
    yield tree.file(f"{path}/.profile", _HOME_PROFILE, owner=owner)


def _taken(host: pathlib.Path) -> Iterator[tree.Entry]:
    """What the programs in the host's /usr expect to find in /etc, and cannot leak anything of this host."""
    for name in _STATIC:
        yield from _copied(host, f"etc/{name}")
    for pattern in ("etc/fonts/conf.avail/*.conf", "etc/java-*-openjdk/**/*"):
        for path in sorted(host.glob(pattern)):
            if "password" not in path.name:
                yield from _copied(host, str(path.relative_to(host)))
    # Links into /usr only: many programs there are links to /etc/alternatives (update-alternatives(1)).
    for folder in ("etc/alternatives", "etc/fonts/conf.d"):
        yield from _linked(host, folder, ("/usr/", "/bin/", "/sbin/", "/lib", "../conf.avail/"))
    # Certificates by hash and by name. A link without a slash is to a neighbour; the files themselves are in /usr.
    yield from _linked(host, "etc/ssl/certs", ("/usr/share/ca-certificates/",), neighbours=True)
    # Debian's interpreters have their sitecustomize.py as a link to /etc: theirs is a comment, a host's may do anything.
    for path in sorted(host.glob("usr/lib/python3*/sitecustomize.py")):
        if path.is_symlink() and (target := str(path.readlink())).startswith("/etc/"):
            yield tree.file(target[1:], "# Nothing.\n")


def _copied(host: pathlib.Path, relative: str) -> Iterator[tree.Entry]:
    """The host's file, if it is one that everybody may read."""
    path = host / relative
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(facts.st_mode) and facts.st_mode & stat.S_IROTH:
        yield tree.file(relative, path.read_bytes())


def _linked(
    host: pathlib.Path, folder: str, prefixes: tuple[str, ...], *, neighbours: bool = False
) -> Iterator[tree.Entry]:
    """The folder's symlinks whose target begins with one of the prefixes."""
    path = host / folder
    for name in sorted(os.listdir(path)) if path.is_dir() else ():
        if (path / name).is_symlink():
            target = str((path / name).readlink())
            if target.startswith(prefixes) or (neighbours and "/" not in target):
                yield tree.symlink(f"{folder}/{name}", target)
