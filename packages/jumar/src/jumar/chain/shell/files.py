"""The files that a script reads: those that it sources or starts, and those that it has written itself."""

from __future__ import annotations

import os
from pathlib import Path

from jumar.chain.shell.lexer import Lexer
from jumar.chain.shell.values import Argument, Scope, scalar
from jumar.chain.shell.words import Heredoc, Notes, Word
from jumar.schema.errors import ToolError

LARGEST = 1 << 20
"""Bytes of a file that may be a script."""
SUFFIXES = (".sh", ".bash", ".sbatch", ".slurm")
SHELLS = ("bash", "sh", "zsh")
SSH_VALUES = tuple(f"-{letter}" for letter in "BbcDEeFIiJLlmOoPpQRSWw")
"""Options of ssh that take a value. https://man.openbsd.org/ssh"""
WRAPPERS = (
    "srun",
    "sbatch",
    "salloc",
    "nsys",
    "msprof",
    "numactl",
    "mpirun",
    "mpiexec",
    "uv",
    "docker",
    "singularity",
    "apptainer",
    "ssh",
)
"""What starts a command elsewhere, or watches it."""

PASSED_OVER = frozenset(
    "awk cat cd chmod cp diff echo export find git grep head kill ln ls mkdir mv pkill printf ps rm sed set sleep tail tar touch "
    "trap ulimit wc wget which".split()
)
"""Commands that may name a program's file, and start none."""


def wrapped(name: str) -> str:
    return f"{name} and its own words stand before the command here as they do there"


def reads_script(words: list[Argument]) -> bool:
    """Whether a command takes its standard input as a script: `bash`, `sbatch`, `srun bash -x`, `ssh host bash -s`."""
    names = [word.text.rpartition("/")[2] for word in words]
    shell = next((i for i, name in enumerate(names) if name in SHELLS), None)
    if shell is None:
        return names[0] in ("sbatch", "ssh") and not any(name.endswith(SUFFIXES) for name in names)
    return all(name.startswith("-") and name != "-c" for name in names[shell + 1 :])


def inner_script(words: list[Argument]) -> str | None:
    """The text of `bash -c TEXT`, also behind srun and the like, and of `ssh HOST TEXT`."""
    shell = next((i for i, word in enumerate(words) if word.text.rpartition("/")[2] in SHELLS), len(words))
    for at, word in enumerate(words[shell + 1 : -1], shell + 1):
        if word.text.startswith("-") and not word.text.startswith("--") and word.text.endswith("c"):
            return words[at + 1].text
        if not word.text.startswith("-"):
            break
    return _remote(words[1:]) if words[0].text.rpartition("/")[2] == "ssh" else None


def _remote(words: list[Argument]) -> str | None:
    """What ssh gives the other machine's shell: all behind the host, joined by blanks."""
    at = 0
    while at < len(words) and words[at].text.startswith("-"):
        at += 2 if words[at].text in SSH_VALUES else 1
    return " ".join(word.text for word in words[at + 1 :]) or None


class Files:
    """Files by the names that the script has for them. home: where the script lies; None: nothing is read."""

    def __init__(self, home: Path | None) -> None:
        self.home = home
        self.written: dict[str, tuple[str, int]] = {}

    def text_of(self, name: str, scope: Scope) -> tuple[str, str] | None:
        """(path, text) of a file, from the working directory, that of the script or one above it; None where it is not here."""
        if name in self.written:
            return name, self.written[name][0]
        if self.home is None or not name:
            return None
        inside = os.path.relpath(name, scope.folder) if os.path.isabs(name) else name
        above = [self.home, *self.home.absolute().parents]
        for path in (Path(scope.folder) / name, *(folder / inside for folder in above)):
            try:
                if path.is_file() and path.stat().st_size <= LARGEST:
                    return str(path), path.read_text(encoding="utf-8", errors="replace")
            except (OSError, ValueError):
                continue
        return None

    def shown(self, place: str) -> str:
        """A file's path as notes have it: from where the script lies."""
        found = os.path.relpath(place, self.home) if self.home is not None else place
        return place if found.startswith("../..") else found

    def write(self, into: Word, heredoc: Heredoc, scope: Scope) -> None:
        """`cat > file <<END`, kept in mind."""
        runs = scalar(into, scope)
        if all(run.known for run in runs):
            self.written["".join(run.text for run in runs)] = self.expanded(heredoc, scope), heredoc.line

    @staticmethod
    def expanded(heredoc: Heredoc, scope: Scope) -> str:
        """A here-document's text, with its variables where bash would put them in."""
        if not heredoc.expands:
            return heredoc.text
        quoted = heredoc.text.replace('"', '\\"')
        try:
            word = Lexer(f'"{quoted}"', Notes(), heredoc.line).word()
        except ToolError:
            return heredoc.text
        return "".join(run.text for run in scalar(word, scope)) if word is not None else ""

    def script_of(self, words: list[Argument], scope: Scope) -> tuple[str, list[Argument]] | None:
        """(script, its arguments) where a command starts a script that is here: `bash x.sh a`, `sbatch -N 2 x.sh`, `./x.sh`."""
        names = [word.text.rpartition("/")[2] for word in words]
        if not words[0].text.endswith(SUFFIXES) and not set(names) & {*SHELLS, "sbatch"}:
            return None
        for at, word in enumerate(words):
            if (word.text.endswith(SUFFIXES) or word.text in self.written) and self.text_of(word.text, scope) is not None:
                return word.text, words[at + 1 :]
        return None
