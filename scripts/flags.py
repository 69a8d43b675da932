"""Writes docs/flags.md from the tables of flags that `jumar migrate` reads (packages/jumar/src/jumar/chain/flags).

python scripts/flags.py            writes the page
python scripts/flags.py --check    fails if it is not what the tables say
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from jumar.chain.tables import Rule, Table, tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/flags.md"
HEAD = """\
# Flags of Megatron-LM and MindSpeed-LLM

What each flag is here; `jumar migrate` ([migrate.md](migrate.md)) says it of a script. Written by `scripts/flags.py` from
[the tables](../packages/jumar/src/jumar/chain/flags). A flag stands with what it takes: nothing, `N` or `X` (one value), `X...`
(several), `[X]` (one or none).
"""
TITLES = {
    "training": ("Training", "recipe"),
    "conversion": ("Conversion", "jumar-convert"),
    "preprocessing": ("Data", "jumar-data"),
    "inference": ("Generation", "jumar-infer"),
    "evaluation": ("Evaluation", "jumar-eval"),
    "launchers": ("Launchers", "jumar-train"),
    "lm_eval": ("lm-eval", "jumar-eval"),
    "rlhf": ("MindSpeed-RL", ""),
    "reinforced": ("Reinforcement learning of Megatron-LM", ""),
    "modelopt": ("ModelOpt", ""),
    "multimodal": ("Images, sound and video", ""),
    "encoders": ("Encoders and retrieval", ""),
    "elastic": ("Models of several sizes", ""),
    "papers": ("Scripts of papers", ""),
    "fsdp2": ("FSDP2 of MindSpeed-LLM", ""),
    "sharded": ("Megatron-FSDP's checkpoints", ""),
    "edge": ("Edge and cloud", ""),
    "paired": ("Pairs of sentences and pictures", ""),
    "experts": ("Merging experts", ""),
    "dequantise": ("Dequantising", ""),
    "trtllm": ("TensorRT-LLM", ""),
    "ray": ("Ray", ""),
    "pip": ("pip", ""),
    "tests": ("The projects' own tests", ""),
}


def spelled(rule: Rule) -> str:
    return f"`{rule.flag} {rule.takes}`".replace(" `", "`")


def grouped(rules: list[Rule]) -> Iterator[tuple[str, str]]:
    """(flags, why) of those that have one reason."""
    for why in dict.fromkeys(rule.why for rule in rules):
        yield ", ".join(spelled(rule) for rule in rules if rule.why == why), why


def section(table: Table) -> Iterator[str]:
    title, ours = TITLES[table.name]
    rules = list(table.rules.values())
    yield f"## {title}"
    if mapped := [rule for rule in rules if rule.kind == "mapped"]:
        yield from ("", f"| mapped | {ours} |", "| --- | --- |")
        yield from (f"| {spelled(rule)} | {_becomes(rule)} |" for rule in mapped)
    if deciding := [rule for rule in rules if rule.cases]:
        yield from ("", "| its value decides | class | why |", "| --- | --- | --- |")
        for rule in deciding:
            yield from (f"| {spelled(rule)}: {value} | {kind} | {why} |" for value, kind, why in rule.cases)
    for kind in ("default", "no effect", "refused"):
        if found := [rule for rule in rules if rule.kind == kind and not rule.cases]:
            yield from ("", f"| {kind} | why |", "| --- | --- |")
            yield from (f"| {flags} | {why} |" for flags, why in grouped(found))
    yield ""


def _becomes(rule: Rule) -> str:
    value = rule.how.removeprefix("= ") if rule.how.startswith("= ") else ""
    if not rule.ours.startswith("--") and "." not in rule.ours and "_" not in rule.ours:
        return rule.ours
    sign = " " if rule.ours.startswith("--") else ": "
    return f"`{rule.ours}{sign}{value}`" if value else f"`{rule.ours}`"


def page() -> str:
    return "\n".join([HEAD, *(line for name in TITLES for line in section(tables()[name]))]).rstrip() + "\n"


def main() -> None:
    if "--check" in sys.argv[1:]:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        sys.exit(0 if same else f"{PAGE.relative_to(ROOT)} is not what the tables say: python scripts/flags.py")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
