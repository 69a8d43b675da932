"""Requests and answers of the API, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumar.infer import Engine, Request, Sampling
from jumar.infer.openai_api import Answers
from jumar.infer.sampling import LogProb
from jumar.infer.tokenizer import TextStream


@pytest.mark.parametrize("chat", (True, False))
def test_every_log_probability_is_told_once(chat: bool, hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the engine's thread adds more while a chunk is made: here each token that is decoded brings another."""
    engine = Engine.open(hf, device="cpu")
    assert engine.tokenizer is not None
    request = Request([1], Sampling(logprobs=0), stream=TextStream(engine.tokenizer))
    decoded = list[int]()

    def more(token: int) -> str:
        decoded.append(token)
        if len(request.output) < 12:
            following = ord("A") + len(request.output)
            request.logprobs.append(LogProb(engine.encode(chr(following))[0], -float(following)))
            request.take(request.logprobs[-1].token)
        else:
            request.finish = "length"
        return engine.tokenizer.decode([token])

    monkeypatch.setattr(engine.tokenizer, "token", more)
    request.logprobs.append(LogProb(engine.encode("@")[0], -float(ord("@"))))
    request.take(request.logprobs[0].token)
    answers, logs = Answers(engine, "tiny", chat=chat), list[dict]()
    while found := answers.chunks([request]):
        logs += [chunk["choices"][0]["logprobs"] for chunk in found]
    expected = [entry.logprob for entry in request.logprobs]
    assert len(expected) == len(decoded) == 12
    if chat:
        assert [entry["logprob"] for log in logs for entry in log["content"]] == expected
        return
    assert [value for log in logs for value in log["token_logprobs"]] == expected
    assert "".join(token for log in logs for token in log["tokens"]) == request.text
    assert [at for log in logs for at in log["text_offset"]] == list(range(12))
    assert {len(set(map(len, log.values()))) for log in logs} == {1}
