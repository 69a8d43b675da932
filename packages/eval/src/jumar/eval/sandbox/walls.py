"""What a program sees: a root in memory with the interpreter's files, read-only, and nothing else of the machine."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence

from jumar.eval.sandbox import calls, kernel

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
HOME = "/tmp"
HOME_OPTIONS = "size=16m,nr_inodes=1024,mode=0777"
NAMESPACES = (
    kernel.NEWUSER | kernel.NEWPID | kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS  # with nothing in them
)
NOBODY = 65534


def map_ids(pid: int) -> None:
    """Ids in a new user namespace: nobody alone; of root, who really becomes nobody, also root to build the walls.

    Root of a container that has no nobody is a user like others.
    """
    uid, gid = os.geteuid(), os.getegid()
    root = uid == 0 and _has_nobody()
    if not root:
        _write(f"/proc/{pid}/setgroups", "deny")
    for name, own in (("gid_map", gid), ("uid_map", uid)):
        _write(f"/proc/{pid}/{name}", f"0 {own} 1\n{NOBODY} {NOBODY} 1" if root else f"{NOBODY} {own} 1")


def _has_nobody() -> bool:
    with open("/proc/self/uid_map") as file:
        ranges = [(int(start), int(count)) for start, _, count in map(str.split, file)]
    return any(start <= NOBODY < start + count for start, count in ranges)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as fault:
        raise OSError(fault.errno, f"{fault.strerror} ({path})") from None


def build(paths: Sequence[str]) -> None:
    """A new root of which `paths` are a part, as process 1 of new namespaces. The working directory is an empty one."""
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    root = next(p for p in ("/mnt", "/media", "/srv", "/sys", "/tmp") if os.path.isdir(p) and not _within(p, paths))
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=0755")
    for path in (*paths, *DEVICES):
        _show(path, root)
    for path, kind, options in ((HOME, "tmpfs", HOME_OPTIONS), ("/proc", "proc", None)):
        os.mkdir(root + path)
        kernel.mount(kind, root + path, kind, kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)
    os.chdir(root)
    kernel.pivot_root_here(calls.numbers()["pivot_root"])
    _write("/proc/sys/user/max_user_namespaces", "0")  # none inside of this one: there it would be root again
    for path in set(_mounts()) - {HOME, "/proc"}:
        _protect(path)
    os.chdir(HOME)


def _within(root: str, paths: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for path in paths)


def _show(path: str, root: str) -> None:
    """A file or directory at the same place below `root`; a link as a link."""
    if not os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(path), root + path)
        return
    if stat.S_ISDIR(mode):
        os.makedirs(root + path, exist_ok=True)
    else:
        os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY))
    kernel.mount(path, root + path, None, kernel.MS_BIND | kernel.MS_REC)


def _mounts() -> Iterator[str]:
    """Where something is mounted; as the kernel writes it: some characters by their octal number."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            yield os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split()[4]))


def _protect(path: str) -> None:
    """Read-only. What is forbidden there already must stay so, or the kernel refuses."""
    found = os.statvfs(path).f_flag
    kept = kernel.MS_NOEXEC if found & os.ST_NOEXEC else 0
    kept |= kernel.MS_NODEV if found & os.ST_NODEV or not path.startswith("/dev/") else 0
    kernel.mount(None, path, None, kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | kernel.MS_NOSUID | kept)
