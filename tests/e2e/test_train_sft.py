"""`jumar-train sft` from a raw file to a Hugging Face directory, as people start it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import forked
from jumar.schema.errors import ToolError
from jumar.schema.recipe import load_recipe
from jumar.train_core.data.prepared import prepared
from jumar.train_core.recipe import Recipe
from training import DONE, ENVIRONMENT, INPUT, USAGE, Run, environment, model_dir

pytestmark = pytest.mark.timeout(900)  # processes on a machine that others use as well
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]


def tokenizer(folder: Path) -> int:
    """Bytes, and the tokens of the template; returns their number."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.save(str(folder / "tokenizer.json"))
    facts = {"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return made.get_vocab_size()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    hf = model_dir(tmp_path / "hf", max_position_embeddings=128)
    vocabulary = tokenizer(hf)
    model_dir(tmp_path / "hf", max_position_embeddings=128, vocab_size=vocabulary)
    rows = [{"instruction": f"How much is {n} and {n}?", "output": f"It is {2 * n}."} for n in range(40)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"path": str(hf)},
        "data": {"train": str(tmp_path / "talks.jsonl"), "pack": True, "seq_len": 96, "split": [90, 10]},
        "train": {"epochs": 2, "global_batch_size": 4, "precision": "fp32", "eval_every": 100},
        "save": {"path": str(tmp_path / "run"), "hf": "end"},
    }
    return Run(tmp_path, values).write()


def test_a_raw_file_under_torchrun(run: Run) -> None:
    """The first rank prepares, the other waits for it; what comes out is a model with its tokenizer and template."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*start, "-m", "jumar.train_core", "sft", str(run.recipe), "--device", "cpu"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == DONE, done.stderr
    assert done.stderr.count("preparing") == 1
    assert run.ended()["code"] == DONE
    learned = run.learned()
    assert learned[max(learned)][0] < learned[1][0]
    assert len(run.metrics("eval_loss")) == 1
    (made,) = run.path.glob("hf_iter_*")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in made.iterdir()
    }
    again = forked.start(["sft", str(run.recipe), "--device", "cpu"], run.folder / "again.err", environment())
    assert forked.end([again], timeout=300) == [DONE]
    assert "nothing is left to do" in (run.folder / "again.err").read_text()


WRONG = {
    "columns": (
        "odd.jsonl",
        '{"x": 1}\n',
        "odd.jsonl cannot be prepared: what format is this?",
        "prepare it alone, and give its prefix",
    ),
    "an array that breaks off": (
        "cut.json",
        '[{"instruction": "a", "output": "b"}, {"instr',
        "line 1: the file ends",
        "mend the file",
    ),
    "no answer": (
        "none.jsonl",
        '{"instruction": "a", "output": ""}\n',
        "none of 1 records can be used",
        "see {cache}/none.rejects.jsonl",
    ),
}


@pytest.mark.parametrize("name, text, says, hint", WRONG.values(), ids=WRONG)
def test_what_is_no_conversation(
    run: Run, tmp_path: Path, name: str, text: str, says: str, hint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is the file's fault, said once, and by names that are there afterwards."""
    (tmp_path / name).write_text(text)
    recipe = load_recipe(Recipe, run.recipe, [f"data.train={tmp_path / name}"])
    with pytest.raises(ToolError) as fault:
        prepared(recipe, lambda: tmp_path / "hf")
    assert fault.value.code == INPUT
    assert says in fault.value.message
    assert hint.format(cache=tmp_path / "cache") in (fault.value.hint or "")
    assert not {word for word in capfd.readouterr().err.split() if word in ("error:", "hint:", "warning:")}
    left = [path.name for path in (tmp_path / "cache").iterdir()]
    assert left == (["none.rejects.jsonl"] if name == "none.jsonl" else [])


def test_what_is_left_out_is_named_where_it_lies(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "talks.jsonl").open("a") as file:
        file.write('{"x": 1}\n')
    recipe = prepared(load_recipe(Recipe, run.recipe), lambda: tmp_path / "hf")
    said = capfd.readouterr().err
    assert "note: read as alpaca" in said
    assert "warning: 1 of 41 records are left out" in said
    (rejects,) = re.findall(r"^hint: see (.*)$", said, re.MULTILINE)
    assert isinstance(recipe.data.train, Path)
    assert Path(rejects) == Path(f"{recipe.data.train}.rejects.jsonl")
    assert Path(rejects).is_file()


def test_what_is_prepared_is_of_what_is_in_the_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie, and however their paths are spelled; of a large one also of what comes behind its beginning."""
    talks, template, hf = tmp_path / "talks.jsonl", tmp_path / "my.json", tmp_path / "hf"
    rows = [{"instruction": f"{n}?", "output": f"{n}." * 10_000} for n in range(40)]
    talks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template.write_text(json.dumps([{"name": "brief", "format_user": {"slots": ["{{content}}: "]}, "stop_words": ["<|end|>"]}]))
    monkeypatch.chdir(tmp_path)

    def made(train: str, name: str) -> Path:
        recipe = load_recipe(Recipe, run.recipe, [f"data.train={train}", f"data.template={name}"])
        found = prepared(recipe, lambda: hf).data.train
        assert isinstance(found, Path)
        return found.resolve()

    first = made("talks.jsonl", "my.json")
    assert made(f"{tmp_path}/./talks.jsonl", f"{tmp_path}/my.json") == first
    template.write_text(template.read_text().replace("}}: ", "}}; "))
    second = made("talks.jsonl", "my.json")
    assert second != first
    talks.write_text(talks.read_text().replace("39.39.", "39.38."))
    assert made("talks.jsonl", "my.json") not in (first, second)


def test_raw_settings_in_the_recipe_s_words(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for sets, code, says in (
        (["data.template=chatmm"], USAGE, "data.template: no template is named 'chatmm'"),
        ([f"data.cache={tmp_path}/file/cache"], ENVIRONMENT, "what is prepared of raw files cannot be written to"),
    ):
        with pytest.raises(ToolError, match=says) as fault:
            prepared(load_recipe(Recipe, run.recipe, sets), lambda: tmp_path / "hf")
        assert (fault.value.code, "--" in (fault.value.hint or "")) == (code, False)
