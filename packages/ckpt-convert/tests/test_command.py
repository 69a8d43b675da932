"""What the command prints, to whom, and how soon: help, plans, inspections, comparisons, progress, and names of any kind."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import failing
from failing import (
    ITERATION,
    as_json,
    contents,
    copied,
    edit_shard,
    execute,
    flip_tensor,
    huggingface,
    megatron,
    ok,
    refused,
    run,
    shard,
)
from jumar.schema.cli import escaped

COMMANDS = ["to-megatron", "to-hf", "merge-lora", "to-peft", "verify", "inspect", "families"]
HF = "self_attn.q_proj.weight"
ESCAPE = "\x1b"


# Help


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, flag: str) -> None:
    result = ok(execute([failing.COMMAND, *command.split(), flag]))
    assert "Usage: jumar-convert" in result.out
    assert result.err == ""
    for name in COMMANDS if not command else []:
        assert name in result.out


def test_help_explains_every_flag_of_the_layout() -> None:
    text = ok(run("to-megatron", "--help")).out
    layout = "tp pp vpp layers-per-stage schedule noop-layers ep etp expert-layout dialect vocab-divisible-by"
    for flag in (*layout.split(), "dtype", "plan", "resume", "force", "threads", "json"):
        assert f"--{flag} " in text


def test_version() -> None:
    result = ok(execute([failing.COMMAND, "--version"]))
    assert re.fullmatch(r"jumar-convert \d+\.\d+\.\d+\S*\n", result.out)


@pytest.mark.parametrize("start", [[failing.COMMAND], [sys.executable, "-m", "jumar.ckpt_convert"]])
def test_exit_codes(start: list[str], llama: Path, tmp_path: Path) -> None:
    """Of the command as it is installed, and of the module."""
    other = failing.model(tmp_path / "other", seed=1)
    for code, line in (
        (0, ["verify", llama, llama]),
        (2, ["verify", llama]),
        (2, ["to-hf", llama, tmp_path / "out", "--max-shard-size", "big"]),
        (3, ["inspect", tmp_path / "nowhere"]),
        (4, ["to-hf", llama, tmp_path / ("x" * 250)]),
        (5, ["verify", llama, other]),
    ):
        result = execute([*start, *map(str, line)])
        assert result.code == code, str(result)
        assert result == dataclasses.replace(run(*line), args=result.args)


def test_without_a_command() -> None:
    result = run()
    assert result.code == 2
    assert "to-megatron" in result.out + result.err
    assert "Traceback" not in result.err


# Data


def test_json_of_a_conversion(llama: Path, tmp_path: Path) -> None:
    there = as_json("to-megatron", llama, tmp_path / "mcore", "--tp", 2, "--pp", 2)
    counts = {"hf_tensors", "files", "tensors", "copies", "replicas", "padding_elements", "source_padding_elements"}
    counts |= {"dropped", "bytes"}
    assert set(there) == {"out", "already_done", "seconds"} | counts
    assert there["out"] == str(tmp_path / "mcore")
    assert (there["already_done"], there["files"], there["hf_tensors"], there["dropped"]) == (False, 4, 39, 0)
    assert there["padding_elements"] == 2 * 64
    back = as_json("to-hf", tmp_path / "mcore", tmp_path / "hf")
    assert set(back) == set(there)
    assert (back["padding_elements"], back["source_padding_elements"]) == (0, 2 * 64)
    again = as_json("to-hf", tmp_path / "mcore", tmp_path / "hf")
    assert set(again) == set(there)
    assert again["already_done"] is True


def test_plan_writes_nothing(llama: Path, sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    before = failing.times(tmp_path)
    for dst in (tmp_path / "out", tmp_path / "full", tmp_path / "a" / "b"):
        text = ok(run("to-megatron", llama, dst, "--tp", 2, "--plan", "--dtype", "bf16")).out
        assert f"{ITERATION}/mp_rank_01/model_optim_rng.pt" in text
        assert "proven every byte of 39 tensors is used exactly once" in text
        assert "not bit-exact 54 tensors cast from F32 to BF16" in text
        assert "model-00001-of-000" in ok(run("to-hf", sharded, dst, "--plan", "--max-shard-size", "100KB")).out
    assert failing.times(tmp_path) == before


def test_json_of_a_plan(llama: Path, tmp_path: Path) -> None:
    plan = as_json("to-megatron", llama, tmp_path / "out", "--tp", 2, "--plan")
    assert set(plan) == {"files", "sidecars", "bytes", "counts", "casts"}
    assert [set(file) for file in plan["files"]] == [{"path", "bytes", "tensors"}] * 2
    small = ["config", "generation_config", "tokenizer", "tokenizer_config"]
    assert plan["sidecars"] == [*(f"hf/{name}.json" for name in small), "latest_checkpointed_iteration.txt"]
    ok(run("to-megatron", llama, tmp_path / "out", "--tp", 2))
    for file in plan["files"]:
        assert (tmp_path / "out" / file["path"]).stat().st_size == file["bytes"]
    cast = as_json("to-megatron", llama, tmp_path / "other", "--dtype", "fp16", "--plan")
    assert cast["casts"] == [{"from": "F32", "to": "F16", "tensors": 27}]


BOTH = {
    *(
        "path",
        "format",
        "model_type",
        "parameters",
        "tensors",
        "bytes",
        "dtypes",
        "spec",
        "files",
        "hf_files",
        "dropped",
        "notes",
    ),
}
MEGATRON_ONLY = {"iteration", "layout", "dialect", "mla_mm_split", "expert_layout", "padded_vocab_size", "ranks", "optimizer"}


def test_inspect_hugging_face(llama: Path) -> None:
    found = as_json("inspect", llama)
    assert set(found) == BOTH
    assert (found["format"], found["model_type"], found["tensors"], found["files"]) == ("huggingface", "llama", 39, 1)
    assert found["path"] == [str(llama)]
    assert found["dtypes"] == {"F32": 39}
    assert found["bytes"] == found["parameters"] * 4 == (llama / "model.safetensors").stat().st_size - 8 - header_size(llama)
    text = ok(run("inspect", llama)).out
    for word in ("huggingface", "llama", f"{found['parameters']:,}", "F32 (39 tensors)", "num_layers", "131", str(llama)):
        assert word in text


def header_size(hf: Path) -> int:
    return int.from_bytes((hf / "model.safetensors").read_bytes()[:8], "little")


def test_inspect_megatron(sharded: Path, moe: Path, tmp_path: Path) -> None:
    found = as_json("inspect", sharded)
    assert set(found) == BOTH | MEGATRON_ONLY
    assert (found["format"], found["layout"], found["dialect"], found["padded_vocab_size"]) == (
        "megatron",
        "tp=2 pp=2",
        "mcore",
        132,
    )
    assert found["expert_layout"] is None
    assert sorted(found["ranks"]) == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    text = ok(run("inspect", sharded)).out
    for word in ("tp=2 pp=2", "mcore", "131, padded to 132", "mp_rank_01_001", "iteration"):
        assert word in text
    grouped = megatron(tmp_path / "moe", moe, tp=2, ep=4, etp=1, pp=4, vpp=1, dialect="te", expert_layout="grouped")
    found = as_json("inspect", grouped)
    assert (found["layout"], found["dialect"], found["expert_layout"]) == ("tp=2 pp=4 ep=4 etp=1", "te", "grouped")
    assert len(found["ranks"]) == 16
    for place in (sharded / ITERATION, sharded):
        assert as_json("inspect", place)["layout"] == "tp=2 pp=2"


def test_families() -> None:
    found = as_json("families")
    text = ok(run("families")).out
    assert {"llama", "qwen3_moe", "deepseek_v3", "gpt2", "mamba2"} <= set(found)
    for name, facts in found.items():
        assert set(facts) == {"architecture", "dialects"}
        assert name in text
        assert facts["architecture"] in text


# Megatron to Megatron


def test_chain_of_layouts(llama: Path, sharded: Path, tmp_path: Path) -> None:
    """TP 2 PP 2, then TP 1, then TP 4: the shards are those of a direct conversion."""
    ok(run("to-megatron", sharded, tmp_path / "one"))
    ok(run("to-megatron", tmp_path / "one", tmp_path / "four", "--tp", 4))
    direct = contents(megatron(tmp_path / "direct", llama, tp=4))
    chained = contents(tmp_path / "four")
    assert {n: v for n, v in chained.items() if n != "manifest.json"} == {n: v for n, v in direct.items() if n != "manifest.json"}
    assert ok(run("verify", llama, tmp_path / "four")).out.startswith("equal")
    ok(run("to-hf", tmp_path / "four", tmp_path / "back"))
    assert failing.read_all(tmp_path / "back" / "model.safetensors") == failing.read_all(llama / "model.safetensors")


def test_tracker_is_honoured(llama: Path, sharded: Path, tmp_path: Path) -> None:
    source = copied(sharded, tmp_path / "mcore")
    shutil.copytree(source / ITERATION, source / "iter_0000020")
    for file in source.glob("iter_0000020/*/*.pt"):
        edit_shard(file, lambda tree: tree.update(iteration=20))
        edit_shard(file, later)
    assert as_json("inspect", source)["iteration"].lstrip("0") == "1"
    assert ok(run("verify", llama, source)).code == 0
    (source / "latest_checkpointed_iteration.txt").write_text("20\n")
    assert as_json("inspect", source)["iteration"].lstrip("0") == "20"
    assert run("verify", llama, source).code == 5
    assert as_json("inspect", source, "--iteration", "1")["iteration"].lstrip("0") == "1"
    ok(run("to-megatron", source, tmp_path / "out", "--tp", 1))
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text().strip().lstrip("0") == "20"
    assert (tmp_path / "out" / "iter_0000020").is_dir()


def later(tree: dict[str, Any]) -> None:
    for key in [k for k in tree["model"] if k.endswith("layernorm.weight")]:
        tree["model"][key] = np.ones(tree["model"][key].shape, np.float32)


def test_several_nodes(sharded: Path, tmp_path: Path) -> None:
    a, b = copied(sharded, tmp_path / "node0"), copied(sharded, tmp_path / "node1")
    for tp in ("00", "01"):
        shutil.rmtree(shard(a, f"{tp}_001").parent)
        shutil.rmtree(shard(b, f"{tp}_000").parent)
    found = as_json("inspect", a, b)
    assert found["path"] == [str(a), str(b)]
    assert len(found["ranks"]) == 4
    ok(run("to-megatron", a, b, tmp_path / "out", "--tp", 4))
    ok(run("verify", sharded, tmp_path / "out"))


# People and pipes

EVERY_LINE = "import jumar.schema.cli as cli\ncli.ByteProgress.__init__.__kwdefaults__['every_s'] = 0.0"
PROGRESS = re.compile(r"(writing|verify): \d+(\.\d)? ([KMG]i)?B of \d+(\.\d)? ([KMG]i)?B, \d+(\.\d)? ([KMGT]i)?B/s, \d+ s left")


def test_progress_in_a_pipe_is_plain_lines(llama: Path, sharded: Path, tmp_path: Path) -> None:
    for line in (["to-megatron", llama, tmp_path / "out", "--pp", 2], ["verify", llama, sharded]):
        result = ok(run(*line, code=EVERY_LINE))
        lines = result.err.splitlines()
        assert len(lines) > 5
        assert [text for text in lines if not PROGRESS.fullmatch(text)] == []
        assert lines[-1].split(" of ")[0].split(": ")[1] == lines[-1].split(" of ")[1].split(", ")[0]  # all of it
        assert ESCAPE not in result.out + result.err
        assert "\r" not in result.err
        quiet = ok(run(*line, "--json", *(["--force"] if line[0] == "to-megatron" else []), code=EVERY_LINE))
        assert quiet.err == ""


def test_short_runs_say_no_progress(llama: Path, tmp_path: Path) -> None:
    assert ok(run("to-megatron", llama, tmp_path / "out")).err == ""


def on_a_terminal(command: Sequence[str], **env: str) -> str:
    """What a command writes to a terminal of its own."""
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env=failing.environment(TERM="xterm", **env), close_fds=True
    )
    os.close(end)
    text = b""
    try:
        while block := os.read(terminal, 65536):
            text += block
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert process.wait(60) == (0 if "--tp=3" not in command else 3)
    return text.decode()


def test_terminal(llama: Path, tmp_path: Path) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    line = [failing.COMMAND, "to-megatron", str(llama)]
    assert colour.search(on_a_terminal([*line, str(tmp_path / "a")]))
    assert colour.search(on_a_terminal([*line, str(tmp_path / "b"), "--tp=3"]))
    plain = on_a_terminal([*line, str(tmp_path / "c")], NO_COLOR="1")
    assert not colour.search(plain)
    assert "done" in plain
    assert not colour.search(on_a_terminal([*line, str(tmp_path / "d"), "--tp=3"], NO_COLOR="1"))


def test_colour_only_where_asked_for(llama: Path, tmp_path: Path) -> None:
    assert ESCAPE not in ok(run("inspect", llama)).out
    assert ESCAPE not in ok(run("inspect", llama, env={"FORCE_COLOR": "1", "NO_COLOR": "1"})).out
    assert ESCAPE in ok(run("to-megatron", llama, tmp_path / "out", env={"FORCE_COLOR": "1"})).out
    json.loads(ok(run("inspect", llama, "--json", env={"FORCE_COLOR": "1"})).out)


def test_names_are_whole_in_a_pipe(moe: Path, tmp_path: Path) -> None:
    """No table is folded at 80 columns where nobody looks at columns."""
    other = copied(megatron(tmp_path / "mcore", moe, tp=2, ep=2), tmp_path / "other")
    flip_tensor(shard(other, "01_001"), "decoder.layers.3.mlp.experts.local_experts.3.linear_fc2.weight")
    result = run("verify", moe, other)
    assert result.code == 5
    assert "model.layers.3.mlp.experts.7.down_proj.weight" in result.out


@pytest.mark.parametrize("line", ["inspect {} --json | true", "inspect {} | head -n 1", "--help | true", "families | true"])
def test_reader_that_goes_away(line: str, llama: Path) -> None:
    result = execute(["bash", "-c", f"set -o pipefail; {failing.COMMAND} {line.format(llama)}"])
    assert (result.code, result.err) == (0, "")


def test_standard_output_that_is_full(llama: Path) -> None:
    result = execute(["bash", "-c", f"{failing.COMMAND} inspect {llama} --json > /dev/full"])
    failing.refused(result, 4, "No space left on device")
    result = execute(["bash", "-c", f"{failing.COMMAND} inspect {llama} --json >&-"])
    assert (result.code, result.err) == (0, "")


# Names of any kind

NAMES = [
    "with space",
    "[bold]brackets[/bold]",
    "closing [",
    "日本語 é",
    ":smile: {x} %s",
    "-dash",
    'quote\'s "both"',
    "line\nbreak",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind(name: str, llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / name / "bold]" / "hf")
    mcore, back = tmp_path / name / "mcore", tmp_path / name / "back"
    result = ok(run("to-megatron", source, mcore, "--tp", 2))
    assert f"done {escaped(str(mcore))}:" in result.out
    assert escaped(str(mcore)) in ok(run("to-megatron", source, mcore, "--tp", 2)).out
    ok(run("to-hf", mcore, back))
    assert escaped(f"equal {source} and {back}:") in ok(run("verify", source, back)).out
    assert escaped(name) in ok(run("inspect", mcore)).out
    assert as_json("inspect", mcore)["path"] == [str(mcore)]
    assert escaped(f"error: {mcore} is not empty") in run("to-megatron", source, mcore).err
    assert contents(back) == contents(huggingface(tmp_path / "like", mcore))


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX"}])
def test_terminals_of_any_encoding(env: dict[str, str], llama: Path, tmp_path: Path) -> None:
    """A name that cannot be shown is shown as an escape; nothing fails for it."""
    source = copied(llama, tmp_path / "日本")
    for args in (("inspect", source), ("inspect", source, "--json"), ("to-megatron", source, tmp_path / "出")):
        ok(run(*args, env=env))
    failing.refused(run("inspect", tmp_path / "無", env=env), 3, "does not exist")


def test_name_that_is_no_text(llama: Path, tmp_path: Path) -> None:
    source = copied(llama, Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")))
    for env in ({"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "utf-8:strict"}):
        ok(run("inspect", source, env=env))
        ok(run("inspect", source, "--json", env=env))
    ok(run("to-megatron", source, tmp_path / "out"))
    ok(run("verify", source, tmp_path / "out"))


def test_what_is_not_carried_along_is_said(llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / "hf")
    for name in ("adapter_config.json", "adapter_model.safetensors.bak", "kernel.cu", "tokenizer.json"):
        (source / name).write_text("{}")
    result = ok(run("to-megatron", source, tmp_path / "out"))
    assert "note: not carried along: adapter_config.json, adapter_model.safetensors.bak, kernel.cu" in result.err
    assert sorted(p.name for p in (tmp_path / "out" / "hf").iterdir() if p.name[0] in "akt") == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_key_that_the_model_depends_on_cannot_be_ignored(llama: Path, tmp_path: Path) -> None:
    refused(
        run("to-megatron", llama, tmp_path / "out", "--ignore-config-keys", "rms_norm_eps"), 2, "rms_norm_eps cannot be ignored"
    )
    ok(run("to-megatron", llama, tmp_path / "out", "--ignore-config-keys", "not_there"))


def test_gguf_is_named_where_it_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"GGUF" + bytes(100))
    for command in (["inspect"], ["verify", tmp_path / "blob"]):
        refused(run(*command, tmp_path / "blob"), 3, "is a GGUF file", "jumar-convert to-hf")


@pytest.mark.parametrize("size", ["100KB", "100K", "0.1M", "98KiB", "100000"])
def test_shard_sizes_as_people_write_them(size: str, sharded: Path, tmp_path: Path) -> None:
    ok(run("to-hf", sharded, tmp_path / "out", "--max-shard-size", size))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2


# Pipes


def test_lines_in_a_pipe_end_where_their_text_ends(sharded: Path, llama: Path, tmp_path: Path) -> None:
    """Not in hundreds of blanks, where one value is long."""
    commands = (["inspect", sharded], ["families"], ["to-hf", sharded, tmp_path / "out", "--plan"], ["verify", llama, llama])
    for command in commands:
        for line in ok(run(*command)).out.splitlines():
            assert line == line.rstrip()


def test_control_characters_in_a_path_are_not_obeyed(llama: Path, tmp_path: Path) -> None:
    source = copied(llama, tmp_path / f"hf{ESCAPE}[2J")
    for command in (["inspect", source], ["verify", source, source], ["to-hf", source, tmp_path / f"out{ESCAPE}[2J"]):
        said = ok(run(*command))
        assert ESCAPE not in said.out + said.err
        assert "\\x1b[2J" in said.out
    assert ESCAPE not in refused(run("inspect", tmp_path / f"none{ESCAPE}[2J"), 3, "\\x1b[2J")
