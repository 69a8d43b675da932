"""What the documentation says is true: commands run and print what is shown, options exist, links lead somewhere.

    python tests/docs/test_docs.py            rewrites what can be: shown outputs, the table of families, the translations' blocks
    python tests/docs/test_docs.py docs/a.md  only that of the pages named

A comment before a fenced block says what is done with it:
    <!-- run -->        its `$ ` lines are run, in order, in one directory for each page; the other lines are what they print
    <!-- run data -->   the same in a directory that holds the files of docs/data.md
    <!-- run demo -->   the same in a directory that holds the demo's `hf`, by the slow test
    <!-- file NAME -->  it is written there as NAME
    <!-- elsewhere: FILE -->  its like is run by that file
    <!-- not run: WHY -->     it is not run; its lines are parsed, and the options of our commands looked up
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from jumar.device.npu_releases import RELEASES
from jumar.eval.task import PROTOCOLS, task_files
from jumar.schema.errors import Exit
from jumar.schema.families import llama
from jumar.schema.family import Family
from jumar.schema.registry import families
from pages import (
    DEMO,
    DOCS,
    FAMILIES,
    PAGES,
    PROGRAMS,
    ROOT,
    RUNNABLE,
    SUPPORT,
    TOUR,
    TRANSLATED,
    Play,
    Terminal,
    alike,
    blocks,
    play,
    relative,
    rows,
    translator,
)

OTHERS_OPTIONS = {
    *("--extra-index-url", "--moe-layer-freq", "--dist-ckpt-optim-fully-reshardable", "--data-path"),  # of pip, of Megatron-LM
    *("--rdzv_endpoint", "--nodes", "--fp", "--clip-grad", "--tensorboard-dir"),  # of torchrun, Slurm and Megatron-LM
    *("--npu", "--torch-free", "--plan"),  # of scripts/wheelhouse.py
    # of MindSpeed-LLM's preprocess_data.py
    *("--input", "--output-prefix", "--tokenizer-name-or-path", "--seq-length", "--n-subs", "--merge-group-keys"),
    *("--handler-name", "--json-keys", "--map-keys", "--dataset-additional-keys", "--keep-newlines", "--data-obfuscation"),
    *("--prompt-type", "--prompt-type-path", "--enable-thinking", "--placeholder-token", "--reward-tokens", "--neat-pack"),
    *("--interleave-probs", "--mix-strategy"),
    *(
        "--evaluation-batch-size",
        "--alternative-prompt",
        "--hf-chat-template",
        "--chain-of-thought",
        "--max-position-embeddings",
    ),  # of its evaluation.py
    *("--use_cache", "--apply_chat_template", "--model_args", "--batch_size"),  # of lm-eval
    *("--nnodes", "--nproc-per-node", "--signal", "--gpus-per-node", "--gres"),  # of torchrun, of Slurm
}
MEGATRON = re.compile(r"^\| `--.*$", re.MULTILINE)
"""Rows of a table that begin with flags of Megatron-LM."""


@pytest.mark.timeout(1800)  # the page of training starts some ten processes that import torch
@pytest.mark.parametrize(
    "what",
    [pytest.param(what, id=relative(what.page), marks=[pytest.mark.slow] * what.slow) for what in RUNNABLE],
)
def test_commands_print_what_is_shown(what: Play, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, apart=what.apart, columns=what.columns)
    count = 0
    for _, command, shown, printed in play(what, terminal):
        assert alike(printed, shown), "\n".join([command, "mend with: python tests/docs/test_docs.py", *printed])
        count += 1
    assert count > 5


@pytest.mark.slow
@pytest.mark.skipif(not DEMO.exists(), reason="the demo's model is not here (make demo)")
def test_the_tour_prints_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "hf").symlink_to(DEMO)
    for _, command, shown, printed in play(TOUR, Terminal(tmp_path)):
        assert alike(printed, shown), f"{command}\nmend with: python tests/docs/test_docs.py"


# --- commands and options


Options = dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Program -> command -> its options, by its help; command "" for those of the program itself."""
    terminal = Terminal(tmp_path_factory.mktemp("help"))
    found: Options = {}
    for name, program in PROGRAMS.items():
        help_of = {command: "\n".join(terminal.run(f"{name} {command} --help")) for command in ("", *program.commands)}
        listed = re.findall(r"^│ ([a-z-]+) ", help_of[""].partition("Commands")[2], re.MULTILINE)
        assert tuple(listed) == program.commands
        found[name] = {command: set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) for command, text in help_of.items()}
    return found


