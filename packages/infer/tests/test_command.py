"""jumar-infer as people type it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from safetensors.torch import load_file, save_file

import infer_models
from infer_models import FAST
from jumar.infer import Engine, Sampling, answer_file
from jumar.infer.conversation import open_template
from jumar.infer.tokenizer import Tokenizer


def expected(hf: Path, prompt: str, count: int = 8) -> str:
    return Engine.open(hf, device="cpu").generate([prompt], Sampling(max_new_tokens=count))[0].text


def test_one_prompt(infer, hf: Path) -> None:
    done = infer("generate", hf, "-p", "the rope", *FAST)
    assert (done.code, done.out) == (0, expected(hf, "the rope") + "\n")
    assert "fp32" in done.err
    shown = json.loads(infer("generate", hf, "-p", "the rope", "--json", "--logprobs", 2, *FAST).out)
    (answer,) = shown["answers"]
    assert answer["text"] + "\n" == done.out
    assert len(answer["logprobs"]) == answer["tokens"] == 8
    assert all(entry["top"][0]["logprob"] == entry["logprob"] for entry in answer["logprobs"])


def test_lines_are_answered_in_order(infer, hf: Path, tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": text} for i, text in enumerate(("the rope", "a clamp that goes up", "绳"))]
    rows.append({"messages": [{"role": "user", "content": "hello"}]})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    done = infer("generate", hf, tmp_path / "rows.jsonl", "--max-batch", 2, *FAST)
    assert [row.get("id") for row in done.lines] == [0, 1, 2, None]
    assert [row["text"] for row in done.lines[:3]] == [expected(hf, row["prompt"]) for row in rows[:3]]
    assert done.lines[3]["text"] == expected_chat(hf, rows[3]["messages"])
    assert infer("generate", hf, "-", "--max-batch", 4, *FAST, stdin=text).out == done.out
    as_object = json.loads(infer("generate", hf, tmp_path / "rows.jsonl", "--json", *FAST).out)
    assert as_object["answers"] == done.lines


def expected_chat(hf: Path, messages: list[dict], count: int = 8) -> str:
    prompt = open_template(Tokenizer(hf)).prompt(messages)
    return Engine.open(hf, device="cpu").generate([prompt], Sampling(max_new_tokens=count))[0].text


def test_chat_prompt_and_templates(infer, hf: Path, tmp_path: Path) -> None:
    words = ("generate", hf, "-p", "hello", "--chat", *FAST)
    own = infer(*words).out
    assert own == expected_chat(hf, [{"role": "user", "content": "hello"}]) + "\n"
    (tmp_path / "same.jinja").write_text(infer_models.CHATML)
    assert infer(*words, "--template", tmp_path / "same.jinja").out == own
    (tmp_path / "other.jinja").write_text("{{ messages[0].content }}!")
    assert infer(*words, "--template", tmp_path / "other.jinja").out == expected(hf, "hello!") + "\n"


def test_a_named_template_is_the_models_own_text(hf: Path) -> None:
    """ChatML by slots, and by Jinja."""
    messages = [
        {"role": r, "content": c} for r, c in (("system", "be kind"), ("user", "hi"), ("assistant", "yes"), ("user", "?"))
    ]
    tokenizer = Tokenizer(hf)
    named = open_template(tokenizer, "qwen")
    assert named.prompt(messages) == open_template(tokenizer).prompt(messages)
    assert named.stop_ids == (infer_models.VOCAB - 1,)


def test_several_answers_with_a_seed(infer, hf: Path) -> None:
    words = ("generate", hf, "-p", "the rope", "--num-return", 3, "--temperature", 1.5, "--seed", 5, *FAST)
    first, second = infer(*words), infer(*words)
    assert first.out == second.out
    assert len({row["text"] for row in first.lines}) == 3
    assert infer("generate", hf, "-p", "x", "--num-return", 2, *FAST).code == 2


def test_beams(infer, hf: Path, tmp_path: Path) -> None:
    words = ("--num-beams", 3, "--num-return", 2, *FAST)
    alone = infer("generate", hf, "-p", "the rope", *words).lines
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "the rope"}\n')
    rows = infer("generate", hf, tmp_path / "rows.jsonl", *words).lines
    assert [row["text"] for row in rows[2:]] == [row["text"] for row in alone]
    assert [row["return"] for row in rows] == [0, 1, 0, 1]
    assert infer("generate", hf, "-p", "the rope", "--num-beams", 3, *FAST).out == alone[0]["text"] + "\n"
    assert infer("generate", hf, "-p", "x", "--length-penalty", 2, *FAST).code == 2


def test_stop_texts(infer, hf: Path) -> None:
    whole = expected(hf, "the rope", 30)
    stop = whole[3:5]
    done = infer("generate", hf, "-p", "the rope", "--stop", stop, *FAST, "--max-new-tokens", 30)
    assert done.out == whole[: whole.find(stop)] + "\n"


def test_defaults_are_the_models(infer, hf: Path, tmp_path: Path) -> None:
    """generation_config.json: what ends an answer, and how it is drawn."""
    model = tmp_path / "hf"
    model.mkdir()
    for file in hf.iterdir():
        (model / file.name).symlink_to(file)
    engine = Engine.open(model, device="cpu")
    ids = engine.generate(["the rope"], Sampling(max_new_tokens=6))[0].output
    (model / "generation_config.json").unlink()
    settings = {"eos_token_id": [ids[3], 0], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 5}
    settings |= {"num_beams": 4, "no_repeat_ngram_size": 3, "min_length": 0, "transformers_version": "5"}
    (model / "generation_config.json").write_text(json.dumps(settings))
    defaults = Engine.open(model, device="cpu").defaults
    assert defaults.eos_ids == (ids[3], 0)
    assert defaults.sampling(seed=1) == Sampling(temperature=0.6, top_p=0.9, top_k=50, max_new_tokens=5, seed=1)
    done = infer("generate", model, "-p", "the rope", "--temperature", 0, "--json", "--device", "cpu")
    assert json.loads(done.out)["answers"][0]["finish"] == "stop"
    assert json.loads(done.out)["answers"][0]["tokens"] == ids.index(ids[3]) + 1
    assert "note: generation_config.json: no_repeat_ngram_size, num_beams passed over" in done.err


def test_score(infer, hf: Path, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "the rope"}, {"prompt": "the rope", "completion": " holds"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = infer("score", hf, tmp_path / "rows.jsonl", "--logprobs", "--device", "cpu", "--cache-tokens", 256)
    whole, completion = done.lines
    assert whole["id"] == "a"
    assert whole["tokens"] == len(Tokenizer(hf).encode("the rope")) - 1
    assert sum(entry["logprob"] for entry in whole["logprobs"]) == pytest.approx(whole["logprob"], abs=1e-4)
    assert completion["tokens"] == len(Tokenizer(hf).encode("the rope holds")) - whole["tokens"] - 1
    assert completion["perplexity"] > 1
    assert completion["greedy"] is False


def test_an_adapter_is_merged_as_it_is_read(infer, hf: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(hf), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([Tokenizer(hf).encode("the rope")])
    out = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
    done = infer("generate", hf, "-p", "the rope", "--adapter", tmp_path / "adapter", *FAST)
    whole = Tokenizer(hf).decode(out[0, ids.shape[1] :].tolist()).rstrip("\ufffd")  # a cut answer leaves out half a character
    assert done.out == whole + "\n"
    assert done.out != expected(hf, "the rope") + "\n"
    assert "merged" in done.err
    infer_models.make(tmp_path / "other", "llama", hidden_size=32)
    wrong = infer("generate", tmp_path / "other", "-p", "x", "--adapter", tmp_path / "adapter", *FAST)
    assert (wrong.code, "adapter" in wrong.err, "Traceback" in wrong.err) == (3, True, False), wrong.err


# --- what is wrong


def test_bad_rows(infer, hf: Path, tmp_path: Path) -> None:
    for line, says in (
        ("{", "not JSON"),
        ("[1]", "a list, expected an object"),
        ("{}", "one of prompt and messages"),
        ('{"prompt": 1}', "prompt is of type int"),
        ('{"messages": []}', "messages is empty"),
        ('{"messages": [{"role": "nobody", "content": ""}]}', "role 'nobody'"),
        (json.dumps({"prompt": "x" * 200}), "context is 128"),
        (r'{"prompt": "\ud800"}', "not valid Unicode: U+D800"),
        (r'{"messages": [{"role": "user", "content": "a\udc00"}]}', "not valid Unicode: U+DC00"),
        ('{"prompt": "x", "id": NaN}', "not JSON: NaN"),
        ('{"prompt": "x", "id": 1e400}', "not JSON: 1e400"),
        ('{"prompt": "x", "tools": []}', "tools go with messages"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": "foo"}', "tools is no list"),
        ("[" * 100_000, "nested too deeply"),
    ):
        (tmp_path / "rows.jsonl").write_text('{"prompt": "fine"}\n\n' + line + "\n")
        done = infer("generate", hf, tmp_path / "rows.jsonl", *FAST)
        assert (done.code, done.out) == (3, ""), line
        assert "rows.jsonl:3" in done.err
        assert says in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "words, code, says",
    [
        (("generate", "HF"), 2, "one of -p TEXT and a file"),
        (("generate", "HF", "-p", "x", "--temperature", "-1"), 2, "temperature"),
        (("generate", "HF", "-p", "x", "--dtype", "fp3"), 2, "fp3"),
        (("generate", "HF", "-p", "x", "--device", "abacus"), 2, "abacus"),
        (("generate", "HF", "-p", ""), 3, "prompt is empty"),
        (("generate", "nowhere", "-p", "x"), 3, "does not exist"),
        (("generate", "EMPTY", "-p", "x"), 3, "no checkpoint"),
        (("generate", "HF", "rows.jsonl"), 3, "cannot be read"),
        (("chat", "HF", "--template", "no-such"), 2, "no-such"),
        (("score", "HF", "-"), 3, "no lines"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(words: tuple[str, ...], code: int, says: str, infer, hf: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = infer(*({"HF": hf, "EMPTY": tmp_path / "empty"}.get(word, word) for word in words), stdin="")
    assert done.code == code, done.err
    assert says in done.err
    assert "hint:" in done.err
    assert "Traceback" not in done.err


def test_damaged_models(infer, hf: Path, tmp_path: Path) -> None:
    for name in ("missing", "unknown", "shape"):
        (tmp_path / name).mkdir()
        for file in hf.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    tensors = load_file(hf / "model.safetensors")
    gone = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "missing/model.safetensors")
    save_file(tensors | {"model.layers.1.mlp.up_proj.weight": gone[:5]}, tmp_path / "shape/model.safetensors")
    config = json.loads((hf / "config.json").read_text())
    (tmp_path / "unknown/config.json").write_text(json.dumps(config | {"model_type": "abacus"}))
    for name, says in (("missing", "model.layers.1.mlp.up_proj.weight"), ("shape", "up_proj"), ("unknown", "abacus")):
        done = infer("generate", tmp_path / name, "-p", "x", *FAST)
        assert (done.code, says in done.err, "Traceback" in done.err) == (3, True, False), done.err


# --- chat


def test_chat_over_a_pipe(infer, hf: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    typed = [
        "hello",
        "/retry",
        "/system be kind",
        "two \\",
        "lines",
        '"""',
        "a",
        "",
        "b",
        '"""',
        f"/save {saved}",
        "/what",
        "/quit",
        "x",
    ]
    done = infer("chat", hf, *FAST, stdin="\n".join(typed) + "\n")
    assert done.code == 0
    first = expected_chat(hf, [{"role": "user", "content": "hello"}])
    talk: list[dict] = [{"role": "system", "content": "be kind"}]
    for text in ("two \nlines", "a\n\nb"):
        talk.append({"role": "user", "content": text})
        talk.append({"role": "assistant", "content": expected_chat(hf, talk)})
    assert done.out == "".join(text + "\n" for text in (first, first, talk[2]["content"], talk[4]["content"]))
    assert json.loads(saved.read_text()) == talk
    assert "/retry" in done.err


