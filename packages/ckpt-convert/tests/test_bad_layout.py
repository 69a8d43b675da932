"""Layouts that a model does not fit, and options that mean nothing: refused before a byte is written."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from failing import model, refused, run, untouched, usage_refused

pytestmark = pytest.mark.matrix

HUGE = {  # said at once, before anything of such a size is counted out
    "--tp 20000000": "20000000 checkpoint files",
    "--tp 262144": "tp=262144 does not divide the model's 4 KV groups",
    "--tp 99999999999999999999": "99999999999999999999 checkpoint files",
    "--pp 3000000": "3000000 checkpoint files",
    "--pp 262144": "4 layers cannot be shared out evenly over pp=262144",
    "--pp 2 --vpp 99999999999": "4 layers cannot be shared out evenly",
    "--noop-layers 99999999999999": "the slots are 0 to 4",
    "--pp 2 --layers-per-stage 99999999999999999999,2": "the model has 4 layers",
}
HUGE_MOE = {
    "--etp 20000000": "cannot hold this layout",
    "--ep 20000000": "20000000 checkpoint files",
    "--tp 20000000 --etp 20000000": "20000000 checkpoint files",
    "--tp 262144 --moe-tp-extend-ep": "8 experts cannot be shared out over 262144 ranks",
    "--pp 3000000 --ep 8": "24000000 checkpoint files",
}
LLAMA = {  # flags: what is said. The model has 4 layers, 8 heads, 4 KV groups.
    "--tp 3": "tp=3 does not divide the model's 4 KV groups",
    "--tp 8": "tp=8 does not divide the model's 4 KV groups",
    "--pp 3": "4 layers cannot be shared out evenly over pp=3",
    "--pp 8": "4 layers cannot be shared out evenly over pp=8",
    "--pp 2 --vpp 3": "4 layers cannot be shared out evenly over pp=2 x vpp=3",
    "--ep 2": "ep=2: this model has no experts",
    "--etp 4": "etp=4: this model has no experts",
    "--moe-tp-extend-ep": "tp_extend_ep: this model has no experts",
    "--expert-layout grouped": "expert layout grouped: this model has no experts",
    "--pp 2 --layers-per-stage 1,2": "layers_per_stage 1,2 adds up to 3, the model has 4 layers",
    "--pp 2 --layers-per-stage 4,1": "layers_per_stage 4,1 adds up to 5, the model has 4 layers",
    "--noop-layers 5": "noop_layers [5]: with 4 layers and 1 no-ops the slots are 0 to 4",
    "--noop-layers -1": "noop_layers [-1]",
    "--pp 2 --noop-layers 4": "4 layers + 1 no-op layers cannot be shared out evenly over pp=2",
    "--pp 4 --schedule dualpipev": "4 layers cannot be shared out evenly over pp=4 x vpp=2",
}
MOE = {  # 8 experts a layer
    "--ep 3": "8 experts cannot be shared out over 3 ranks (ep=3)",
    "--ep 16": "8 experts cannot be shared out over 16 ranks (ep=16)",
    "--ep 8 --tp 2 --moe-tp-extend-ep": "8 experts cannot be shared out over 16 ranks (ep=8)",
    "--tp 2 --ep 2 --etp 4": "tp=2, ep=2, etp=4: Megatron's torch format cannot hold this layout",
    "--etp 3": "tp=1, ep=1, etp=3: Megatron's torch format cannot hold this layout",
}
FLAGS = {  # flags that contradict themselves or one another, whatever the model
    "--tp 0": "tp=0: expected a positive whole number",
    "--tp -1": "tp=-1: expected a positive whole number",
    "--pp 0": "pp=0: expected a positive whole number",
    "--vpp 2": "vpp=2 needs more than one pipeline stage",
    "--vpp 0": "vpp=0: expected a positive whole number",
    "--ep 0": "ep=0: expected a positive whole number",
    "--layers-per-stage 2,2": "layers_per_stage has 2 numbers for pp=1",
    "--pp 2 --layers-per-stage 1,1,2": "layers_per_stage has 3 numbers for pp=2",
    "--pp 2 --layers-per-stage 4,0": "every stage needs at least one layer",
    "--pp 2 --vpp 2 --layers-per-stage 1,3": "layers_per_stage cannot be combined with vpp",
    "--pp 2 --layers-per-stage 1,3 --noop-layers 4": "layers_per_stage cannot be combined with vpp, dualpipev or noop_layers",
    "--noop-layers 1,1": "noop_layers [1, 1] names a slot twice",
    "--pp 2 --schedule dualpipev --vpp 1": "schedule dualpipev holds two chunks a stage, not vpp=1",
    "--tp 2 --ep 2 --moe-tp-extend-ep --etp 2": "tp_extend_ep keeps experts whole; etp=2 would cut them",
    "--etp 0": "etp=0: expected a positive whole number",
}
USAGE = {  # wrong whatever the model
    "to-megatron --schedule gpipe": "--schedule 'gpipe': expected 1f1b or dualpipev",
    "to-megatron --expert-layout stacked": "--expert-layout 'stacked': expected sequential or grouped",
    "to-megatron --dialect deepspeed": "--dialect 'deepspeed': expected mcore or te or mindspeed or mindspeed-v1 or legacy",
    "to-megatron --layers-per-stage 2,two": "--layers-per-stage '2,two': expected whole numbers",
    "to-megatron --layers-per-stage 2,,2": "--layers-per-stage '2,,2': expected whole numbers",
    "to-megatron --noop-layers ": "--noop-layers '': expected whole numbers",
    "to-megatron --layers-per-stage ,": "--layers-per-stage ',': expected whole numbers",
    "to-megatron --noop-layers three": "--noop-layers 'three': expected whole numbers",
    "to-megatron --dtype int4": "--dtype 'int4' is not known",
    "to-hf --dtype BF16": "--dtype 'BF16' is not known",
    "to-hf --max-shard-size big": "--max-shard-size 'big': expected a size like 5GB",
    "to-hf --max-shard-size 5XB": "--max-shard-size '5XB'",
    "to-hf --max-shard-size=-5GB": "--max-shard-size '-5GB'",
    "to-hf --max-shard-size 0": "--max-shard-size '0'",
    "to-hf --max-shard-size 1e999": "--max-shard-size '1e999'",
    "to-hf --max-shard-size nan": "--max-shard-size 'nan'",
}
PARSER = {  # what the parser of the command line refuses, in its own words
    "to-megatron --tp two": "--tp",
    "to-megatron --threads 0": "--threads",
    "to-megatron --vocab-divisible-by 0": "--vocab-divisible-by",
    f"to-megatron --vocab-divisible-by {10**30}": "--vocab-divisible-by",
    "to-megatron --tensor-parallel 2": "--tensor-parallel",
    "to-hf --tp 2": "--tp",
    "convert": "convert",
}


@pytest.mark.parametrize("flags", LLAMA)
def test_layout_that_does_not_fit(flags: str, llama: Path, tmp_path: Path) -> None:
    refused(run("to-megatron", llama, tmp_path / "out", *flags.split()), 3, LLAMA[flags])
    untouched(tmp_path / "out")


@pytest.mark.parametrize("flags", MOE)
def test_layout_that_does_not_fit_the_experts(flags: str, moe: Path, tmp_path: Path) -> None:
    refused(run("to-megatron", moe, tmp_path / "out", *flags.split()), 3, MOE[flags])
    untouched(tmp_path / "out")


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_that_contradict_one_another(flags: str, llama: Path, tmp_path: Path) -> None:
    refused(run("to-megatron", llama, tmp_path / "out", *flags.split()), 2, FLAGS[flags])
    untouched(tmp_path / "out")


@pytest.mark.parametrize("flags", [*HUGE, *HUGE_MOE])
def test_huge_layout(flags: str, llama: Path, moe: Path, tmp_path: Path) -> None:
    source, words = (llama, HUGE[flags]) if flags in HUGE else (moe, HUGE_MOE[flags])
    begun = time.monotonic()
    refused(run("to-megatron", source, tmp_path / "out", *flags.split()), 3, words)
    assert time.monotonic() - begun < 20
    untouched(tmp_path / "out")


SETS = {  # --set of a source: exit code, what is said
    "tp=20000000": (3, "40000000 checkpoint files"),
    "pp=3000000": (3, "checkpoint files"),
    "pp=0": (2, "pp=0: expected a positive whole number"),
    "tp=two": (2, "--set tensor_model_parallel_size='two'"),
    "vpp=3": (3, "4 layers cannot be shared out evenly over pp=2 x vpp=3"),
    "schedule=gpipe": (2, "--set schedules_method='gpipe'"),
    "dialect=deepspeed": (2, "--set dialect=deepspeed"),
    "ep=2": (3, "ep=2: this model has no experts"),
    "layers_per_stage=9,9": (3, "the model has 4 layers"),
}


@pytest.mark.parametrize("value", SETS)
def test_layout_of_a_source_that_is_set(value: str, sharded: Path, tmp_path: Path) -> None:
    """No hint names a flag that the command does not have."""
    code, words = SETS[value]
    for command, *target in (("to-hf", tmp_path / "out"), ("inspect",)):
        said = refused(run(command, sharded, *target, "--set", value), code, words)
        flags = set(re.findall(r"--[a-z-]+", said.partition("hint: ")[2]))
        assert flags <= {"--set"}, said
    untouched(tmp_path / "out")


def test_the_plan_refuses_what_the_run_would(llama: Path, tmp_path: Path) -> None:
    refused(run("to-megatron", llama, tmp_path / "out", "--tp", 3, "--plan"), 3, LLAMA["--tp 3"])
    refused(run("to-megatron", llama, tmp_path / "out", "--tp", 3, "--json"), 3, LLAMA["--tp 3"])
    untouched(tmp_path / "out")


def test_dialect_that_the_family_does_not_have(tmp_path: Path) -> None:
    source = model(tmp_path / "gpt2", "gpt2")
    said = refused(
        run("to-megatron", source, tmp_path / "out", "--dialect", "mindspeed"), 3, "'mindspeed' does not exist for gpt2"
    )
    assert "hint: choose --dialect among: mcore, te" in said
    untouched(tmp_path / "out")


@pytest.mark.parametrize("line", USAGE)
def test_option_that_means_nothing(line: str, llama: Path, tmp_path: Path) -> None:
    command, *flags = line.split(" ")
    refused(run(command, llama, tmp_path / "out", *flags), 2, USAGE[line])
    untouched(tmp_path / "out")


@pytest.mark.parametrize("line", PARSER)
def test_command_line_that_cannot_be_read(line: str, llama: Path, tmp_path: Path) -> None:
    command, *flags = line.split()
    usage_refused(run(command, llama, tmp_path / "out", *flags), PARSER[line])
    untouched(tmp_path / "out")


def test_too_few_paths(llama: Path) -> None:
    refused(run("to-hf", llama), 2, "expected a source and a target")
    usage_refused(run("to-hf"), "SRC... DST")
    usage_refused(run("verify", llama), "'B'")
    usage_refused(run("inspect"), "PATH")
