"""Text as it comes: whole characters, stop texts across token borders."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumar.infer import Sampling
from jumar.infer.scheduler import Request
from jumar.infer.tokenizer import TextStream, Tokenizer
from jumar.schema.errors import ToolError

TEXT = "the 绳子 is 👩‍🚀 naïve — ok\n\tthe end"


@pytest.fixture(scope="module")
def tokenizer(hf: Path) -> Tokenizer:
    return Tokenizer(hf)


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    out = []
    for token in ids:
        stopped = stream.push(token)
        out.append(stream.take())
        if stopped:
            break
    stream.finish()
    return [*out, stream.take(last=True)]


def test_pieces_are_whole_characters_and_make_the_text(tokenizer: Tokenizer) -> None:
    found = pieces(TextStream(tokenizer), tokenizer.encode(TEXT))
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)
    assert sum(map(bool, found)) > 20


def test_an_unfinished_character_shows_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a绳")[:-1]
    assert pieces(TextStream(tokenizer), ids)[-1] == "\ufffd"


def test_an_unfinished_character_of_a_cut_answer_is_left_out(tokenizer: Tokenizer) -> None:
    """In what is streamed and in the text; whole ones stay."""
    ids = tokenizer.encode("a绳👩")
    for count, left in ((len(ids) - 1, "a绳"), (3, "a"), (len(ids), "a绳👩")):
        request = Request([0], Sampling(max_new_tokens=count), stream=TextStream(tokenizer))
        streamed = ""
        for token in ids[:count]:
            request.take(token)
            streamed += request.stream.take(last=request.finish is not None)
        assert (request.finish, request.text, streamed) == ("length", left, left)


@pytest.mark.parametrize(
    "stop, left",
    [(("子 is",), "the 绳"), (("zz", "the end"), TEXT[:-7]), (("t",), ""), (("end",), TEXT[:-3]), (("the endless",), TEXT)],
    ids=str,
)
def test_text_ends_before_a_stop_text(stop: tuple[str, ...], left: str, tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, stop)
    found = pieces(stream, tokenizer.encode(TEXT))
    assert "".join(found) == stream.text == left


def test_nothing_is_shown_that_may_begin_a_stop_text(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ("ab!",))
    shown = [(stream.push(token), stream.take())[1] for token in tokenizer.encode("xababab?")]
    assert shown == ["x", "", "", "ab", "", "ab", "", "ab?"]


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ToolError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
