"""The chain of tools: one example of each, and which are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

CHAIN = (
    ("jumar-data-prep", "jumar-data pretrain corpus/ --tokenizer hf/ --append-eod -o data/corpus"),
    ("jumar-ckpt-convert", "jumar-convert to-megatron hf/ mcore/ --tp 2 --pp 2"),
    ("jumar-train-core", "jumar-train pretrain recipe.yaml --nproc 8 --set load.path=mcore/"),
    ("jumar-ckpt-convert", "jumar-convert to-hf runs/a/ hf-new/"),
    ("jumar-infer", "jumar-infer chat hf-new/"),
    ("jumar-eval", "jumar-eval run hf-new/ --tasks mmlu,gsm8k --data eval-data/"),
    ("jumar", "jumar migrate SCRIPT.sh"),
)
"""Distribution and one example, in the order in which work goes."""


def chain() -> list[dict[str, str | None]]:
    """Each step: an example, its distribution, and the version of that; None where it is not installed."""
    return [{"example": example, "package": dist, "version": _version(dist)} for dist, example in CHAIN]


def lines() -> list[str]:
    """A line for each step, and where to go on."""
    width = max(len(example) for _, example in CHAIN)
    out = [f"{example:<{width}}  # {_installed(dist)}" for dist, example in CHAIN]
    return [*out, "Each answers to --help, and works without the others; directories are what they hand on."]


def _version(dist: str) -> str | None:
    try:
        return version(dist)
    except PackageNotFoundError:
        return None


def _installed(dist: str) -> str:
    found = _version(dist)
    return f"{dist} {found}" if found else f'not installed: pip install "{dist}"'