def commands(page: Path) -> Iterator[str]:
    """Every mention of a command line: in fenced blocks, and between backquotes."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        typed = [line for line in block.content if line.startswith("$ ")] or block.content
        yield from (m[0] for line in typed for m in re.finditer(r"jumar-[a-z]+ [^|]*", line.split("  #")[0]))
    yield from re.findall(r"`(jumar-[a-z]+ [^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_command_exists(page: Path, options: Options) -> None:
    for line in commands(page):
        program, *rest = line.split()
        if program not in PROGRAMS:
            there = list(ROOT.glob(f"packages/{program.removeprefix('jumar-')}*"))
            assert not there, f"{program} is there: check its lines too"
            continue
        command = rest[0] if rest and not rest[0].startswith("-") else ""
        assert command in options[program] or command == "COMMAND", line
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)) - options[program].get(command, set()) - {"--help"}
        assert not unknown, f"{line}: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_command_is_run_or_it_is_said_why_not(page: Path) -> None:
    for block in (block for block in blocks(page) if block.language in ("sh", "bash", "console")):
        does, _, what = block.marker.partition(": ")
        where = f"{relative(page)}, line {block.line + 1}"
        assert does.startswith(("run", "file ")) or (does in ("elsewhere", "not run") and what), where
        assert does != "elsewhere" or (ROOT / what).is_file(), f"{where}: {what}"
        shown = block.language == "console"
        typed = [line.removeprefix("$ ") for line in block.content if not shown or line.startswith("$ ")]
        parsed = subprocess.run(["bash", "-n"], input="\n".join(typed), capture_output=True, text=True)
        assert parsed.returncode == 0, f"{where}: {parsed.stderr}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in ("benchmarks.md", "contracts.md")], ids=relative)
def test_every_option_named_in_passing_exists(page: Path, options: Options) -> None:
    text = MEGATRON.sub("", page.read_text(encoding="utf-8"))
    named = set(re.findall(r"`(--[a-z][a-z_-]+)[^`]*`", text))
    assert named <= set().union(*(of for program in options.values() for of in program.values())) | OTHERS_OPTIONS


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_is_documented(program: str, options: Options) -> None:
    text = PROGRAMS[program].page.read_text(encoding="utf-8")
    every = set().union(*options[program].values()) - {"--help"}
    assert not {option for option in every if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)}


# --- facts that stand in the code too


def table_of_families() -> list[str]:
    """The table in docs/families.md, from the registry."""
    columns = ("model_type", "models", "attention", "MLP", "norms", "positions", "dialects")
    rows = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    folder = Path(str(llama.__file__)).parent  # without those of other packages
    for name, family in families().items():
        if (folder / f"{name}.py").exists():
            doc = importlib.import_module(f"{llama.__package__}.{name}").__doc__ or ""
            models = re.split(r"[:.,] |\.$", doc.splitlines()[0])[0]
            rows.append("| " + " | ".join([f"`{name}`", models, *traits(family), ", ".join(family.dialects)]) + " |")
    return rows


def traits(family: Family) -> tuple[str, str, str, str]:
    """Attention, MLP, norms, positions, as the tiny configuration has them."""
    spec = family.spec(family.tiny)
    grouped = "GQA" if spec.num_kv_heads < spec.num_heads else "multi-head"
    extras = {"biases": spec.qkv_bias, "q and k norms": spec.qk_norm, "sliding window": spec.sliding_window}
    extras["soft caps"] = spec.attn_softcap
    kind = "latent (MLA)" if spec.mla else "none (Mamba-2)" if spec.ssm else grouped
    if spec.pattern:
        kind = f"{grouped} or Mamba-2, by layer"
    attention = ", ".join([kind, *(text for text, has in extras.items() if has)])
    mlp = "none" if spec.ssm and not spec.pattern else "gated" if spec.gated else "plain, biases" if spec.mlp_bias else "plain"
    if moe := spec.moe:
        shared = ["shared expert with gate" if moe.shared_gate else "shared experts"] if moe.shared_ffn_size else []
        mlp = ", ".join(["experts", *shared, *(["dense layers"] if moe.dense_layers else [])])
    norms = {"rms": "RMS", "layer": "LayerNorm"}[spec.norm] + (", after too" if spec.post_norms else "")
    positions = {"rope": "RoPE", "learned": "learned", "none": "none"}[spec.position]
    partly = f" on {spec.rope.fraction:g} of the head" if spec.rope.fraction != 1 else ""
    return attention, mlp + (", MTP" if spec.mtp_layers else ""), norms, positions + partly


def test_the_table_of_families_is_the_registry() -> None:
    table = table_of_families()
    for page, lines in ((FAMILIES, table), (TRANSLATED[FAMILIES], rows("families", table))):
        assert "\n".join(lines) in page.read_text(encoding="utf-8"), "mend with: python tests/docs/test_docs.py"


def test_the_page_of_what_is_read_and_written_is_what_the_tests_show() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/compatibility.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_of_flags_is_what_the_tables_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/flags.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_of_support_has_all_that_the_registries_have() -> None:
    tasks = {name for protocol in PROTOCOLS for name in task_files(protocol)}
    devices = {point.name for point in entry_points(group="jumar.devices")}
    for page, say in ((SUPPORT, str), (TRANSLATED[SUPPORT], translator("support"))):
        text = page.read_text(encoding="utf-8")
        for title, there in {"Model families": set(families()), "Devices": devices, "Benchmarks": tasks}.items():
            table = re.search(rf"^## {say(title)}\n\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
            assert set(re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)) == there, "mend with: python scripts/support.py"


@pytest.mark.slow
def test_the_page_of_support_is_what_registries_and_tests_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/support.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_of_torch_npu_is_the_doctors() -> None:
    for page, sign in ((DOCS / "versions.md", " and "), (DOCS / "zh/versions.md", " 与 ")):
        table = re.search(r"^\| CANN \|.*\n.*\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)[1]
        rows = (line.strip("| ").split(" | ") for line in table.splitlines())
        found = {cann: tuple(tuple(pair.split(sign)) for pair in re.split("[,，] ?", pairs)) for cann, pairs in rows}
        assert found == RELEASES


def test_exit_codes_are_those_of_the_code() -> None:
    item = re.search(r"^14\. .*?^15\. ", (ROOT / "docs/contracts.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    assert sorted(map(int, re.findall(r"^ +\| (\d+) \|", item, re.MULTILINE))) == sorted(Exit)


def test_pages_that_the_code_names_are_there() -> None:
    """`docs/page.md`, and `docs/contracts.md, 14` for an item of it."""
    sources = [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    for source in sources:
        for name, number in re.findall(r"(?<![\w/])(docs/[\w/-]+\.md)(?:, (\d+))?", source.read_text()):
            page = ROOT / name
            assert page.exists(), f"{relative(source)}: {name}"
            items = re.findall(r"^(\d+)\. ", page.read_text(), re.MULTILINE)
            assert not number or number in items, f"{relative(source)}: {name}, {number}"


# --- links and translations


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in slugs(there), target


def test_both_languages_have_the_same_pages() -> None:
    here = {page.relative_to(DOCS / "zh") for page in DOCS.glob("zh/**/*.md")}
    assert here == {page.relative_to(DOCS) for page in DOCS.glob("**/*.md")} - {Path("zh", page) for page in here}


def outline(page: Path) -> dict[str, object]:
    """What a translation has in common with its page: depths of headings, rows of tables, items of lists, names in code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    marks = re.findall(r"^(#+(?= )| *\|| *(?:-|\d+\.)(?= ))", text, re.MULTILINE)
    return {
        "headings": [mark for mark in marks if "#" in mark],
        "rows": sum("|" in mark for mark in marks),
        "items": sum(mark.strip(" 0123456789") in ("-", ".") for mark in marks),
        "code": {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)},
    }


