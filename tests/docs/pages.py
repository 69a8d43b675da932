"""Pages of the documentation: their blocks, and the commands in them, run in a directory as a reader would."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

sys.path += [str(Path(__file__).parents[n] / name) for n, name in ((1, "e2e"), (2, "scripts"))]  # as pytest does
import forked
from chinese import rows as rows
from chinese import translator as translator

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/*.md")])
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CONVERT, DATA, TRAIN, INFER, EVAL, MIGRATE = (DOCS / f"{n}.md" for n in ("convert", "data", "train", "infer", "eval", "migrate"))
QUICKSTART, FAMILIES, FAQ, SUPPORT, PIPELINES = (
    DOCS / f"{n}.md" for n in ("quickstart", "families", "faq", "support", "pipelines")
)
GUIDES = DOCS / "guides"
BOTH = sorted([*DOCS.glob("*.md"), *GUIDES.glob("*.md")])  # each in docs/zh too
TRANSLATED = {README: ROOT / "README.zh-CN.md"} | {page: DOCS / "zh" / page.relative_to(DOCS) for page in BOTH}
DEMO = ROOT / "runs/demo/hf"
COLUMNS = 100


@dataclass(frozen=True)
class Program:
    """A command of ours: where it begins, the page that documents every option, its commands as its help lists them."""

    module: str
    page: Path
    commands: tuple[str, ...]


PROGRAMS = {
    "jumar": Program("jumar.chain.cli", MIGRATE, ("migrate",)),
    "jumar-convert": Program(
        "jumar.ckpt_convert.cli", CONVERT, ("to-megatron", "to-hf", "merge-lora", "to-peft", "verify", "inspect", "families")
    ),
    "jumar-data": Program(
        "jumar.data_prep.cli",
        DATA,
        (
            *("pretrain", "sft", "pairwise", "process-reward", "prompts"),
            *("inspect", "merge", "split", "blend", "report", "templates"),
        ),
    ),
    "jumar-eval": Program("jumar.eval.cli", EVAL, ("run", "list", "compare", "report")),
    "jumar-infer": Program("jumar.infer.cli", INFER, ("generate", "chat", "serve", "score")),
    "jumar-train": Program("jumar.train_core.cli", TRAIN, ("pretrain", "sft", "schema", "doctor")),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- blocks of a page


@dataclass(frozen=True)
class Block:
    """A fenced block: line number of its fence (from 0), its language, the comment before it without brackets, its content."""

    line: int
    language: str
    marker: str
    content: tuple[str, ...]

    def steps(self) -> list[tuple[str, list[str]]]:
        """Commands, each with the lines that it prints."""
        steps: list[tuple[str, list[str]]] = []
        for line in self.content:
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
        return steps


def blocks(page: Path) -> list[Block]:
    found, start, before = [], None, ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if start is None:
                start, before = number, lines[number - 1] if number else ""
            else:
                comment = re.fullmatch(r"<!-- (.*) -->", before)
                marker = comment[1] if comment else ""
                found.append(Block(start, lines[start].strip("`"), marker, tuple(lines[start + 1 : number])))
                start = None
    assert start is None, f"{page}: a fence is not closed"
    return found


# --- running them


@dataclass(frozen=True)
class Play:
    """What is run of a page: the blocks with this marker, in a directory with the page's files and those of other pages."""

    page: Path
    marker: str = "run"
    files_of: tuple[Path, ...] = ()
    columns: int = COLUMNS
    slow: bool = False

    @property
    def apart(self) -> bool:
        """Whether a package is installed on the way, which a process that runs does not see."""
        return "$ pip install" in self.page.read_text(encoding="utf-8")


RUNNABLE = [
    *(Play(CONVERT), Play(DATA), Play(INFER), Play(EVAL, files_of=(INFER,)), Play(FAMILIES, files_of=(CONVERT,))),
    Play(README, "run data", files_of=(DATA,)),
    Play(TRAIN, files_of=(DATA,), columns=120),
    Play(MIGRATE, files_of=(DATA,), columns=120),
    Play(PIPELINES, files_of=(DATA,)),
    Play(QUICKSTART, files_of=(DATA, TRAIN), columns=120),
    Play(FAQ, files_of=(CONVERT, DATA, TRAIN), columns=120),
    Play(GUIDES / "convert-megatron.md", files_of=(CONVERT,)),
    Play(GUIDES / "add-a-benchmark.md", files_of=(INFER,)),
    Play(GUIDES / "add-a-family.md", files_of=(CONVERT, FAMILIES), slow=True),
    Play(GUIDES / "add-a-device.md", files_of=(INFER,), slow=True),
    Play(GUIDES / "sft-one-node.md", files_of=(DATA,), columns=120),
    Play(GUIDES / "multi-node.md", files_of=(DATA, GUIDES / "sft-one-node.md"), columns=120),
]
TOUR = Play(README, "run demo")


