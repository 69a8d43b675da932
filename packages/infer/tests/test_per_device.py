"""What is chosen for a device, and the NPU's path over torch-npu's schemas on the CPU. No kernel of Ascend's has run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import infer_models
from jumar.device import cpu, cuda, npu
from jumar.device.testing.npu_numerics import RAN
from jumar.device.testing.npu_stand_in import npu_device, npu_operations
from jumar.infer import Engine, Sampling, opening
from jumar.infer.engine import Limits
from jumar.infer.matrices import check_kind

DEVICES = {module.DEVICE.name: module.DEVICE for module in (cpu, cuda, npu)}
PROMPTS = [infer_models.random_ids(n, vocab=infer_models.VOCAB, seed=n) for n in (70, 5, 33)]
ATTENTION = ("npu_prompt_flash_attention", "npu_incre_flash_attention", "npu_fusion_attention")


@pytest.mark.parametrize(
    "device, has_bf16, asked, published, kind, says",
    [
        ("cpu", False, "auto", "bfloat16", torch.float32, "fp32: on most CPUs the others are emulated"),
        ("cpu", False, "bf16", "float16", torch.bfloat16, "bf16 as asked for"),
        ("cuda", False, "auto", "float16", torch.float16, "fp16 as published"),
        ("npu", True, "auto", "bfloat16", torch.bfloat16, "bf16 as published"),
        ("npu", False, "auto", "bfloat16", torch.float16, "fp16: published as bf16, which this device does not compute"),
        ("npu", False, "bf16", "bfloat16", torch.bfloat16, "bf16 as asked for"),
        ("npu", True, "fp32", "bfloat16", torch.float32, "fp32 as asked for"),
    ],
)
def test_the_dtype_and_why(
    device: str, has_bf16: bool, asked: str, published: str, kind: torch.dtype, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(DEVICES[device]), "has_bf16", lambda self: has_bf16)
    assert opening._dtype(asked, published, DEVICES[device]) == (kind, says)


@pytest.mark.parametrize(
    "kind, device, says",
    [
        ("int8-dynamic", "cpu", "int8-dynamic matrices of the layers and of the output"),
        ("int8", "cpu", "weights rounded to int8 and held in the dtype"),
        ("int8", "cuda", "int8 matrices of the layers and of the output"),
        ("int8", "npu", "int8 matrices of the layers and of the output"),
    ],
)
def test_what_quantising_does(kind: str, device: str, says: str) -> None:
    assert says in check_kind(kind, DEVICES[device], torch.float32)


def test_prompts_and_steps_go_through_the_operators_for_inference(hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, as on an NPU: scores near those of the CPU in bf16; every layer's attention in the operators for inference."""
    limits, asked = Limits(max_batch=3, chunk=32, cache_tokens=512), Sampling(max_new_tokens=5, ignore_eos=True)
    on_cpu = Engine.open(hf, limits, device="cpu", dtype="bf16")
    monkeypatch.setattr(opening, "open_device", lambda name: npu_device())
    with npu_operations():
        on_npu = Engine.open(hf, limits, device="npu", dtype="bf16")
        RAN.clear()
        answers = on_npu.generate(PROMPTS, asked)
        ran = {name: RAN[name] for name in ATTENTION}
        pairs = [(prompt[:1], [*prompt[1:], *answer.output]) for prompt, answer in zip(PROMPTS, answers, strict=True)]
        found, wanted = (torch.tensor([s.logprob for r in engine.score(pairs) for s in r.scores]) for engine in (on_npu, on_cpu))
    layers = len(on_npu.decoder.layers)
    chunks, steps = 3 + 1 + 1, 6  # of 70 tokens three, of 33 one and a single token, which goes with the steps of others
    assert ran["npu_fusion_attention"] == 0
    assert ran["npu_prompt_flash_attention"] == layers * chunks
    assert ran["npu_incre_flash_attention"] == layers * steps
    assert (found - wanted).abs().max() < 0.25