def test_no_page_holds_both_sides_of_a_merge() -> None:
    halves = re.compile(r"^(<{7}|>{7}) |^={7}$", re.MULTILINE)
    assert not [relative(page) for page in PAGES if halves.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", TRANSLATED, ids=relative)
def test_translations_keep_step(page: Path) -> None:
    other = TRANSLATED[page]
    theirs, ours = ([(b.language, b.marker, b.content) for b in blocks(one)] for one in (other, page))
    assert theirs == ours, "mend contents with: python tests/docs/test_docs.py"
    assert outline(other) == outline(page)


# --- rewriting


def rewrite_outputs(what: Play, terminal: Terminal) -> None:
    """Puts what the commands print in place of what is shown, where the two differ."""
    new: dict[int, list[str]] = {}
    for block, command, shown, printed in play(what, terminal):
        kept = shown if alike(printed, shown) else printed
        new.setdefault(block.line, []).extend([f"$ {command}", *kept])
    replace_blocks(what.page, new)


def replace_blocks(page: Path, new: dict[int, list[str]]) -> None:
    """new: line of a block's fence -> its content."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in reversed(blocks(page)):
        if block.line in new:
            lines[block.line + 1 : block.line + 1 + len(block.content)] = new[block.line]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    shown, table = re.compile(r"^\| model_type \|.*\n(?:\|.*\n)*", re.MULTILINE), table_of_families()
    for page, lines in ((FAMILIES, table), (TRANSLATED[FAMILIES], rows("families", table))):
        new = "\n".join(lines) + "\n"
        page.write_text(shown.sub(lambda _, new=new: new, page.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    pages = {Path(name).resolve() for name in sys.argv[1:]} or {*TRANSLATED, *(what.page for what in RUNNABLE)}
    for what in (what for what in RUNNABLE if what.page in pages):
        with tempfile.TemporaryDirectory() as home:
            rewrite_outputs(what, Terminal(Path(home), apart=what.apart, columns=what.columns))
    if DEMO.exists() and TOUR.page in pages:
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / "hf").symlink_to(DEMO)
            rewrite_outputs(TOUR, Terminal(Path(home)))
    for page, other in ((page, other) for page, other in TRANSLATED.items() if page in pages):
        pairs = zip(blocks(other), blocks(page), strict=True)
        replace_blocks(other, {theirs.line: list(ours.content) for theirs, ours in pairs})


if __name__ == "__main__":
    main()
