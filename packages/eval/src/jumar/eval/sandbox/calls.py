"""System calls that a program cannot make: what namespaces do not divide, and memory that no bound counts.

Sockets between a machine and its host (vsock) are in no network namespace; files in memory (memfd) and System V's shared memory
belong to no process. Numbers are those of the kernel's headers (asm/unistd_64.h,
asm-generic/unistd.h, linux/audit.h, linux/seccomp.h).
"""

from __future__ import annotations

import ctypes
import os
import struct

from jumar.eval.sandbox import kernel

NUMBERS = {  # x86_64, others
    "socket": (41, 198),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
}
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3, "loongarch64": 0xC0000102}
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
KILL, REFUSE, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # refused with EPERM
X32 = 0x40000000
PR_SET_SECCOMP, MODE_FILTER = 22, 2


class _Filter(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def numbers() -> dict[str, int]:
    """Of this machine. Raises OSError where they are not known."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"the numbers of system calls on {machine} are not known")
    return {name: pair[machine != "x86_64"] for name, pair in NUMBERS.items()}


def forbid() -> None:
    """From here on, in this process and all that it starts; `no_new_privs` is set before."""

    def step(operation: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", operation, yes, no, value)

    steps = [step(LOAD, 4), step(EQUAL, MACHINES[os.uname().machine], 1), step(RETURN, KILL), step(LOAD, 0)]
    steps += [step(AT_LEAST, X32, 0, 1), step(RETURN, REFUSE)]
    for number in numbers().values():
        steps += [step(EQUAL, number, 0, 1), step(RETURN, REFUSE)]
    code = b"".join([*steps, step(RETURN, ALLOW)])
    program = _Filter(len(code) // 8, code)
    kernel.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.addressof(program))
