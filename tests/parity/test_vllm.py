"""What vLLM and vllm-ascend read of a model is what `jumar-convert to-hf` writes. vLLM is not run here: its list of models is
read from its wheel, as text."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import infer_models
from jumar.ckpt_convert import open_checkpoint, plan_hf, plan_megatron, run_plan
from jumar.schema.parallel import ParallelLayout
from jumar.schema.registry import families

VLLM = "vllm==0.33.0"
KEPT = Path.home() / ".cache" / "jumar-tests" / "vllm" / f"{VLLM}.py"
REGISTRY = "vllm/model_executor/models/registry.py"


def vllm_models() -> dict[str, tuple[str, str]]:
    """Architectures that vLLM generates texts with, and its module and class for each. The wheel (340 MB) is fetched once."""
    if not KEPT.exists():
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT.parent) as folder:
            command = f"-m pip download --quiet --no-deps --only-binary=:all: --retries 8 --dest {folder} {VLLM}"
            subprocess.run([sys.executable, *command.split()], check=True, timeout=900)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                (Path(folder) / "registry.py").write_bytes(wheel.read(REGISTRY))
            (Path(folder) / "registry.py").replace(KEPT)
    for node in ast.parse(KEPT.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "_TEXT_GENERATION_MODELS" and node.value is not None:
                return dict(ast.literal_eval(node.value))
    raise AssertionError(f"{VLLM} has no list of models in {REGISTRY}")


def assert_exports(model_type: str, home: Path) -> None:
    """Hugging Face to Megatron TP2 PP2 and back, in several shards: complete, and the tensors are transformers' own."""
    made = infer_models.make(home / "hf", model_type)
    infer_models.add_tokenizer(home / "hf")
    run_plan(plan_megatron(open_checkpoint(home / "hf"), ParallelLayout(tp=2, pp=2)), home / "mcore")
    run_plan(plan_hf(open_checkpoint(home / "mcore"), max_shard_bytes=100_000), home / "out")
    out = home / "out"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((home / "hf" / name).read_text()), name
    assert AutoConfig.from_pretrained(out).architectures == [families()[model_type].architecture]
    assert AutoTokenizer.from_pretrained(out).chat_template == infer_models.CHATML
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {f.name for f in out.glob("*.safetensors")} == set(index["weight_map"].values())
    held = {}
    for file in set(index["weight_map"].values()):
        with safe_open(out / file, "pt") as shard:
            held |= {name: (file, shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118
    assert {name: file for name, (file, _) in held.items()} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in held.values())
    back, report = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    expected, found = made.state_dict(), back.state_dict()
    assert set(found) == set(expected)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_what_is_written_for_vllm_is_complete(tmp_path: Path) -> None:
    assert_exports("qwen2", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", infer_models.FAMILIES)
def test_every_family_is_written_for_vllm(model_type: str, tmp_path: Path) -> None:
    assert_exports(model_type, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_vllm_has_every_family() -> None:
    known = vllm_models()
    assert len(known) > 100
    assert {name for name, family in families().items() if family.architecture not in known} == set()
