"""jumar-infer on a real model, SmolLM2-135M-Instruct as `make demo` makes it, against transformers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from jumar.ckpt_convert import open_checkpoint, plan_megatron, run_plan
from jumar.infer import Engine, Sampling
from jumar.infer.conversation import open_template
from jumar.infer.engine import Limits
from jumar.infer.matrices import KINDS
from jumar.schema.parallel import ParallelLayout

DEMO = Path(__file__).resolve().parents[2] / "runs/demo/hf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DEMO.exists(), reason="the demo's model is not here (make demo)"),
]
SUBJECTS = (
    "a rope, a mountain, the sea, my teacher, the number seven, winter, an old clock, bread, a good friend, the moon".split(", ")
)
BEGINNINGS = (
    "Once upon a time there was {}",
    "The best thing about {} is",
    "Q: What is {}?\nA:",
    "{} and",
    "def count(): # {}\n",
)
PROMPTS = [form.format(subject) for form in BEGINNINGS for subject in SUBJECTS]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open(DEMO, Limits(max_batch=8, cache_tokens=4096), device="cpu")


def test_tokens_are_those_of_transformers(engine: Engine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    assert [engine.encode(p) for p in PROMPTS] == tokenizer(PROMPTS)["input_ids"]


def test_log_probabilities_are_those_of_transformers(engine: Engine, model: PreTrainedModel) -> None:
    """Of two texts, one of them in two chunks."""
    for text in ("\n".join(PROMPTS[:40]), " ".join(PROMPTS[40:])):
        ids = engine.encode(text)
        (scored,) = engine.score([(ids[:1], ids[1:])])
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [float(logs[i, token]) for i, token in enumerate(ids[1:])]
        assert len(wanted) > 60
        assert [entry.logprob for entry in scored.scores] == pytest.approx(wanted, abs=1e-4)


def test_fifty_greedy_answers_are_those_of_transformers(engine: Engine, model: PreTrainedModel) -> None:
    """Eight at a time, of different lengths; a tie of the two best tokens to 1e-4 would be told apart by rounding."""
    answers = engine.generate(PROMPTS, Sampling(max_new_tokens=12, ignore_eos=True))
    assert len(PROMPTS) == 50
    model.generation_config.eos_token_id = None
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([engine.encode(prompt)])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert answer.output == whole[0, ids.shape[1] :].tolist(), prompt


def test_the_same_from_shards_of_tp3_pp2(engine: Engine, tmp_path: Path) -> None:
    run_plan(plan_megatron(open_checkpoint(DEMO), ParallelLayout(tp=3, pp=2)), tmp_path / "mcore")
    other = Engine.open(tmp_path / "mcore", Limits(max_batch=8, cache_tokens=4096), device="cpu")
    asked = Sampling(max_new_tokens=8, logprobs=0)
    found, expected = (e.generate(PROMPTS[:8], asked) for e in (other, engine))
    assert [(r.text, r.logprobs) for r in found] == [(r.text, r.logprobs) for r in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_int8_costs_less_than_one_percent_of_perplexity(kind: str, engine: Engine) -> None:
    """On 2,000 tokens of prose: our page on how it is built."""
    ids = engine.encode((DEMO.parents[2] / "docs/design.md").read_text())[:2000]
    pairs = [(ids[at : at + 1], ids[at + 1 : at + 500]) for at in range(0, 2000, 500)]
    narrow = Engine.open(DEMO, Limits(max_batch=8, cache_tokens=4096), device="cpu", quantize=kind)
    perplexities = []
    for each in (engine, narrow):
        logs = [entry.logprob for request in each.score(pairs) for entry in request.scores]
        assert len(logs) == 4 * 499
        perplexities.append(math.exp(-math.fsum(logs) / len(logs)))
    print(f"perplexity fp32 {perplexities[0]:.3f}, {kind} {perplexities[1]:.3f}")
    assert perplexities[0] > 2
    assert abs(perplexities[1] / perplexities[0] - 1) < 0.01


def test_it_knows_the_capital_of_france(engine: Engine) -> None:
    assert engine.tokenizer is not None
    prompt = open_template(engine.tokenizer).prompt([{"role": "user", "content": "What is the capital of France?"}])
    (answer,) = engine.generate([prompt], Sampling(max_new_tokens=20))
    assert "Paris" in answer.text
    assert answer.finish == "stop"
