"""Models with state-space layers: what is kept of a sequence beside its pages is its own, moves with it, and is let go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import infer_models
from jumar.infer import Engine, Request, Sampling
from jumar.infer.beams import search
from jumar.infer.engine import Limits
from jumar.schema.errors import ToolError

PROMPTS = [infer_models.random_ids(n, seed=n) for n in (3, 70, 33, 5, 64, 1, 40)]  # chunks are of 32
GREEDY = Sampling(max_new_tokens=10, ignore_eos=True, logprobs=0)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    directory = tmp_path_factory.mktemp("hybrid") / "hf"
    model = infer_models.make(directory, "nemotron_h")
    model.generation_config.eos_token_id = None
    return directory, model


def engine_of(directory: Path, **limits: int) -> Engine:
    return Engine.open(directory, Limits(**({"max_batch": 4, "chunk": 32, "cache_tokens": 1024} | limits)), device="cpu")


def answers(requests: list[Request]) -> list[tuple[list[int], list[float]]]:
    return [(r.output, [p.logprob for p in r.logprobs]) for r in requests]


def test_requests_come_and_go_and_change_no_bit(hybrid: tuple[Path, PreTrainedModel]) -> None:
    """Seven requests through two places, with pages for two, one of them aborted on the way, then others in the places left."""
    engine = engine_of(hybrid[0], max_batch=2, cache_tokens=224)
    alone = [answers(engine.generate([p], GREEDY))[0] for p in PROMPTS]
    requests = [engine.add(p, GREEDY) for p in PROMPTS]
    engine.step()
    engine.abort(requests[1])
    engine.run(requests)
    kept = [i for i in range(len(PROMPTS)) if i != 1]
    assert answers([requests[i] for i in kept]) == [alone[i] for i in kept]
    assert answers(engine_of(hybrid[0], max_batch=7).generate(PROMPTS[::-1], GREEDY))[::-1] == alone
    assert engine.cache.in_use == 0


def test_nothing_is_shared_between_prompts_that_begin_alike(hybrid: tuple[Path, PreTrainedModel]) -> None:
    engine = engine_of(hybrid[0])
    first, second = (engine.generate([PROMPTS[1]], GREEDY)[0] for _ in range(2))
    assert (first.shared, second.shared) == (0, 0)
    assert answers([first]) == answers([second])


def test_beams_are_those_of_transformers(hybrid: tuple[Path, PreTrainedModel]) -> None:
    directory, model = hybrid
    engine = engine_of(directory)
    ids = torch.tensor([PROMPTS[2]])
    wanted = model.generate(ids, max_new_tokens=12, num_beams=4, num_return_sequences=4, do_sample=False, pad_token_id=0)
    found = search(engine, PROMPTS[2], Sampling(max_new_tokens=12, ignore_eos=True), num_beams=4, returns=4)
    assert [r.output for r in found] == wanted[:, ids.shape[1] :].tolist()
    with pytest.raises(ToolError, match="5 beams keep as many states"):
        search(engine, PROMPTS[2], Sampling(max_new_tokens=4), num_beams=5)


def test_scores_are_those_of_transformers(hybrid: tuple[Path, PreTrainedModel]) -> None:
    directory, model = hybrid
    (scored,) = engine_of(directory).score([(PROMPTS[1][:40], PROMPTS[1][40:])])
    with torch.no_grad():
        logs = model(torch.tensor([PROMPTS[1]])).logits[0].log_softmax(-1)
    assert [s.logprob for s in scored.scores] == pytest.approx(
        [float(logs[i - 1, PROMPTS[1][i]]) for i in range(40, 70)], abs=1e-4
    )


def test_a_model_without_attention_is_bound_by_no_length(tmp_path: Path) -> None:
    """300 tokens; tiny models of other families end at 128."""
    infer_models.make(tmp_path / "hf", "mamba2")
    engine = Engine.open(tmp_path / "hf", Limits(chunk=64), device="cpu")
    assert engine.generate([infer_models.random_ids(200)], Sampling(max_new_tokens=100, ignore_eos=True))[0].tokens == 300
    assert engine.cache.k == []
