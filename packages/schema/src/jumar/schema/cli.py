"""The typer app that all commands share: help, errors, exit codes, progress.

Standard output is data, standard error is people.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any, TextIO

import typer

from jumar.schema.errors import Exit, ToolError, refused_by_system

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def make_app(
    name: str, dist: str, summary: str, *, epilog: str | None = None, alone: Callable[[bool], None] | None = None
) -> typer.Typer:
    """A typer app with the house's habits: `-h`, `--version`, help when called with nothing.

    alone: called instead of that help, with whether `--json` was given.
    """
    app = typer.Typer(
        name=name,
        help=summary,
        epilog=epilog,
        no_args_is_help=alone is None,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"{name} {dist_version(dist)}")
            raise typer.Exit

    version_option = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version.")
    json_option = typer.Option(False, "--json", help="One JSON object on standard output.")

    def root(_version: bool = version_option) -> None:
        return

    def root_alone(context: typer.Context, _version: bool = version_option, as_json: bool = json_option) -> None:
        assert alone is not None
        if context.invoked_subcommand is None:
            alone(as_json)
        elif as_json:
            raise ToolError("--json stands before the command", hint="put it behind the command", code=Exit.USAGE)

    app.callback(invoke_without_command=alone is not None, help=summary)(root if alone is None else root_alone)
    return app


def mute() -> None:
    """From now on this process's standard output goes nowhere: what ranks beside the first have to say is said by that one."""
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextmanager
def stdout_for_data() -> Iterator[None]:
    """What libraries, and processes that are started meanwhile, print goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def dist_version(dist: str) -> str:
    """The installed version of a distribution."""
    try:
        return version(dist)
    except PackageNotFoundError:
        return "0+unknown"


def run(app: Callable[..., Any], name: str) -> None:
    """Runs an app as a command and exits: 0 done, 1 our bug, 2 usage, 3 input, 4 environment, 5 a check failed, 130 Ctrl-C."""
    _open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, CtrlC())
    if getattr(sys.stdout, "errors", None) in ("strict", "surrogateescape"):  # the latter in the locale C
        # a name that the terminal cannot show is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(standalone_mode=False, prog_name=name)
        if code == Exit.INTERRUPTED:
            raise KeyboardInterrupt  # newer typer makes a code of it
        sys.stdout.flush()  # here, where a fault of it is still heard
    except ToolError as fault:
        _printed_first()
        say_error(fault)
        sys.exit(fault.code)
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except (BrokenPipeError, SystemExit) as fault:
        if isinstance(fault, SystemExit) and not isinstance(fault.__context__, BrokenPipeError):
            raise  # a command's own; typer turns a broken pipe into one
        _forget(sys.stdout)
        sys.exit(Exit.OK)
    except OSError as fault:
        _forget(sys.stdout)
        say_error(refused_by_system(fault))
        sys.exit(Exit.ENVIRONMENT)
    except Exception as fault:
        sys.exit(_usage_or_bug(fault, name))
    sys.exit(code if isinstance(code, int) else Exit.OK)


def _open_streams() -> None:
    """What goes to a stream that was closed (`2>&-`) goes nowhere; its number must not become that of a file we write."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  # for as long as the process lives
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _printed_first() -> None:
    """What was printed comes before the error, also where both go through one pipe."""
    try:
        sys.stdout.flush()
    except OSError:
        _forget(sys.stdout)


def _forget(stream: TextIO) -> None:
    """Sends what is still to be written to a stream nowhere, so that nothing more is said of it on the way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _heard_or_not() -> Iterator[None]:
    """People may not be there: that nothing can be written to standard error (a full disk) is no fault of the command."""
    try:
        yield
    except OSError:
        _forget(sys.stderr)


class CtrlC:
    """Ctrl-C stops a command once: pressed again, it does not cut short what is put in order on the way out. Pressed after
    `PATIENCE_S` more, when that seems to hang, it ends the process where it stands."""

    PATIENCE_S = 3.0

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if self.first is None:
            self.first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self.first > self.PATIENCE_S:
            os._exit(Exit.INTERRUPTED)


def _interrupted() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough: on the way out nothing more is to be stopped
    with _heard_or_not():
        print("\nstopped", file=sys.stderr, flush=True)
    return Exit.INTERRUPTED


def _usage_or_bug(fault: Exception, name: str) -> int:
    """typer's own exceptions know how to show themselves; anything else is a bug of ours, with its traceback."""
    if type(fault).__name__ == "Abort":
        return _interrupted()
    show = getattr(fault, "show", None)
    if show is not None and hasattr(fault, "exit_code"):
        with _heard_or_not():
            show()
        return Exit.USAGE if type(fault).__name__ != "FileError" else Exit.INPUT
    traceback.print_exc()
    print(f"error: this is a bug in {name}; please report it with the lines above", file=sys.stderr)
    return Exit.BUG


def say_error(fault: ToolError) -> None:
    """`error:` and `hint:` on standard error, in colour on a terminal."""
    say("error", fault.message, "bold red")
    if fault.hint:
        say("hint", fault.hint, "bold cyan")


def say(word: str, text: str, colour: str = "bold yellow") -> None:
    """One line for people: a coloured word, then plain text, whatever names are in it."""
    from rich.text import Text

    with _heard_or_not():
        stderr().print(Text.assemble((f"{word}:", colour), f" {escaped(text)}"), soft_wrap=True)


def escaped(text: str) -> str:
    """Text without control characters, which files' names may hold and terminals obey: "\\x1b" for escape."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def stderr() -> Any:
    """A rich console on standard error (it honours NO_COLOR and COLUMNS)."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json_text(value, indent=2, allow_nan=False))


def json_text(value: Any, *, indent: int | None = None, allow_nan: bool = True) -> str:
    """JSON for standard output: characters as they are, escaped as JSON has it where the stream's encoding lacks some."""
    shows_all = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    return json.dumps(value, indent=indent, ensure_ascii=not shows_all, allow_nan=allow_nan)


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class ByteProgress:
    """Progress in bytes: a bar on a terminal, one plain line every few seconds elsewhere, nothing if `quiet`."""

    def __init__(self, label: str, total: int, *, quiet: bool = False, every_s: float = 5.0) -> None:
        self.label, self.total, self.every_s = label, max(total, 1), every_s
        self.done, self.start, self._last = 0, time.monotonic(), time.monotonic()
        self._bar: Any = None
        self._lock = threading.Lock()
        self.quiet = quiet

    def __enter__(self) -> ByteProgress:
        if not self.quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=stderr(), transient=True)
            self._bar.start()
            self._bar.add_task(self.label, total=self.total)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, count: int) -> None:
        """`count` more bytes are done. Threads may say so at the same time."""
        with self._lock:
            self.set(self.done + count, self.total)

    def set(self, done: int, total: int) -> None:
        """`done` of `total` bytes are done."""
        self.done, self.total = done, max(total, 1)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=self.total)
        elif not self.quiet and time.monotonic() - self._last > self.every_s:
            self._last = time.monotonic()
            rate = self.done / (self._last - self.start)
            left = (self.total - self.done) / max(rate, 1)
            share = f"{human_bytes(self.done)} of {human_bytes(self.total)}"
            with _heard_or_not():
                print(f"{self.label}: {share}, {human_bytes(rate)}/s, {left:.0f} s left", file=sys.stderr)
