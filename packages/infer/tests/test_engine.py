"""The engine: what runs at the same time changes nothing, prompts share pages, every page comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import infer_models
from jumar.ckpt_convert import open_checkpoint, plan_dist, plan_megatron, run_plan
from jumar.infer import Engine, Request, Sampling
from jumar.infer.engine import Limits
from jumar.schema.errors import Exit, ToolError
from jumar.schema.parallel import ParallelLayout

PROMPTS = [infer_models.random_ids(n, vocab=infer_models.VOCAB, seed=n) for n in (3, 70, 33, 5, 64, 1, 40)]
GREEDY = Sampling(max_new_tokens=12, ignore_eos=True, logprobs=3)


def engine_of(hf: Path, **limits: int) -> Engine:
    return Engine.open(hf, Limits(**({"max_batch": 4, "chunk": 32, "cache_tokens": 1024} | limits)), device="cpu")


def answers(requests: list[Request]) -> list[tuple[list[int], list[float]]]:
    return [(r.output, [p.logprob for p in r.logprobs]) for r in requests]


def test_what_else_is_in_the_batch_changes_no_bit(hf: Path) -> None:
    together = answers(engine_of(hf).generate(PROMPTS, GREEDY))
    alone = engine_of(hf)
    assert [answers(alone.generate([p], GREEDY))[0] for p in PROMPTS] == together
    crowded = answers(engine_of(hf, max_batch=7, max_tokens=64).generate(PROMPTS[::-1], GREEDY))
    assert crowded[::-1] == together


@pytest.mark.parametrize("model_type, changes", [("mixtral", {}), ("deepseek_v3", {}), ("qwen2_moe", {}), ("gemma2", {})])
def test_nor_does_it_with_experts_latents_or_windows(model_type: str, changes: dict, tmp_path: Path) -> None:
    vocab = infer_models.make(tmp_path / "hf", model_type, **changes).config.vocab_size
    prompts = [[token % vocab for token in prompt] for prompt in PROMPTS]
    engine = engine_of(tmp_path / "hf")
    together = answers(engine.generate(prompts, GREEDY))
    engine.cache.forget()
    assert [answers(engine.generate([p], GREEDY))[0] for p in prompts] == together


def test_a_seed_gives_the_same_answer_whatever_else_runs(hf: Path) -> None:
    def asked(seed: int) -> Sampling:
        return Sampling(max_new_tokens=12, temperature=0.9, top_k=40, top_p=0.9, seed=seed, ignore_eos=True)

    engine = engine_of(hf)
    alone = [engine.generate([p], asked(i))[0].output for i, p in enumerate(PROMPTS)]
    requests = [engine.add(p, asked(i)) for i, p in enumerate(PROMPTS)]
    engine.run(requests)
    assert [r.output for r in requests] == alone
    other = engine.generate([PROMPTS[1]], asked(99))[0].output
    assert other != alone[1]


@pytest.mark.parametrize(
    "sampling, words",
    [
        ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True, "top_k": 0}),
        ({"temperature": 1.3, "top_k": 5}, {"temperature": 1.3, "do_sample": True, "top_k": 5}),
        ({"temperature": 1.0, "top_p": 0.6}, {"do_sample": True, "top_p": 0.6, "top_k": 0}),
        ({"temperature": 1.0, "min_p": 0.2}, {"do_sample": True, "min_p": 0.2, "top_k": 0}),
        ({"repetition_penalty": 1.8}, {"do_sample": False, "repetition_penalty": 1.8}),
    ],
    ids=str,
)
def test_choices_are_those_of_transformers_for_a_seed(sampling: dict, words: dict, hf: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPTS[1]])
    torch.manual_seed(7)
    wanted = model.generate(ids, max_new_tokens=20, attention_mask=torch.ones_like(ids), **words)[0, ids.shape[1] :]
    found = engine_of(hf).generate([PROMPTS[1]], Sampling(max_new_tokens=20, seed=7, ignore_eos=True, **sampling))[0]
    assert found.output == wanted.tolist()


def test_penalties_of_what_was_written(hf: Path) -> None:
    """OpenAI's: no token twice when each time costs all of the difference between logits."""
    engine = engine_of(hf)
    plain = engine.generate([PROMPTS[4]], Sampling(max_new_tokens=40, ignore_eos=True))[0].output
    spread = engine.generate([PROMPTS[4]], Sampling(max_new_tokens=40, ignore_eos=True, frequency_penalty=2.0))[0].output
    assert len(set(plain)) < len(set(spread))


def test_prompts_that_begin_alike_share_pages_and_answer_the_same(hf: Path) -> None:
    head = infer_models.random_ids(70, vocab=infer_models.VOCAB, seed=9)
    engine = engine_of(hf)
    first = engine.generate([[*head, 1, 2]], GREEDY)[0]
    second = engine.generate([[*head, 3]], GREEDY)[0]
    again = engine.generate([[*head, 1, 2]], GREEDY)[0]
    fresh = engine_of(hf).generate([[*head, 3]], GREEDY)[0]
    assert (first.shared, second.shared, again.shared, fresh.shared) == (0, 64, 64, 0)
    assert answers([second]) == answers([fresh])
    assert answers([again]) == answers([first])
    engine.cache.forget()
    assert engine.generate([[*head, 3]], GREEDY)[0].shared == 0
    assert engine.cache.in_use == 0


