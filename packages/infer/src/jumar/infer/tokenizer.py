"""A model's tokenizer: text to ids and back, what ends an answer, the chat template."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jumar.schema.errors import Exit, ToolError
from jumar.schema.options import refuse_not_utf8
from jumar.schema.templates import special_tokens, template_of

if TYPE_CHECKING:
    import tokenizers


@dataclass
class Tokenizer:
    """`tokenizer.json` of a directory and the files beside it. Raises ToolError (3) where it is missing or damaged.

    made: what stands in for a tokenizer.json
    """

    directory: Path
    made: InitVar[tokenizers.Tokenizer | None] = None
    special: dict[str, str] = field(init=False)

    def __post_init__(self, made: tokenizers.Tokenizer | None) -> None:
        self.special = special_tokens(self.directory)
        self.inner = _read(self.directory) if made is None else made
        self.inner.no_padding()
        self.inner.no_truncation()

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The token that ends a text, by the tokenizer's configuration; none where it does not say."""
        found = self.inner.token_to_id(self.special["eos_token"]) if "eos_token" in self.special else None
        return () if found is None else (found,)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text. special: with what the tokenizer puts around every text (BOS).

        Raises ToolError (3) for a text that is not valid Unicode.
        """
        check_unicode(text)
        ids: list[int] = self.inner.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """The text of ids; special: with special tokens."""
        text: str = self.inner.decode(ids, skip_special_tokens=not special)
        return text

    def token(self, token: int) -> str:
        """One token as a text, for log-probabilities; bytes that are no character show as U+FFFD."""
        return self.decode([token], special=True)

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template of its own."""
        return template_of(self.directory) is not None


def check_unicode(text: str, what: str = "the text", code: Exit = Exit.INPUT) -> None:
    """Raises ToolError with `code` for half a character (a lone surrogate): what Python makes of bytes that are not UTF-8 too."""
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise ToolError(
            f"{what} is not valid Unicode: U+{ord(text[fault.start]):04X} after {fault.start} characters",
            hint="write whole characters, in UTF-8 (is the locale UTF-8? LC_ALL=C.UTF-8)",
            code=code,
        ) from None


def _read(directory: Path) -> tokenizers.Tokenizer:
    import tokenizers

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ToolError(
            f"{directory} has no tokenizer.json",
            hint="give a directory that has one: --tokenizer DIR (transformers writes it from other files: save_pretrained)",
        )
    refuse_not_utf8(file)
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as fault:  # noqa: BLE001  # the library raises Exception itself
        raise ToolError(f"{file}: {fault}", hint="fetch the tokenizer again, or upgrade tokenizers") from None


class TextStream:
    """The text of tokens as they come: never half a character, and nothing that may be the beginning of a stop text.

    Only the last tokens are decoded each time; what stands before them is not changed by what comes.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.text, self.stopped = "", False
        self._ids: list[int] = []
        self._start, self._read = 0, 0  # decoded again from `_start` on; of it, tokens before `_read` are in the text
        self._given = 0

    def push(self, token: int) -> bool:
        """Takes a token. True if the text now ends before a stop text; what follows is left out."""
        self._ids.append(token)
        before = self.tokenizer.decode(self._ids[self._start : self._read])
        now = self.tokenizer.decode(self._ids[self._start :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self._append(now[len(before) :])
            self._start, self._read = self._read, len(self._ids)
        return self.stopped

    def finish(self, *, cut: bool = False) -> None:
        """No more tokens come. cut: more would have: an unfinished character at the end is left out; else it shows as U+FFFD."""
        before = self.tokenizer.decode(self._ids[self._start : self._read])
        left = self.tokenizer.decode(self._ids[self._start :])[len(before) :]
        self._append(left.rstrip("\ufffd") if cut else left)
        self._start = self._read = len(self._ids)

    def _append(self, new: str) -> None:
        if self.stopped:
            return
        start = max(0, len(self.text) - max(map(len, self.stop), default=0))
        text = self.text + new
        if found := [at for stop in self.stop if (at := text.find(stop, start)) >= 0]:
            text, self.stopped = text[: min(found)], True
        self.text = text  # at once: other threads read it, and no stop text is ever in it

    def take(self, *, last: bool = False) -> str:
        """The text since the last call that is sure to stay; last: all of it."""
        end = len(self.text) if last or self.stopped else len(self.text) - self._held_back()
        new, self._given = self.text[self._given : end], max(end, self._given)
        return new

    def _held_back(self) -> int:
        """How many characters at the end begin a stop text."""
        longest = 0
        for stop in self.stop:
            for size in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
