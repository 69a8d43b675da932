"""What the failure tests share: small checkpoints to damage, the real command as a process, what a refusal looks like.

No torch: safetensors are written by hand, shards by the converter itself, and changed through its own reader and writer.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jumar.ckpt_convert import open_checkpoint
from jumar.ckpt_convert.convert import plan_hf, plan_megatron, run_plan
from jumar.ckpt_convert.formats.archive import ArchiveLayout, Global, TensorSpec, read_archive
from jumar.ckpt_convert.formats.inert import Inert
from jumar.ckpt_convert.tensors import DTYPES, TensorRef
from jumar.schema.parallel import ParallelLayout
from jumar.schema.registry import family_of

COMMAND = shutil.which("jumar-convert", path=os.path.dirname(sys.executable)) or "jumar-convert"
ITERATION = "iter_0000001"
Header = dict[str, Any]


# The command


@dataclass(frozen=True)
class Run:
    """A finished process."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"{' '.join(self.args)}\nexit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def environment(**more: str) -> dict[str, str]:
    """A plain environment: no colours asked for or forbidden, no terminal's width, one thread for numpy."""
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "CLICOLOR", "TERM", "PYTHONPATH")
    plain = {k: v for k, v in os.environ.items() if k not in unwanted}
    return plain | {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | more


STARTER = """
import contextlib, gc, io, json, os, sys
import jumar.ckpt_convert.inspection, jumar.ckpt_convert.show, rich.console, yaml
from jumar.ckpt_convert import *
from jumar.ckpt_convert.cli import app, main
with contextlib.redirect_stdout(io.StringIO()):
    app(["families"], standalone_mode=False)  # imports what the parser needs
gc.freeze()
while line := sys.stdin.readline():
    job = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, (path, mode) in enumerate(job["files"]):
    os.dup2(os.open(path, mode), number)
os.environ.clear()
os.environ.update(job["env"])
os.chdir(job["cwd"])
sys.argv = ["jumar-convert", *job["args"]]
exec(job["code"], {})
main()
"""


class Starter:
    """Runs the command in processes of their own, which fork from one that has imported it.

    Python takes longer to start than most of these tests to run. From `main()` on, and to its very exit, the process is
    that of the command.
    """

    def __init__(self) -> None:
        self.files = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    def __call__(self, args: tuple[str, ...], code: str, cwd: Path | None) -> Run:
        out, err = (Path(self.files.name) / name for name in ("out", "err"))
        new = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        files = [("/dev/null", os.O_RDONLY), (str(out), new), (str(err), new)]
        job = dict(args=args, code=code, env=environment(), cwd=str(cwd or Path.cwd()), files=files)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = self.process.stdout.readline()
        said = (path.read_bytes().decode("utf-8", "backslashreplace") for path in (out, err))
        return Run((COMMAND, *args), int(status), *said)


@functools.cache
def starter() -> Starter:
    return Starter()


def run(
    *args: object, code: str = "", prefix: Sequence[str] = (), env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Run:
    """`jumar-convert ARGS` as a process of its own, in which `code` has changed something before; behind `prefix`."""
    words = tuple(map(str, args))
    if not prefix and not env:
        return starter()(words, code, cwd)
    assert not code
    return execute((*prefix, COMMAND, *words), env=env, cwd=cwd)


def execute(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 120
) -> Run:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=timeout,
        env=environment(**(env or {})),
        cwd=cwd,
        check=False,
    )
    return Run(tuple(command), done.returncode, done.stdout, done.stderr)


def python(code: str, *args: object) -> list[str]:
    """A command line that runs the converter after `code` has changed it: `python -c CODE ARGS`."""
    return [sys.executable, "-c", f"{code}\nfrom jumar.ckpt_convert.cli import main\nmain()", *map(str, args)]


def ok(result: Run) -> Run:
    """Asserts that a run succeeded."""
    assert result.code == 0, str(result)
    assert "Traceback" not in result.err, str(result)
    return result


def as_json(*args: object) -> dict[str, Any]:
    """What `--json` prints: one object, nothing else, and nothing for people that is not a warning."""
    found: dict[str, Any] = json.loads(ok(run(*args, "--json")).out, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


def refused(result: Run, code: int, *words: str, hint: bool = True) -> str:
    """Asserts a refusal that a person can act on, and returns its text.

    The exit code; `error:` with all of `words`; `hint:`; no traceback; nothing on standard output.
    """
    assert result.code == code, str(result)
    assert "Traceback" not in result.err, str(result)
    assert "this is a bug" not in result.err, str(result)
    assert result.out == "", str(result)
    lines = result.err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, str(result)
    assert any(line.startswith("hint: ") and len(line) > 10 for line in lines) or not hint, str(result)
    for word in words:
        assert word in result.err, f"{word!r} is not said:\n{result}"
    return result.err


def usage_refused(result: Run, *words: str) -> None:
    """Asserts a refusal of the command line by its parser: exit 2, its own wording, no traceback."""
    assert result.code == 2, str(result)
    assert "Traceback" not in result.err, str(result)
    assert result.out == "", str(result)
    for word in words:
        assert word in result.err, f"{word!r} is not said:\n{result}"


def untouched(dst: Path) -> None:
    """Asserts that nothing was made at a target or beside it."""
    left = sorted(p.name for p in dst.parent.iterdir() if p.name.startswith(dst.name)) if dst.parent.exists() else []
    assert left == [], left


def contents(root: Path) -> dict[str, str]:
    """Every file below a directory: relative path -> size and sha256."""
    return {
        str(p.relative_to(root)): f"{p.stat().st_size} {hashlib.sha256(p.read_bytes()).hexdigest()}"
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def times(root: Path) -> dict[str, int]:
    """Every file and directory below a directory -> its time of change in ns."""
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in sorted(root.rglob("*"))}


# Hugging Face directories


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    config = {**family_of(family).tiny, **changes}
    return {k: v for k, v in config.items() if v is not ...}


def model(path: Path, family: str = "llama", *, dtype: str = "F32", seed: int = 0, **changes: Any) -> Path:
    """A Hugging Face directory of a family's tiny model, random values below 2. changes: config keys (`...` removes one)."""
    config = tiny_config(family, **changes)
    described = family_of(family)
    random = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (dtype, shape, below_two(random.bytes(math.prod(shape) * DTYPES[dtype].itemsize), DTYPES[dtype].itemsize))
        for name, shape in described.hf_tensors(described.spec(config)).items()
    }
    write_safetensors(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    (path / "generation_config.json").write_text('{"do_sample": true}')
    (path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return path


def below_two(data: bytes, itemsize: int) -> bytes:
    """Clears the highest bit of each floating-point number's exponent."""
    values = np.frombuffer(data, np.uint8).copy()
    values[itemsize - 1 :: itemsize] &= 0xBF
    return values.tobytes()


def copied(source: Path, path: Path) -> Path:
    """A copy of a checkpoint, to be damaged."""
    shutil.copytree(source, path)
    return path


Tensors = dict[str, tuple[str, Sequence[int], bytes]]


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """A safetensors file of (dtype, shape, bytes)."""
    header: Header = {}
    here = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [here, here + len(data)]}
        here += len(data)
    write_raw(path, json.dumps(header).encode(), b"".join(data for _, _, data in tensors.values()))


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_raw(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def read_all(path: Path) -> Tensors:
    """A safetensors file as (dtype, shape, bytes)."""
    header, data = read_raw(path)
    return {n: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for n, e in header.items() if n != "__metadata__"}


def edit_tensors(path: Path, change: Callable[[Tensors], object]) -> None:
    """Rewrites a safetensors file with other tensors."""
    tensors = read_all(path)
    change(tensors)
    write_safetensors(path, tensors)


def edit_header(path: Path, change: Callable[[Header], object]) -> None:
    """Rewrites a safetensors file's header, and leaves its data."""
    header, data = read_raw(path)
    change(header)
    write_raw(path, json.dumps(header).encode(), data)


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; `...` removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def split(directory: Path, parts: int = 3) -> list[Path]:
    """Spreads model.safetensors over indexed shards."""
    single = directory / "model.safetensors"
    tensors = read_all(single)
    names = list(tensors)
    weight_map, files = {}, []
    for part in range(parts):
        file = directory / f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        mine = names[part::parts]
        write_safetensors(file, {n: tensors[n] for n in mine})
        weight_map |= dict.fromkeys(mine, file.name)
        files.append(file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    single.unlink()
    return files


# Megatron directories


def megatron(path: Path, source: Path, *, dialect: str = "mcore", expert_layout: str = "sequential", **layout: Any) -> Path:
    """A Megatron checkpoint of a source, under a layout."""
    made = plan_megatron(
        open_checkpoint(source),
        ParallelLayout(**layout),
        dialect=dialect,
        expert_layout=expert_layout,  # type: ignore[arg-type]
    )
    assert run_plan(made, path)
    return path


def huggingface(path: Path, source: Path) -> Path:
    assert run_plan(plan_hf(open_checkpoint(source)), path)
    return path


def shard(root: Path, name: str) -> Path:
    """The file of a rank: shard(root, "00") or shard(root, "01_001")."""
    return root / ITERATION / f"mp_rank_{name}" / "model_optim_rng.pt"


def edit_shard(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites a shard with other content. Numpy arrays may stand for new tensors."""
    tree: Any = read_archive(file)
    change(tree)
    write_archive(file, tree)


def write_archive(file: Path, tree: object) -> None:
    """A torch.save file of a tree of plain values, refs and numpy arrays."""
    data: list[bytes] = []

    def writable(value: Any) -> Any:
        if isinstance(value, TensorRef):
            data.append(tensor_bytes(value))
            return TensorSpec(value.dtype, value.shape)
        if isinstance(value, np.ndarray):
            data.append(value.tobytes())
            return TensorSpec(next(n for n, d in DTYPES.items() if d == value.dtype), value.shape)
        if isinstance(value, Inert):
            return Global(value.module, value.name)
        if isinstance(value, argparse.Namespace):
            return argparse.Namespace(**{k: writable(v) for k, v in vars(value).items()})
        if isinstance(value, dict):
            return {k: writable(v) for k, v in value.items()}
        return type(value)(map(writable, value)) if isinstance(value, list | tuple) else value

    layout = ArchiveLayout.plan(writable(tree))
    beside = file.with_suffix(".new")
    with beside.open("wb") as out:
        layout.write_skeleton(out.fileno())
        for record, content in zip(layout.records, data, strict=True):
            assert record.nbytes == len(content)
            os.pwrite(out.fileno(), content, record.offset)
        layout.finish(out.fileno(), [zlib.crc32(content) for content in data])
    beside.replace(file)


def tensor_bytes(ref: TensorRef) -> bytes:
    dtype = DTYPES[ref.dtype]
    strides = [s * dtype.itemsize for s in ref.strides]
    return np.ndarray(ref.shape, dtype, ref.file.read_bytes(), ref.offset, strides).tobytes()


def flip(file: Path, offset: int) -> None:
    """Inverts the bits of one byte."""
    with file.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 0xFF]))


def flip_tensor(file: Path, name: str, key: str = "model") -> None:
    """Changes one byte in the middle of a tensor of a shard."""
    ref = read_archive(file)[key][name]  # type: ignore[index]
    flip(file, ref.offset + ref.nbytes // 2)


def hostile(path: Path, victim: Path) -> None:
    """A torch.save file whose pickle, if it were run, would make `victim`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = b"\x80\x02cos\nsystem\nq\x00X" + struct.pack("<I", len(f"touch {victim}")) + f"touch {victim}".encode() + b"\x85R."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")


# Other circumstances

MOUNTED = """
import json, subprocess, sys
place, options, commands = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
done = [subprocess.run(c, capture_output=True, text=True, stdin=subprocess.DEVNULL) for c in commands]
print(json.dumps([[d.returncode, d.stdout, d.stderr] for d in done]))
"""


def on_a_disk(place: Path, options: str, *commands: Sequence[object]) -> list[Run]:
    """Runs commands one after another with a file system of its own at `place`, which is there for them alone."""
    needs_namespace("-rm", "mounting a file system")
    lines = [[str(part) for part in command] for command in commands]
    result = execute(["unshare", "-rm", sys.executable, "-c", MOUNTED, str(place), options, json.dumps(lines)])
    assert result.code == 0, str(result)
    return [Run(tuple(line), *done) for line, done in zip(lines, json.loads(result.out), strict=True)]


def needs_namespace(flags: str, what: str) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, flags, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{what} takes `unshare {flags}`, which this machine does not permit (in a container: run it privileged)")


def without_privileges() -> list[str]:
    """A prefix under which even root may do only what a file's mode says."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root reads and writes everything, and cannot lay that down here: run the tests as a user")
    return prefix


@dataclass
class Started:
    """A process that runs."""

    process: subprocess.Popen[str]

    def wait(self, timeout: float = 120) -> Run:
        out, err = self.process.communicate(timeout=timeout)
        return Run(tuple(map(str, self.process.args)), self.process.returncode, out, err)  # type: ignore[arg-type]


def started(command: Sequence[str]) -> Started:
    """Starts a command and does not wait for it. It hears SIGHUP also where the tests run under nohup, which it would inherit."""
    heard, pipe = signal.signal(signal.SIGHUP, signal.SIG_DFL), subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment())
    finally:
        signal.signal(signal.SIGHUP, heard)
    return Started(process)


def wait_for(condition: Callable[[], object], timeout: float = 60, every_s: float = 0.005) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(every_s)