def test_ctrl_c_stops_the_answer_and_not_the_chat(tmp_path: Path) -> None:
    infer_models.llama_with_tokenizer(tmp_path / "hf", max_position_embeddings=20000, eos_token_id=None)
    (tmp_path / "hf/generation_config.json").write_text("{}")
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps({"chat_template": infer_models.CHATML}))
    words = ["-m", "jumar.infer", "chat", str(tmp_path / "hf"), "--device", "cpu", "--max-new-tokens", "15000"]
    child = pexpect.spawn(sys.executable, words, timeout=120, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"})
    child.expect("> ")
    child.sendline("hello")
    child.expect("hello\r\n")
    child.expect(".{20}")
    child.sendintr()
    child.expect(r"\(stopped\)")
    child.expect("> ")
    child.send("\x1b[A")  # the arrow up brings the last line back
    child.expect("hello")
    child.send("\x15")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_reader_that_goes_away_ends_it(hf: Path) -> None:
    """`jumar-infer ... | head -1`"""
    command = f"{sys.executable} -m jumar.infer generate {hf} - --device cpu --max-new-tokens 4"
    rows = '{"prompt": "a"}\n' * 2000
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"], input=rows, capture_output=True, text=True, timeout=200
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_answers_go_to_a_file_once(infer, hf: Path, tmp_path: Path) -> None:
    """A second call opens no model and touches nothing; with other prompts, another model or other options it is an error."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"id": 1, "prompt": "the rope"}\n{"id": 2, "prompt": "a jumar"}\n')
    shown = infer("generate", hf, prompts, *FAST)
    done = infer("generate", hf, prompts, "-o", out, "--json", *FAST)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    tokens = sum(line["tokens"] for line in shown.lines)
    assert {**told, "seconds": 0} == {"out": str(out), "already_done": False, "seconds": 0, "samples": 2, "tokens": tokens}
    assert [json.loads(line) for line in out.read_text().splitlines()] == shown.lines
    manifest = json.loads((tmp_path / "answers.jsonl.manifest.json").read_text())
    assert {"config.json", "model.safetensors", "prompts.jsonl", "tokenizer.json"} <= {
        each["name"] for each in manifest["inputs"]
    }
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = infer("generate", hf, prompts, "-o", out, *FAST)
    assert (again.code, again.out, again.err) == (0, f"already done: {out}: 2 lines, {tokens} tokens\n", "")
    by_python = answer_file(hf, prompts, out, max_new_tokens=int(FAST[FAST.index("--max-new-tokens") + 1]))
    assert (by_python.already_done, by_python.samples, by_python.tokens) == (True, 2, tokens)
    for words in (["--temperature", "0.5"], ["--dtype", "bf16"], ["--num-beams", "2"]):
        other = infer("generate", hf, prompts, "-o", out, *FAST, *words)
        assert (other.code, other.out) == (3, "")
        assert "was not made of these files with these options" in other.err
        assert "--force" in other.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    prompts.write_text('{"id": 1, "prompt": "the rope"}\n')
    assert infer("generate", hf, prompts, "-o", out, *FAST).code == 3
    assert infer("generate", hf, prompts, "-o", out, "--force", *FAST).code == 0
    assert len(out.read_text().splitlines()) == 1
    assert infer("generate", hf, "-", "-o", out, *FAST, stdin="{}").code == 2
    assert infer("generate", hf, prompts, "-o", tmp_path / "nowhere/x", *FAST).code == 4
    assert not list(tmp_path.glob("*.part"))


def test_answers_are_known_again_however_paths_are_spelled(infer, hf: Path, tmp_path: Path, monkeypatch) -> None:
    """A template in a file is known by its name and what is in it."""
    home = tmp_path / "home"
    shutil.copytree(hf, home / "hf")
    (tmp_path / "link").symlink_to(home)
    (home / "hf/prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "the rope"}]}\n')
    (home / "t.jinja").write_text("{{ messages[0].content }}:")
    monkeypatch.chdir(home)
    done = infer("generate", "hf", "hf/prompts.jsonl", "-o", "a.jsonl", "--template", "t.jinja", "--tokenizer", "hf", *FAST)
    assert done.code == 0, done.err
    before = {path: path.stat().st_mtime_ns for path in home.iterdir()}
    spelled = [
        (home, ".", f"{home}/"),
        (home / "hf", "..", "../"),
        (tmp_path, "link", f"{home}/"),
        (tmp_path, "home/", "link/hf/../"),
    ]
    for cwd, one, other in spelled:
        monkeypatch.chdir(cwd)
        line = ("generate", f"{one}/hf/", f"{other}hf/prompts.jsonl", "-o", f"{one}/a.jsonl", "--template", f"{other}t.jinja")
        again = infer(*line, "--tokenizer", f"{other}hf", *FAST)
        assert again.out.startswith("already done"), (again.err, cwd, one, other)
    assert {path: path.stat().st_mtime_ns for path in home.iterdir()} == before
    (home / "t.jinja").write_text("{{ messages[0].content }};")
    other = infer(*line, "--tokenizer", f"{home}/hf", *FAST)
    assert other.code == 3
    assert "was not made of these files with these options: t.jinja" in other.err


def test_scores_go_to_a_file_once(infer, hf: Path, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "scores.jsonl"
    texts.write_text('{"text": "the rope"}\n')
    shown = infer("score", hf, texts, "--device", "cpu").lines
    for already in (False, True):
        told = json.loads(infer("score", hf, texts, "-o", out, "--json", "--device", "cpu").out)
        assert (told["out"], told["already_done"], told["tokens"]) == (str(out), already, shown[0]["tokens"])
    assert [json.loads(line) for line in out.read_text().splitlines()] == shown
    assert infer("score", hf, texts, "-o", out, "--logprobs", "--device", "cpu").code == 3
