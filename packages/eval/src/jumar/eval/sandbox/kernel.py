"""What of Linux Python has no call for: namespaces, mounts, capabilities. Faults are OSErrors that name the call.

Numbers are those of the kernel's headers (linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h, asm/unistd.h).
"""

from __future__ import annotations

import ctypes
import os

NEWNS, NEWUTS, NEWIPC, NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
NEWPID, NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
CAPABILITY_VERSION_3 = 0x20080522
SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def unshare(flags: int) -> None:
    """New namespaces for this process; of processes, for its children."""
    _call("unshare", ctypes.c_int(flags))


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    try:
        _call("mount", _text(source), _text(target), _text(kind), ctypes.c_ulong(flags), _text(options))
    except OSError as fault:
        raise OSError(fault.errno, f"{fault.strerror} ({kind or source} on {target})") from None


def pivot_root_here(number: int) -> None:
    """The working directory, a mount, becomes the root; what was the root is gone. number: of the system call."""
    _call("syscall", ctypes.c_long(number), b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def prctl(option: int, value: int = 0, more: int = 0) -> None:
    _call("prctl", ctypes.c_int(option), ctypes.c_ulong(value), ctypes.c_ulong(more), ctypes.c_ulong(0), ctypes.c_ulong(0))


def die_with_parent() -> None:
    prctl(PR_SET_PDEATHSIG, SIGKILL)


def drop_capabilities(uid: int | None) -> None:
    """None is left, and none can be had again. uid: that is taken on before; None: it is so already."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break  # the kernel knows no more
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    prctl(PR_SET_NO_NEW_PRIVS, 1)
