"""Runs a command with the network cut: in a network namespace of its own, where there is the loopback interface and nothing else.

python scripts/offline.py COMMAND ...        its exit code; 4 where the machine permits no such namespace
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
# Root keeps its user namespace: in one with a single user, tests of other users' walls have none to be.
WAYS = (("unshare", "--net"), ("unshare", "--map-root-user", "--net"))


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def way() -> tuple[str, ...] | None:
    """What this machine permits of them."""
    ways = WAYS if shutil.which("unshare") else ()
    return next((words for words in ways if subprocess.run([*words, "true"], capture_output=True).returncode == 0), None)


def main() -> None:
    command = sys.argv[1:]
    if not command or command[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if command else sys.stderr)
        sys.exit(0 if command else 2)
    if shutil.which(command[0]) is None:
        print(f"error: no command {command[0]}\nhint: name one that is on PATH, or its path", file=sys.stderr)
        sys.exit(2)
    if os.environ.pop(INSIDE, None):
        loopback_up()
        os.execvp(command[0], command)
    prefix = way()
    if prefix is None:
        print(f"error: this machine does not permit `{' '.join(WAYS[-1])}`", file=sys.stderr)
        print("hint: in a container, run it privileged", file=sys.stderr)
        sys.exit(4)
    os.environ[INSIDE] = "1"
    os.execvp(prefix[0], [*prefix, sys.executable, __file__, *command])


if __name__ == "__main__":
    main()
