"""The Chinese of generated tables: scripts/words_zh.yaml, which has a section for each page."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

WORDS = Path(__file__).with_name("words_zh.yaml")
Say = Callable[[str], str]


@lru_cache(maxsize=1)
def _words() -> dict[str, Any]:
    return dict(yaml.safe_load(WORDS.read_text(encoding="utf-8")))


def translator(section: str) -> Say:
    """Gives a text's Chinese: that of the section, or the text itself where it is code, numbers and names alone."""
    words = _words()[section]
    names = {name for line in _words()["names"] for name in line.split()}

    def say(text: str) -> str:
        if text in words:
            return str(words[text])
        others = re.findall(r"-*[A-Za-z][\w.-]*", re.sub(r"`[^`]*`|<br>", "", text))
        if set(others) <= names:
            return text
        sys.exit(f"scripts/{WORDS.name}: {section}: has no Chinese for {text!r}")

    return say


def rows(section: str, lines: Iterable[str]) -> list[str]:
    """Rows of a Markdown table, every cell translated."""
    say = translator(section)
    cells = ([cell.strip() for cell in line[1:-1].split(" |")] for line in lines)
    return ["|" + "".join(f" {say(cell)} |" if cell else " |" for cell in row) for row in cells]
