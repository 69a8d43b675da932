"""Runs a command with the network cut: in a network namespace of its own, where there is the loopback interface and nothing else.

python scripts/offline.py COMMAND ...        exit code 4 where the machine permits no such namespace
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1  # <linux/sockios.h>, <linux/if.h>
INSIDE = "JUMAR_OFFLINE"
PREFIX = ("unshare", "--map-root-user", "--net")


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def possible() -> bool:
    return shutil.which(PREFIX[0]) is not None and subprocess.run([*PREFIX, "true"], capture_output=True).returncode == 0


def main() -> None:
    command = sys.argv[1:]
    if not command:
        sys.exit(__doc__)
    if os.environ.pop(INSIDE, None):
        loopback_up()
        os.execvp(command[0], command)
    if not possible():
        print(
            f"error: this machine does not permit `{' '.join(PREFIX)}`\nhint: in a container, run it privileged", file=sys.stderr
        )
        sys.exit(4)
    os.environ[INSIDE] = "1"
    os.execvp(PREFIX[0], [*PREFIX, sys.executable, __file__, *command])


if __name__ == "__main__":
    main()
