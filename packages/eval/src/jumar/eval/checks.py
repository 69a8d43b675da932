"""The 25 instructions of IFEval whose following a program can check (Zhou et al. 2023, https://arxiv.org/abs/2311.07911).

Verdicts are those of lm-eval 0.4.13. Where it would draw an argument that a document does not give (or gives as nothing), the
document is refused here; and a letter that is none of a to z is counted as it is, where lm-eval counts one that it draws.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jumar.eval.language import capital_words, language_of, sentences
from jumar.schema.errors import ToolError

Check = Callable[[str], bool]
"""Whether an answer, which is not empty, follows the instruction."""
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
RELATIONS = ("less than", "at least")


def check_of(instruction: str, arguments: Mapping[str, Any]) -> Check:
    """The check of an instruction ("keywords:existence") with its arguments; those that are nothing count as not given.

    Raises ToolError: 3 for an instruction that is not known and arguments that do not fit, 4 where a library is missing.
    """
    if instruction not in CHECKS:
        raise ToolError(f"there is no instruction {instruction!r}", hint=f"known: {', '.join(CHECKS)}")
    given = {name: value for name, value in arguments.items() if value}
    try:
        return CHECKS[instruction](**given)
    except (TypeError, ValueError, AttributeError, re.error) as fault:
        what = f"{instruction} does not take {json.dumps(given, ensure_ascii=False, default=str)}: {fault}"
        raise ToolError(what, hint="is the file the published one?") from None


def _compared(relation: str, bound: int) -> Callable[[int], bool]:
    if relation not in RELATIONS:
        raise ValueError(f"relation {relation!r} is none of {RELATIONS}")
    less, bound = relation == "less than", int(bound)
    return lambda count: count < bound if less else count >= bound


def _pattern(text: str, *flags: re.RegexFlag) -> re.Pattern[str]:
    return re.compile(text, sum(flags))


# --- words and letters


def _existence(*, keywords: Sequence[str]) -> Check:
    patterns = [_pattern(word, re.IGNORECASE) for word in keywords]
    return lambda text: all(pattern.search(text) for pattern in patterns)


def _frequency(*, keyword: str, frequency: int, relation: str) -> Check:
    pattern, enough = _pattern(keyword.strip(), re.IGNORECASE), _compared(relation, frequency)
    return lambda text: enough(len(pattern.findall(text)))


def _forbidden(*, forbidden_words: Sequence[str]) -> Check:
    patterns = [_pattern(rf"\b{word}\b", re.IGNORECASE) for word in forbidden_words]
    return lambda text: not any(pattern.search(text) for pattern in patterns)


def _letters(*, letter: str, let_frequency: int, let_relation: str) -> Check:
    low, enough = letter.lower(), _compared(let_relation, let_frequency)
    if len(low) != 1:
        raise ValueError(f"{letter!r} is no letter")
    return lambda text: enough(text.lower().count(low))


def _words(*, num_words: int, relation: str) -> Check:
    enough = _compared(relation, num_words)
    return lambda text: enough(len(re.findall(r"\w+", text)))


def _sentences(*, num_sentences: int, relation: str) -> Check:
    enough, count = _compared(relation, num_sentences), sentences()
    return lambda text: enough(len(count(text)))


def _no_comma() -> Check:
    return lambda text: "," not in text


# --- language and case


def _language(*, language: str) -> Check:
    detect = language_of()
    return lambda text: detect(text) in (language, None)


def _english_capital() -> Check:
    detect = language_of()
    return lambda text: text.isupper() and detect(text) in ("en", None)


def _english_lowercase() -> Check:
    detect = language_of()
    return lambda text: text.islower() and detect(text) in ("en", None)


def _capital_words(*, capital_frequency: int, capital_relation: str) -> Check:
    enough, count = _compared(capital_relation, capital_frequency), capital_words()
    return lambda text: enough(count(text))


# --- paragraphs and sections


def _paragraphs(*, num_paragraphs: int) -> Check:
    """Between rules of three asterisks; only the first and the last may be empty."""

    def check(text: str) -> bool:
        parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
        return all(parts[1:-1]) and sum(parts) == num_paragraphs

    return check


def _first_word(*, num_paragraphs: int, nth_paragraph: int, first_word: str) -> Check:
    if not 0 < nth_paragraph <= num_paragraphs:
        raise ValueError(f"paragraph {nth_paragraph} is none of {num_paragraphs}")
    wanted = first_word.lower()

    def check(text: str) -> bool:
        parts = text.split("\n\n")
        count = sum(bool(part.strip()) for part in parts)
        part = parts[nth_paragraph - 1].split() if nth_paragraph <= count else []
        if not part:
            return False
        word = re.split("[.,?!'\"]", part[0].lstrip("'").lstrip('"'))[0]
        return count == num_paragraphs and "".join(map(str.lower, word)) == wanted

    return check


def _section_count(*, section_spliter: str, num_sections: int) -> Check:
    pattern = _pattern(rf"\s?{section_spliter.strip()}\s?\d+\s?")
    return lambda text: len(pattern.split(text)) - 1 >= num_sections


def _two_responses() -> Check:
    def check(text: str) -> bool:
        parts = [part.strip() for part in text.split("******")]
        said = [part for part in parts if part]
        return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]

    return check


def _bullets(*, num_bullets: int) -> Check:
    patterns = [_pattern(p, re.MULTILINE) for p in (r"^\s*\*[^\*].*$", r"^\s*-.*$")]
    return lambda text: sum(len(pattern.findall(text)) for pattern in patterns) == num_bullets


def _highlights(*, num_highlights: int) -> Check:
    """In one pair of asterisks, and once more in two."""

    def check(text: str) -> bool:
        once = [found.strip("*") for found in re.findall(r"\*[^\n\*]*\*", text)]
        twice = [found[2:-2] for found in re.findall(r"\*\*[^\n\*]*\*\*", text)]
        return sum(bool(inner.strip()) for inner in once + twice) >= num_highlights

    return check


# --- beginnings, ends, marks


def _placeholders(*, num_placeholders: int) -> Check:
    return lambda text: len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(*, postscript_marker: str) -> Check:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = _pattern(known.get(marker, marker.lower()))
    return lambda text: pattern.search(text.lower()) is not None


def _constrained() -> Check:
    return lambda text: any(option in text for option in OPTIONS)


def _json() -> Check:
    def check(text: str) -> bool:
        inner = text.strip()
        for fence in ("```json", "```Json", "```JSON", "```"):
            inner = inner.removeprefix(fence)
        try:
            json.loads(inner.removesuffix("```").strip())
        except (ValueError, RecursionError):
            return False
        return True

    return check


def _title() -> Check:
    return lambda text: any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _repeat(*, prompt_to_repeat: str) -> Check:
    wanted = prompt_to_repeat.strip().lower()
    return lambda text: text.strip().lower().startswith(wanted)


def _ends(*, end_phrase: str) -> Check:
    wanted = end_phrase.strip().lower()
    return lambda text: text.strip().strip('"').lower().endswith(wanted)


def _quotation() -> Check:
    return lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'


CHECKS: dict[str, Callable[..., Check]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _section_count,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _ends,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
    "startend:quotation": _quotation,
}
