"""Scores with shared beginnings are those without, and do not depend on what else is scored."""

from __future__ import annotations

from pathlib import Path

import pytest

import infer_models
from jumar.eval import computing, scoring
from jumar.eval.local import LocalModel, Opening
from jumar.eval.requests import Request, Response
from jumar.eval.scoring import Text, score
from jumar.infer import Engine, Sampling
from jumar.infer.engine import Limits
from jumar.schema.errors import ToolError

HEAD = infer_models.random_ids(77, vocab=infer_models.VOCAB, seed=1)


def engine_of(hf: Path, **limits: int) -> Engine:
    return Engine.open(hf, Limits(**({"max_batch": 4, "cache_tokens": 4096} | limits)), device="cpu")


def texts() -> list[Text]:
    """After the whole head, a part of it, none; one continuation and several, of one token and more."""
    ids = infer_models.random_ids(900, vocab=infer_models.VOCAB, seed=2)
    shapes = [(77, 40, (1, 1, 1)), (64, 5, (1, 3, 9)), (50, 70, (4,)), (0, 33, (2, 40)), (77, 1, (1,)), (31, 600, (3, 1))]
    out = []
    for shared, own, rests in shapes:
        context = [*HEAD[:shared], *ids[:own]]
        out.append(Text(context, [ids[own + i : own + i + size] for i, size in enumerate(rests)], shared))
    return out


def scored(engine: Engine, chosen: list[Text]) -> list[list[list[tuple[float, bool]]]]:
    score(engine, HEAD, chosen, lambda text: None)
    assert engine.cache.in_use == 0
    return [text.scores for text in chosen]


def test_scores_are_those_of_whole_sequences(hf: Path) -> None:
    engine = engine_of(hf)
    for text, found in zip(texts(), scored(engine, texts()), strict=True):
        for rest, of_rest in zip(text.rests, found, strict=True):
            (whole,) = engine.score([(text.context, rest)])
            assert [s.logprob for s in whole.scores] == pytest.approx([value for value, _ in of_rest], abs=1e-5)
            assert [s.top[0][0] == s.token for s in whole.scores] == [best for _, best in of_rest]


def test_what_else_is_scored_changes_no_bit(hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does how much is computed at once, nor that the cache holds one text at a time."""
    together = scored(engine_of(hf), texts())
    alone = [scored(engine_of(hf), [text])[0] for text in texts()]
    assert alone == together
    for module in (computing, scoring):
        monkeypatch.setattr(module, "TOKENS", 1)
    assert scored(engine_of(hf, cache_tokens=900), texts()) == together
    single = [Text(text.context, [rest], text.shared) for text in texts() for rest in text.rests]
    assert scored(engine_of(hf), single) == [[scores] for found in together for scores in found]


def test_a_text_that_the_cache_cannot_hold_is_refused(hf: Path) -> None:
    with pytest.raises(ToolError, match=r"needs .* tokens of the cache, which has 224"):
        scored(engine_of(hf, cache_tokens=320), texts())


def responses(model: LocalModel, requests: list[Request]) -> list[Response]:
    found: dict[int, Response] = {}
    model.answer(requests, found.__setitem__)
    return [found[number] for number in range(len(requests))]


@pytest.mark.parametrize("model_type, options", [("mamba2", {}), ("llama", {"engine": "transformers"})])
def test_models_whose_beginnings_cannot_be_shared(model_type: str, options: dict, tmp_path: Path) -> None:
    """They keep states, or another engine computes them: the same requests, each with all of its context."""
    infer_models.make(tmp_path / "hf", model_type, vocab_size=infer_models.VOCAB, eos_token_id=infer_models.VOCAB - 1)
    infer_models.add_tokenizer(tmp_path / "hf")
    model = LocalModel(tmp_path / "hf", Opening(device="cpu", cache_tokens=2048, max_batch=2, **options))
    asked = [Request("loglikelihood", "a rope and ", rest, head="a rope ") for rest in ("a", "the knot")]
    asked += [Request("generate", f"a rope {word}", head="a rope ", max_new_tokens=5) for word in ("up", "down", "on the wall")]
    found = responses(model, asked)
    for request, response in zip(asked[:2], found[:2], strict=True):
        (whole,) = model.engine.score([model.pair(request.context, request.rest)])
        assert response.value[0] == pytest.approx(sum(s.logprob for s in whole.scores), abs=1e-5)
    assert model.engine.tokenizer is not None
    wanted = [model.engine.generate([r.context], Sampling(max_new_tokens=5))[0] for r in asked[2:]]
    assert [response.value for response in found[2:]] == [model.engine.tokenizer.decode(answer.output) for answer in wanted]


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The same weights with a longer context."""
    path = tmp_path_factory.mktemp("longer") / "hf"
    infer_models.llama_with_tokenizer(path, max_position_embeddings=2000)
    return engine_of(path)


def test_windows_predict_every_token_once(hf: Path, longer: Engine) -> None:
    """Of a text that is longer than the context: a log-likelihood that is the sum of its windows', as lm-eval makes them."""
    model = LocalModel(hf, Opening(device="cpu", cache_tokens=4096))
    text = "rope and knot, " * 250
    windows = model.windows(text)
    assert [len(a) + len(b) - 1 for a, b in windows] == [1600, 1600, 1600]
    assert [token for _, rest in windows for token in rest] == model.engine.encode(text)
    (found,) = responses(model, [Request("rolling", "", text)])
    wanted = [sum(s.logprob for s in longer.score([window])[0].scores) for window in windows]
    assert found.value == pytest.approx(sum(wanted), rel=1e-6)


def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_counted(hf: Path, longer: Engine) -> None:
    model = LocalModel(hf, Opening(device="cpu", cache_tokens=8192))
    context = "a long way " * 300
    long, short = responses(model, [Request("loglikelihood", context, "up"), Request("loglikelihood", "a way ", "up")])
    ids, rest = model.pair(context, "up")
    (whole,) = longer.score([(ids[len(ids) + len(rest) - 1 - 1600 :], rest)])
    assert (long.truncated, short.truncated) == (True, False)
    assert long.value[0] == pytest.approx(sum(s.logprob for s in whole.scores), abs=1e-5)
    (text,) = responses(model, [Request("generate", context, max_new_tokens=4)])
    assert text.truncated


def test_spaces_at_the_border_belong_to_the_continuation(hf: Path) -> None:
    model = LocalModel(hf, Opening(device="cpu", cache_tokens=2048))
    assert model.pair("the  ", "the") == model.pair("the", "  the")
    assert model.pair("", "x")[0] == [model.prefix] == [infer_models.VOCAB - 1]


def test_a_continuation_of_no_tokens_is_refused(hf: Path) -> None:
    """Nothing would be the most probable choice of all."""
    model = LocalModel(hf, Opening(device="cpu", cache_tokens=2048))
    with pytest.raises(ToolError, match="no token stands behind 'the rope'"):
        responses(model, [Request("loglikelihood", "the rope", rest) for rest in (" up", "")])
