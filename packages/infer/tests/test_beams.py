"""Beam search is that of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import infer_models
from jumar.infer import Engine, Sampling
from jumar.infer.beams import search
from jumar.infer.engine import Limits
from jumar.infer.generate import How, many_prompts
from jumar.schema.errors import Exit, ToolError


@pytest.mark.parametrize("count, penalty, eos", [(2, 1.0, []), (4, 1.0, range(40)), (3, 0.0, range(90)), (4, 2.0, range(25))])
def test_beams_are_those_of_transformers(count: int, penalty: float, eos: list[int], hf: Path) -> None:
    """With few and with many tokens that end an answer, so that beams end on the way; repetition penalty along with it."""
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    model.generation_config.eos_token_id = list(eos) or None
    engine = Engine.open(hf, Limits(max_batch=4, chunk=32, cache_tokens=1024), device="cpu")
    for length, repetition in ((5, 1.0), (40, 1.3)):
        prompt = infer_models.random_ids(length, vocab=infer_models.VOCAB, seed=length)
        sampling = Sampling(max_new_tokens=14, stop_ids=tuple(eos), ignore_eos=True, repetition_penalty=repetition)
        found = search(engine, prompt, sampling, num_beams=count, length_penalty=penalty, returns=count)
        ids = torch.tensor([prompt])
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=14,
            num_beams=count,
            length_penalty=penalty,
            num_return_sequences=count,
            repetition_penalty=repetition,
            do_sample=False,
            pad_token_id=261,
        )
        for request, sequence in zip(found, wanted[:, length:].tolist(), strict=True):
            assert sequence[: len(request.output)] == request.output
            assert set(sequence[len(request.output) :]) <= {261}
    assert engine.cache.in_use == 0


def test_beams_among_the_likelier_tokens_alone(hf: Path) -> None:
    """Among one token they are the greedy answer, whose every token is certain."""
    engine = Engine.open(hf, Limits(max_batch=4, cache_tokens=2048), device="cpu")
    sampling = Sampling(max_new_tokens=9, ignore_eos=True)
    (greedy,) = engine.generate([[5, 6, 7]], sampling)
    wide = search(engine, [5, 6, 7], sampling, num_beams=4, length_penalty=0.7)[0]
    for among in (Sampling(top_k=1), Sampling(top_p=1e-9)):
        (best,) = search(engine, [5, 6, 7], sampling, num_beams=4, length_penalty=0.7, among=among)
        assert best.output == greedy.output
    assert wide.output != greedy.output
    assert search(engine, [5, 6, 7], sampling, num_beams=4, length_penalty=0.7, among=Sampling())[0].output == wide.output


def test_what_beams_do_not_do(hf: Path) -> None:
    engine = Engine.open(hf, Limits(cache_tokens=64), device="cpu")
    for sampling, returns in (
        (Sampling(temperature=1.0), 1),
        (Sampling(stop=("a",)), 1),
        (Sampling(logprobs=1), 1),
        (Sampling(), 9),
    ):
        with pytest.raises(ToolError) as fault:
            search(engine, [1], sampling, num_beams=2, returns=returns)
        assert fault.value.code == Exit.USAGE
    with pytest.raises(ToolError, match="pages"):
        search(engine, [1], Sampling(max_new_tokens=60), num_beams=2)


def test_a_row_that_the_beams_have_no_room_for_is_told_before_anything_is_computed(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "up"}\n{"prompt": "' + "rope " * 20 + '"}\n')
    engine = Engine.open(hf, Limits(cache_tokens=256), device="cpu")
    answers = many_prompts(engine, str(tmp_path / "rows.jsonl"), Sampling(max_new_tokens=20), How(1, 4, 1.0), "auto")
    with pytest.raises(ToolError, match=r"rows\.jsonl:2: 4 beams need 16 pages of the cache, which has 8"):
        next(answers)
