"""When two answers of mathematics are the same, as AGIEval's authors say and lm-eval 0.4.13 does (`is_equiv`).

The answer of a text is what it boxes (\boxed{}), else what stands between its dollar signs, else behind its last =, else its last
number. Two answers are compared once spellings of LaTeX that mean the same are made one.
"""

from __future__ import annotations

import re

NUMBER = re.compile(r"(?:\$)?\d+(?:\.\d+)?(?![\w\d])")


def same_answer(first: str, second: str) -> bool:
    """Whether two texts come to the same; two texts without any answer do."""
    ours, theirs = answer_in(first), answer_in(second)
    if ours is None or theirs is None:
        return ours == theirs
    try:
        return plain(ours) == plain(theirs)
    except ValueError:
        return ours == theirs


def answer_in(text: str) -> str | None:
    """The answer that a text comes to."""
    if "\\boxed" in text:
        boxed = _boxed(text)
        return None if boxed is None else _behind_equals(boxed)
    if (dollars := re.findall(r"\$(.*)\$", text)) and (found := _behind_equals(dollars[-1])):
        return found
    if "=" in text:
        return _behind_equals(text).rstrip(".").partition("\\n")[0]
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _behind_equals(text: str) -> str:
    return text.rpartition("=")[2].lstrip(" ") if "=" in text else text


def _boxed(text: str) -> str | None:
    """What the last box holds; None where it does not begin with a brace, or does not end."""
    start, depth = text.rindex("\\boxed"), 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if text[at] == "}" and depth == 0:
            inner = text[start : at + 1]
            return inner[len("\\boxed{") : -1] if inner.startswith("\\boxed{") else None
    return None


def plain(text: str) -> str:
    """One spelling of what is written in several. Raises ValueError for LaTeX that ends too early."""
    for old, new in (
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
    ):
        text = text.replace(old, new)
    for left_out in ("^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(left_out, "")
    if text.count("\\text{ ") > 1:
        raise ValueError("two units")
    text = text.partition("\\text{ ")[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = f"0{text}" if text[0] == "." else text
    if text.count("=") == 1 and text.index("=") <= 2:
        text = text.partition("=")[2]
    text = _fractions(_roots(text).replace(" ", ""))
    return _slash("\\frac{1}{2}" if text == "0.5" else text)


def _roots(text: str) -> str:
    """\\sqrt3 is \\sqrt{3}."""
    head, *rest = text.split("\\sqrt")
    if not all(rest):
        raise ValueError("nothing behind \\sqrt")
    return head + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _fractions(text: str) -> str:
    """\\frac12 is \\frac{1}{2}, \\frac1{72} is \\frac{1}{72}."""
    head, *rest = text.split("\\frac")
    out = head
    for part in rest:
        if not part:
            raise ValueError("nothing behind \\frac")
        if part[0] == "{":
            out += "\\frac" + part
        elif len(part) < 2:
            return text
        else:
            below = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            out += f"\\frac{{{part[0]}}}{below}"
    return out


def _slash(text: str) -> str:
    """1/2 is \\frac{1}{2}, of whole numbers."""
    above, slash, below = text.partition("/")
    try:
        whole = slash and "/" not in below and text == f"{int(above)}/{int(below)}"
    except ValueError:
        return text
    return f"\\frac{{{above}}}{{{below}}}" if whole else text