class Terminal:
    """Runs commands in a directory: our own in this process, trainings of one rank as forks, which is faster, others in bash.

    apart: every command is a process of its own (for packages that are installed on the way).
    """

    def __init__(self, home: Path, *, apart: bool = False, columns: int = COLUMNS) -> None:
        self.home, self.apart, self.code, self.path = home, apart, 0, [str(Path(sys.executable).parent)]
        self.columns = columns
        self.python_path: list[str] = []

    def run(self, command: str) -> list[str]:
        """What the command prints, standard output and standard error together."""
        if command == "echo $?":
            return [str(self.code)]
        if command.startswith("pip install"):
            return self._install(Path(self.home, shlex.split(command)[-1]))
        alone = command.split()[0] in PROGRAMS and not re.search(r"[|&><;$*]", command) and not self.apart
        run = self._bash
        if alone and not trains(command):
            run = self._here
        elif alone and one_rank(command):
            run = self._forked
        text = run(command)
        lines = [line.rstrip() for line in text.replace(str(self.home.resolve()), "/models").splitlines()]
        while lines and not lines[0]:
            del lines[0]
        while lines and not lines[-1]:
            del lines[-1]
        return lines

    def _here(self, command: str) -> str:
        words = shlex.split(command)
        main = importlib.import_module(PROGRAMS[words[0]].module).main
        printed, before = io.StringIO(), os.getcwd()
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            mock.patch.dict(os.environ, self.environment()),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "argv", words)
            for name in ("fsync", "fdatasync"):  # nobody here waits for the disk
                patch.setattr(os, name, lambda fd: None)
            # One core: jumar-data then forks no workers, which a process with pytest's and torch's threads should not do.
            patch.setattr(os, "sched_getaffinity", lambda pid: {0})
            os.chdir(self.home)
            try:
                main()
            except SystemExit as end:
                self.code = int(end.code or 0)
            finally:
                os.chdir(before)
        return printed.getvalue()

    def _forked(self, command: str) -> str:
        out = self.home / ".printed"
        started = forked.start(shlex.split(command)[1:], out, {**os.environ, **self.environment()}, cwd=self.home)
        (self.code,) = forked.end([started], timeout=600)
        text = out.read_text()
        out.unlink()
        return text

    def _bash(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=self.home,
            env={**os.environ, **self.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        self.code = done.returncode
        return done.stdout

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([*self.path, os.environ["PATH"]])
        python_path = os.pathsep.join([*self.python_path, *filter(None, [os.environ.get("PYTHONPATH")])])
        plain = {"COLUMNS": str(self.columns), "NO_COLOR": "1", "FORCE_COLOR": "", "LC_ALL": "C.UTF-8"}
        plain |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}  # losses of one thread are the same again
        return {**plain, "PATH": path, "PYTHONPATH": python_path}

    def _install(self, project: Path) -> list[str]:
        """What pip would do with a project of one module and entry points, without an index."""
        settings = (project / "pyproject.toml").read_text()
        name, version = (re.search(rf'^{key} = "(.*)"$', settings, re.MULTILINE)[1] for key in ("name", "version"))
        group, entries = re.search(r'^\[project\.entry-points\."(.*)"\]\n((?:.+\n?)+)', settings, re.MULTILINE).groups()
        info = project / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n" + entries.replace('"', ""))
        self.python_path.append(str(project))
        self.code = 0
        return []


def trains(command: str) -> bool:
    """Whether a command becomes a training: that mends torch and megatron-core for the whole of its process."""
    return command.startswith(("jumar-train pretrain", "jumar-train sft")) and "--dry-run" not in command


def one_rank(command: str) -> bool:
    return "--nproc" not in command


PROGRESS = re.compile(r"[a-z]+: [\d.]+ [KMG]?i?B")  # a plain line every five seconds where there is no terminal
SMALL_DISK = re.compile(r"warning: save\.path .* are free; ")  # of a dry run, where the machine's disk is smaller than the run's


def comparable(lines: list[str]) -> list[str]:
    """Without what differs from run to run: seconds, rates, progress, which slow machines see, small disks; and empty lines."""
    text = "\n".join(line for line in lines if line.strip() and not (PROGRESS.match(line) or SMALL_DISK.match(line)))
    text = re.sub(r"in [\d.]+ s( \([\d.]+ [KMG]?i?B/s\))?", "in T s", text)
    text = re.sub(r"[\d.]+[kMG]? tokens/s  (\d+ d )?[\d:]{8} left", "R tokens/s  T left", text)
    return re.sub(r'"seconds": [\d.]+', '"seconds": T', text).splitlines()


def alike(printed: list[str], shown: list[str]) -> bool:
    """Whether two outputs say the same. The numbers of a training step may differ by the rounding of another CPU's sums."""
    pairs = list(zip(comparable(printed), comparable(shown), strict=False))
    if len(comparable(printed)) != len(comparable(shown)):
        return False
    return all(ours == theirs or _rounded_alike(ours, theirs) for ours, theirs in pairs)


def _rounded_alike(ours: str, theirs: str) -> bool:
    number = r"\d+\.\d+"
    if not ours.startswith(("step ", '{"step": ')) or re.sub(number, "", ours) != re.sub(number, "", theirs):
        return False
    found, wanted = ([float(text) for text in re.findall(number, line)] for line in (ours, theirs))
    return found == pytest.approx(wanted, rel=2e-3)


def write_files(page: Path, home: Path) -> None:
    for block in blocks(page):
        if block.marker.startswith("file "):
            path = home / block.marker.removeprefix("file ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(block.content) + "\n", encoding="utf-8")


def play(what: Play, terminal: Terminal) -> Iterator[tuple[Block, str, list[str], list[str]]]:
    """Carries a page out. Yields (block, command, lines shown, lines printed)."""
    for page in (*what.files_of, what.page):
        write_files(page, terminal.home)
    for block in (b for b in blocks(what.page) if b.marker == what.marker):
        steps = block.steps()
        for number, (command, shown) in enumerate(steps):
            printed = terminal.run(command)
            says_so = any(line.startswith("error:") for line in printed)
            asked = number + 1 < len(steps) and steps[number + 1][0] == "echo $?"
            where = f"{relative(what.page)}: {command}: exit code {terminal.code}\n" + "\n".join(printed)
            assert asked or command == "echo $?" or (terminal.code != 0) == says_so, where
            yield block, command, shown, printed
