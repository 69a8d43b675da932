"""What was typed wrongly is told before the model is read; and texts that are no texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infer_models import FAST
from jumar.infer import Sampling
from jumar.schema.errors import ToolError

ONE = ("generate", "-p", "x")
HALF = "caf\udce9"  # what Python makes of a byte of Latin-1


@pytest.mark.parametrize(
    "words, says",
    [
        ((*ONE, "--adapter", ""), "a path is empty"),
        (("generate", ""), "a path is empty"),
        ((*ONE, "--temperature", "-1"), "--temperature is -1.0, expected 0, or from 1e-05 to 1000"),
        ((*ONE, "--temperature", "1e-40"), "--temperature is 1e-40, expected 0, or from 1e-05 to 1000"),
        ((*ONE, "--temperature", "1001"), "--temperature is 1001.0, expected 0, or from 1e-05 to 1000"),
        ((*ONE, "--temperature", "inf"), "--temperature is inf"),
        ((*ONE, "--top-p", "1.5"), "--top-p is 1.5"),
        ((*ONE, "--seed", "-1"), f"--seed is -1, expected from 0 to {2**62 - 1}"),
        ((*ONE, "--repetition-penalty", "1e10"), "--repetition-penalty is 10000000000.0, expected from 1e-09 to 1000000000"),
        ((*ONE, "--stop", ""), "a stop text is empty"),
        ((*ONE, "--stop", HALF), "a stop text is not valid Unicode: U+DCE9 after 3 characters"),
        ((*ONE, "--logprobs", "101"), "--logprobs is 101"),
        ((*ONE, "--num-beams", "65"), "--num-beams"),
        ((*ONE, "--num-beams", "2", "--num-return", "3"), "2 beams have no 3 answers"),
        ((*ONE, "--num-beams", "2", "--stop", "a"), "stop texts"),
        ((*ONE, "--num-beams", "2", "--temperature", "1"), "--temperature 0"),
        ((*ONE, "--num-return", "2", "--temperature", "0"), "would be the same"),
        ((*ONE, "--template", "chatml"), "--template goes with --chat"),
        ((*ONE, "--chat", "--template", "no-such"), "no-such"),
        (("generate", "-p", HALF), "not valid Unicode"),
        (("chat", "--system", HALF), "not valid Unicode"),
        (("chat", "--top-k", "-1"), "--top-k is -1"),
        (("serve", "--template", "no-such"), "no-such"),
        (("serve", "--timeout-s", "inf"), "--timeout-s is inf"),
    ],
    ids=ascii,
)
def test_before_the_model_is_opened(words: tuple[str, ...], says: str, infer) -> None:
    """The model is not there: that would be 3."""
    done = infer(words[0], "nowhere", *words[1:])
    assert (done.code, done.out) == (2, ""), done.err
    assert says in done.err
    assert "Traceback" not in done.err


def test_numbers_without_an_end() -> None:
    for name in ("temperature", "repetition_penalty", "presence_penalty", "min_p"):
        for value in (float("inf"), float("nan")):
            with pytest.raises(ToolError, match=name):
                Sampling(**{name: value})
    with pytest.raises(ToolError, match="seed is 1000"):
        Sampling(seed=10**400)


def test_lines_as_editors_write_them(infer, hf: Path) -> None:
    """A byte order mark, CRLF, and what ends a line elsewhere within a text."""
    text = '{"prompt": "a\u2028b"}\n{"prompt": "c"}\n'
    plain = infer("generate", hf, "-", *FAST, stdin=text)
    assert [row["prompt"] for row in plain.lines] == ["a\u2028b", "c"]
    assert infer("generate", hf, "-", *FAST, stdin="\ufeff" + text.replace("\n", "\r\n")).out == plain.out
    done = infer("score", hf, "-", "--device", "cpu")
    assert (done.code, '{"text": "..."}' in done.err) == (3, True)


def test_a_chat_goes_on_after_what_is_no_text(infer, hf: Path) -> None:
    done = infer("chat", hf, *FAST, stdin=b"\xff\xfe\nhello\n/system \xe9\n")
    assert done.err.count("the message is not valid Unicode") == 2
    assert (done.code, done.out) == (3, infer("chat", hf, *FAST, stdin="hello\n").out)


def test_quotes_in_a_chat(infer, hf: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    typed = f'"""a\nb"""\n"""c"""\n"""\nd\n\n"""\n/save {file}\n/save {file}\n"""e\nf\n'
    done = infer("chat", hf, *FAST, "--max-new-tokens", 1, stdin=typed)
    asked = [message["content"] for message in json.loads(file.read_text()) if message["role"] == "user"]
    assert asked == ["a\nb", "c", "d\n"]
    assert (done.code, len(done.out.splitlines())) == (3, 3)
    assert "the input ends within" in done.err
    again = infer("chat", hf, stdin=f"/save {file}\n")
    assert (again.code, "is there already" in again.err, len(json.loads(file.read_text()))) == (3, True, 6)


def test_locale_c_and_no_standard_input(hf: Path) -> None:
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = f"{sys.executable} -m jumar.infer"
    script = f"{command} generate {hf} - {' '.join(map(str, FAST))} && {command} chat {hf} --device cpu <&-"
    row = json.dumps({"id": "绳 😀 é", "prompt": "a"}).encode()
    done = subprocess.run(["bash", "-c", script], env=env, input=row, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == "绳 😀 é"
