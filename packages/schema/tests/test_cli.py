"""Commands as processes: exit codes, what goes to which stream, colours, Ctrl-C.

Subprocesses, because typer's CliRunner does not pass through the outermost handler.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jumar.schema.cli import human_bytes, say_error
from jumar.schema.errors import Exit, ToolError
from jumar.schema.options import one_of

APP = '''
import sys, time
import typer
from jumar.schema.cli import ByteProgress, CtrlC, make_app, print_json, run, say
from jumar.schema.errors import Exit, ToolError

app = make_app("tiny", "jumar-schema", "A tiny command.", epilog="Example: tiny fail 3")

@app.command()
def fail(code: int, hint: str = ""):
    """Fail with a code."""
    raise ToolError("no [bold]rope[/bold] of " + "30 metres " * 12, hint=hint or None, code=Exit(code))

@app.command()
def leave(code: int, how: str = "typer"):
    """Leave with a code."""
    if how == "typer":
        raise typer.Exit(code)
    sys.exit(code)

@app.command()
def bug():
    """Divide by zero."""
    1 / 0

@app.command()
def show(lines: int = 1):
    """Say something on both streams."""
    say("note", "for people")
    for _ in range(lines):
        print_json({"name": "Qwen \\u5343\\u95ee", "nested": {"x": [1, None, True]}})

@app.command()
def wait():
    """Wait until stopped."""
    print("ready", flush=True)
    time.sleep(60)

@app.command()
def tidy(seconds: float):
    """Wait until stopped, then put things in order, which takes so long."""
    CtrlC.PATIENCE_S = 1.0
    try:
        wait()
    finally:
        print("begun", flush=True)
        time.sleep(seconds)
        print("in order", flush=True)

@app.command()
def copy(quiet: bool = False):
    """Copy three kibibytes."""
    with ByteProgress("copy", 3072, quiet=quiet, every_s=0.0) as progress:
        for _ in range(3):
            progress(1024)

if __name__ == "__main__":
    run(app, "tiny")
'''


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("app") / "tiny.py"
    path.write_text(APP)
    return path


def call(app: Path, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(app), *map(str, args)]
    return subprocess.run(words, env=environment(**env), capture_output=True, text=True, timeout=60)


def environment(**changes: str) -> dict[str, str]:
    drop = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "PYTHONIOENCODING")
    return {k: v for k, v in os.environ.items() if k not in drop} | {"TERM": "xterm", "PYTHONUTF8": "1"} | changes


@pytest.mark.parametrize("code", [c for c in Exit if c is not Exit.OK], ids=lambda c: c.name)
def test_a_fault_of_the_user_has_its_code_and_no_traceback(code: Exit, app: Path) -> None:
    done = call(app, "fail", int(code), "--hint", "bring a longer one")
    assert done.returncode == code
    assert done.stdout == ""
    message = "error: no [bold]rope[/bold] of " + "30 metres " * 12
    assert [line.rstrip() for line in done.stderr.splitlines()] == [message.rstrip(), "hint: bring a longer one"]


def test_an_error_is_one_line_on_a_narrow_terminal_too(app: Path) -> None:
    done = call(app, "fail", 3, COLUMNS="40")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("how", ["typer", "sys"])
@pytest.mark.parametrize("code", [0, 5, 75])
def test_a_command_may_leave_with_a_code(code: int, how: str, app: Path) -> None:
    done = call(app, "leave", code, "--how", how)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    "args, word",
    [
        (["fly"], "No such command"),
        (["fail"], "Missing argument"),
        (["fail", "3", "--speed", "9"], "No such option"),
        (["fail", "three"], "Invalid value for"),
        (["--loud"], "No such option"),
    ],
    ids=["command", "argument", "option", "kind", "flag"],
)
def test_wrong_usage_is_2_and_says_what(args: list[str], word: str, app: Path) -> None:
    done = call(app, *args)
    assert done.returncode == Exit.USAGE
    assert done.stdout == ""
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_is_1_with_its_traceback(app: Path) -> None:
    done = call(app, "bug")
    assert done.returncode == Exit.BUG
    assert done.stdout == ""
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: this is a bug in tiny; please report it with the lines above"


def test_stdout_is_data_and_stderr_is_people(app: Path) -> None:
    done = call(app, "show")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"name": "Qwen 千问", "nested": {"x": [1, None, True]}}
    assert "千问" in done.stdout
    assert done.stderr == "note: for people\n"


def test_what_a_terminal_cannot_show_is_no_reason_to_stop(app: Path) -> None:
    done = call(app, "show", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "\\u5343" in done.stdout


def test_a_reader_that_leaves_early_is_no_error(app: Path) -> None:
    """As in `tiny show | head -1`."""
    words = [sys.executable, str(app), "show", "--lines", "20000"]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 0
    assert said == b"note: for people\n"


@pytest.mark.parametrize("streams", ["2>&-", "1>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-", "2>/dev/full"])
def test_streams_that_nothing_can_be_written_to(streams: str, app: Path) -> None:
    """The exit code is the command's, and a file that is written gets nobody's number."""
    for line, code in (("show", 0), ("copy", 0), ("fail 3", 3), ("fly", 2), ("leave 5", 5)):
        words = ["bash", "-c", f'"$0" "$1" {line} {streams}', sys.executable, str(app)]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == code, (line, done)
        assert "Traceback" not in done.stderr
    probe = "import os; from jumar.schema.cli import run; run(lambda **_: print(os.open('/dev/null', 0)), 'x')"
    words = ["bash", "-c", f'"$0" -c "$1" {streams}', sys.executable, probe]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)
    assert int(done.stdout or 3) > 2, done


@pytest.mark.parametrize("name", ["\x1b[2J", "\r", "\x07", "\x9b1m", "a\nhint: rm -r /", "\u202egpj"])
def test_control_characters_in_names_are_shown_and_not_obeyed(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    say_error(ToolError(f"no rope in {name}", hint=f"look into {name}"))
    said = capfd.readouterr().err
    assert name not in said
    assert said.isprintable() or said.replace("\n", "").isprintable()
    assert len(said.splitlines()) == 2


def test_ctrl_c_is_130_without_a_traceback(app: Path) -> None:
    words = [sys.executable, str(app), "wait"]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert out == ""
    assert err.strip() == "stopped"


@pytest.mark.parametrize("seconds, out", [(0.8, "in order\n"), (60, "")])  # within its patience, and when it hangs
def test_ctrl_c_pressed_again(app: Path, seconds: float, out: str) -> None:
    words = [sys.executable, str(app), "tidy", str(seconds)]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "begun\n"
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        said = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert said == (out, "\nstopped\n" if out else "")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_commands(flag: str, app: Path) -> None:
    done = call(app, flag)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "A tiny command." in done.stdout
    assert "Example: tiny fail 3" in done.stdout
    for command in ("fail", "leave", "bug", "show", "wait"):
        assert command in done.stdout
    own = call(app, "fail", flag)
    assert own.returncode == 0
    assert "Fail with a code." in own.stdout


def test_nothing_at_all_gives_the_help(app: Path) -> None:
    done = call(app)
    assert done.returncode == Exit.USAGE
    assert "A tiny command." in done.stdout + done.stderr


def test_the_version_is_the_distributions(app: Path) -> None:
    done = call(app, "--version")
    assert done.returncode == 0
    assert re.fullmatch(r"tiny \d+\.\d+\S*\n", done.stdout)
    assert done.stderr == ""


def on_a_terminal(app: Path, *args: str, **env: str) -> tuple[int, str]:
    """Exit code, and what standard error shows if it is a terminal."""
    ours, theirs = pty.openpty()
    words = [sys.executable, str(app), *args]
    process = subprocess.Popen(words, env=environment(**env), stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # so Linux says that the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(ours)
    return process.wait(60), shown.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]")


def test_a_terminal_gets_colours_unless_no_color(app: Path) -> None:
    code, shown = on_a_terminal(app, "fail", "3")
    assert code == 3
    assert COLOUR.search(shown)
    code, shown = on_a_terminal(app, "fail", "3", NO_COLOR="1")
    assert code == 3
    assert "error:" in shown
    assert not COLOUR.search(shown)


def test_progress_is_plain_lines_in_a_pipe_a_bar_on_a_terminal_and_nothing_if_quiet(app: Path) -> None:
    done = call(app, "copy")
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("copy: 1.0 KiB of 3.0 KiB, ")
    assert lines[2].startswith("copy: 3.0 KiB of 3.0 KiB, ")
    assert call(app, "copy", "--quiet").stderr == ""
    code, shown = on_a_terminal(app, "copy")
    assert code == 0
    assert "copy" in shown
    assert "\x1b[" in shown
    assert on_a_terminal(app, "copy", "--quiet") == (0, "")


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_an_error_as_text_has_its_hint() -> None:
    assert str(ToolError("no rope")) == "no rope"
    assert str(ToolError("no rope", hint="bring one")) == "no rope\nhint: bring one"
    assert ToolError("no rope").code == Exit.INPUT == 3


def test_help_names_what_other_packages_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "ropes-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ropes\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[jumar.ropes]\nstatic = ropes:STATIC\ndynamic = ropes:DYNAMIC\n")
    assert one_of("auto", group="jumar.ropes") == "auto."
    monkeypatch.syspath_prepend(tmp_path)
    assert one_of("auto", group="jumar.ropes") == "auto, dynamic or static."
    assert one_of("one", "other") == "one or other."
