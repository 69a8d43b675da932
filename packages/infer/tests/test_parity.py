"""Logits and greedy answers are those of transformers, for every family of the registry."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import infer_models
from jumar.infer import Engine, Sampling
from jumar.infer.batch import Part, make_batch
from jumar.infer.engine import Limits

LENGTH, PROMPT = 100, 61  # past every window (8, 32) and every original length (24, 32) of the models


@pytest.fixture(scope="module", params=infer_models.MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, PreTrainedModel]:
    """(name, directory, model)"""
    model_type, changes = infer_models.MODELS[request.param]
    directory = tmp_path_factory.mktemp("model") / "hf"
    return request.param, directory, infer_models.make(directory, model_type, **changes)


def test_logits_are_those_of_transformers(made: tuple[str, Path, PreTrainedModel]) -> None:
    """A prompt in chunks, then one token at a time over the cache, beside another sequence, by both kinds of attention."""
    name, directory, model = made
    dynamic = "dynamic" in name  # transformers stretches all of a text by its length: chunks would be stretched otherwise
    length = 32 if dynamic else LENGTH
    ids, other = infer_models.random_ids(length), infer_models.random_ids(37, seed=1)
    with torch.no_grad():
        wanted = copy.deepcopy(model)(torch.tensor([ids])).logits[0]
    for paged in (False, True):
        engine = Engine.open(directory, Limits(max_batch=2, cache_tokens=512), device="cpu")
        found = through_the_cache(engine, ids, other, min(PROMPT, length - 3), paged=paged)
        assert wanted.std() > 0.5
        assert (found - wanted).abs().max() < 1e-4


def through_the_cache(engine: Engine, ids: list[int], other: list[int], prompt: int, *, paged: bool) -> torch.Tensor:
    """Logits of every token: the prompt in two chunks, then single tokens, another sequence being computed with them."""
    cache, decoder = engine.cache, engine.decoder
    pages, beside = cache.take(-(-len(ids) // cache.page_size)), cache.take(3)
    cuts = [0, prompt // 2 + 1, prompt, *range(prompt + 1, len(ids) + 1)]
    out = []
    for step, (start, stop) in enumerate(pairwise(cuts)):
        part = Part(ids[start:stop], start, pages, len(ids) if start < prompt else stop, stop - start, cache.place(pages))
        parts = [part]
        if step < len(other):
            parts.insert(step % 2, Part([other[step]], step, beside, step + 1, place=cache.place(beside)))
        batch = make_batch(parts, cache, decoder.device, paged=paged)
        logits = decoder(batch, cache)
        at = 1 if len(parts) == 2 and step % 2 == 0 else 0
        out.append(logits[at : at + stop - start])
    return torch.cat(out)


def test_greedy_answers_are_those_of_transformers(made: tuple[str, Path, PreTrainedModel]) -> None:
    """Three prompts of different lengths at once; `generate` one after another."""
    _, directory, model = made
    model.generation_config.eos_token_id = None
    prompts = [infer_models.random_ids(n, seed=n) for n in (5, 40, 61)]
    engine = Engine.open(directory, Limits(max_batch=3, chunk=32, cache_tokens=640), device="cpu")
    answers = engine.generate(prompts, Sampling(max_new_tokens=16, ignore_eos=True))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        fresh = copy.deepcopy(model)  # transformers keeps the longest text's stretch of dynamic RoPE
        whole = fresh.generate(ids, max_new_tokens=16, do_sample=False, attention_mask=torch.ones_like(ids))
        assert answer.output == whole[0, len(prompt) :].tolist()
        assert answer.finish == "length"
    assert engine.cache.in_use == 0