def test_requests_wait_for_pages_and_all_come_back(hf: Path) -> None:
    """A cache for two of the seven at a time; one of them is not wanted any more on the way."""
    engine = engine_of(hf, cache_tokens=192)
    requests = [engine.add(p, GREEDY) for p in PROMPTS]
    engine.step()
    engine.abort(requests[1])
    engine.run(requests)
    assert [r.finish for r in requests] == ["length", "aborted", *["length"] * 5]
    expected = engine_of(hf).generate(PROMPTS, GREEDY)
    assert [r.output for i, r in enumerate(requests) if i != 1] == [r.output for i, r in enumerate(expected) if i != 1]
    assert engine.cache.in_use == 0
    assert not engine.busy


def test_scores_are_log_probabilities_of_transformers(hf: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    pairs = [(PROMPTS[1][:cut], PROMPTS[1][cut:]) for cut in (1, 31, 32, 33, 69)]
    scored = engine_of(hf).score(pairs)
    with torch.no_grad():
        logs = model(torch.tensor([PROMPTS[1]])).logits[0].log_softmax(-1)
    wanted = [float(logs[i, token]) for i, token in enumerate(PROMPTS[1][1:])]
    for (context, _), request in zip(pairs, scored, strict=True):
        assert [s.token for s in request.scores] == PROMPTS[1][len(context) :]
        assert [s.logprob for s in request.scores] == pytest.approx(wanted[len(context) - 1 :], abs=1e-4)


LAYOUTS = {
    "tp2 pp2": lambda source, out: run_plan(plan_megatron(source, ParallelLayout(tp=2, pp=2)), out),
    "torch_dist tp2 pp2": lambda source, out: run_plan(plan_dist(source, ParallelLayout(tp=2, pp=2)), out),
    "te vpp": lambda source, out: run_plan(plan_megatron(source, ParallelLayout(pp=2, vpp=2), dialect="te"), out),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_answers_from_megatron_directories(layout: str, hf: Path, tmp_path: Path) -> None:
    LAYOUTS[layout](open_checkpoint(hf), tmp_path / "mcore")
    engine = engine_of(tmp_path / "mcore")
    assert engine.tokenizer is not None
    assert answers(engine.generate(PROMPTS, GREEDY)) == answers(engine_of(hf).generate(PROMPTS, GREEDY))


def test_bf16_is_near(hf: Path) -> None:
    engine = Engine.open(hf, Limits(cache_tokens=256), device="cpu", dtype="bf16")
    assert engine.cache.k[0].dtype == torch.bfloat16
    (wide,), (narrow,) = engine_of(hf).score([([1], PROMPTS[1])]), engine.score([([1], PROMPTS[1])])
    exact, found = ([s.logprob for s in r.scores] for r in (wide, narrow))
    assert found == pytest.approx(exact, abs=0.2)
    assert found != exact


@pytest.mark.parametrize(
    "prompt, sampling, code, says",
    [
        ([], {}, Exit.INPUT, "empty"),
        ([1] * 128, {}, Exit.INPUT, "context is 128"),
        ([262], {}, Exit.INPUT, "outside the vocabulary"),
        ([1], {"temperature": -1}, Exit.USAGE, "temperature"),
        ([1], {"top_p": 0}, Exit.USAGE, "top_p"),
    ],
    ids=str,
)
def test_bad_requests(prompt: list[int], sampling: dict, code: Exit, says: str, hf: Path) -> None:
    engine = engine_of(hf)
    with pytest.raises(ToolError, match=says) as fault:
        engine.add(prompt, Sampling(**sampling))
    assert fault.value.code == code


def test_an_answer_ends_at_the_context(hf: Path) -> None:
    request = engine_of(hf).generate([[1] * 120], Sampling(max_new_tokens=1000, ignore_eos=True))[0]
    assert (len(request.output), request.finish) == (8, "length")


@pytest.mark.parametrize("limits, expected", [({}, 64), ({"cache_tokens": 5000}, 5000 // 128), ({"cache_tokens": 128}, 2)])
def test_how_many_at_once_by_the_memory(limits: dict, expected: int, hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(hf, **{"max_batch": None, "cache_tokens": None} | limits)
    assert (engine.max_batch, engine.scheduler.max_batch, engine.context) == (expected, expected, 128)
    free = 4 * 128 * engine.decoder.token_bytes() * 7  # a quarter is for the cache
    monkeypatch.setattr("jumar.infer.engine.free_bytes", lambda device: free)
    assert engine_of(hf, max_batch=None, cache_tokens=None).max_batch == 7


def test_a_request_that_the_cache_cannot_hold_is_refused(hf: Path) -> None:
    with pytest.raises(ToolError, match="pages"):
        engine_of(hf, cache_tokens=64).add([1] * 60, Sampling(max_new_tokens=60))
