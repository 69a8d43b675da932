"""Writes docs/flags.md, and its Chinese, from the tables that `jumar migrate` reads (packages/jumar/src/jumar/chain/flags).

python scripts/flags.py            writes the pages
python scripts/flags.py --check    fails if they are not what the tables say
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from chinese import Say, translator
from jumar.chain.tables import Rule, Table, tables

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Flags of Megatron-LM and MindSpeed-LLM

What each flag is here; `jumar migrate` ([migrate.md](migrate.md)) says it of a script. Written by `scripts/flags.py` from
[the tables](../packages/jumar/src/jumar/chain/flags). A flag stands with what it takes: nothing, `N` or `X` (one value), `X...`
(several), `[X]` (one or none). [中文](zh/flags.md)
"""
HEAD_ZH = """\
# Megatron-LM 与 MindSpeed-LLM 的命令行参数

每个参数在这里对应什么；对具体的脚本，由 `jumar migrate`（[migrate.md](migrate.md)）说明。本页由 `scripts/flags.py` 根据
[参数表](../../packages/jumar/src/jumar/chain/flags)生成。参数后面写着它取什么：没有就是不取值，`N` 或 `X` 是一个值，
`X...` 是若干个值，`[X]` 是至多一个值。各类别的含义见 [migrate.md](migrate.md#类别)。[English](../flags.md)
"""
TITLES = {
    "training": ("Training", "recipe"),
    "conversion": ("Conversion", "jumar-convert"),
    "preprocessing": ("Data", "jumar-data"),
    "inference": ("Generation", "jumar-infer"),
    "evaluation": ("Evaluation", "jumar-eval"),
    "launchers": ("Launchers", "jumar-train"),
    "lm_eval": ("lm-eval", "jumar-eval"),
    "scores": ("MMLU of ModelOpt's examples", "jumar-eval"),
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


def section(table: Table, say: Say) -> Iterator[str]:
    title, ours = TITLES[table.name]
    rules = list(table.rules.values())
    yield f"## {say(title)}"
    if mapped := [rule for rule in rules if rule.kind == "mapped"]:
        yield from ("", f"| {say('mapped')} | {say(ours)} |", "| --- | --- |")
        yield from (f"| {spelled(rule)} | {say(_becomes(rule))} |" for rule in mapped)
    if deciding := [rule for rule in rules if rule.cases]:
        yield from ("", f"| {say('its value decides')} | {say('class')} | {say('why')} |", "| --- | --- | --- |")
        for rule in deciding:
            for value, kind, why in rule.cases:
                yield f"| {spelled(rule)}: {say(value) if value == 'else' else value} | {say(kind)} | {say(why)} |"
    for kind in ("default", "no effect", "refused"):
        if found := [rule for rule in rules if rule.kind == kind and not rule.cases]:
            yield from ("", f"| {say(kind)} | {say('why')} |", "| --- | --- |")
            yield from (f"| {flags} | {say(why)} |" for flags, why in grouped(found))
    yield ""


def _becomes(rule: Rule) -> str:
    value = rule.how.removeprefix("= ") if rule.how.startswith("= ") else ""
    if not rule.ours.startswith("--") and "." not in rule.ours and "_" not in rule.ours:
        return rule.ours
    sign = " " if rule.ours.startswith("--") else ": "
    return f"`{rule.ours}{sign}{value}`" if value else f"`{rule.ours}`"


def page(head: str, say: Say) -> str:
    return "\n".join([head, *(line for name in TITLES for line in section(tables()[name], say))]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the pages are not so")
    options = parser.parse_args()
    pages = {"docs/flags.md": page(HEAD, str), "docs/zh/flags.md": page(HEAD_ZH, translator("flags"))}
    for name, text in pages.items():
        path = ROOT / name
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{name} is not what the tables say: python scripts/flags.py")


if __name__ == "__main__":
    main()
