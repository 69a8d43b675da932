"""A tokenizer's directory: its ids, special tokens and vocabulary, and the engine that encodes with it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jumar.data_prep.engines import ENGINES, Engine, Fastokens, Gigatoken, Ids, Reference, Refused, installed, joined
from jumar.data_prep.part import Checked
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import tokenizer_sha256
from jumar.schema.options import refuse_not_utf8
from jumar.schema.templates import read_json, special_tokens

CHECKED_FIRST, CHECKED_EVERY = 4, 32  # blocks, of each process
CHECKED_TEXTS = 8
CHECKED_CHARS = 8192
SMALL_BYTES = 4 << 20  # below this much text, loading a second library takes longer than it saves
Spans = list[tuple[int, int]]


@dataclass
class Tokenizer:
    """What `tokenizer.json` and the files beside it say, and an engine.

    added:   tokens of the vocabulary that a template or the configuration wants treated as special.
    missing: tokens that the configuration names and the vocabulary has not.
    """

    directory: Path
    file: Path
    special: dict[str, str]
    engine_name: str
    parallel: bool = True
    added: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)
    _ids: dict[str, int | None] = field(default_factory=dict)
    _taken: int = 0

    @cached_property
    def content(self) -> dict[str, Any]:
        """The parsed tokenizer.json (large: `facts` keeps what is needed of it)."""
        import orjson

        try:
            content = orjson.loads(self.file.read_bytes())
        except ValueError as fault:
            raise ToolError(f"{self.file} is not JSON: {fault}", hint="fetch the tokenizer again") from None
        if not isinstance(content, dict) or "model" not in content:
            raise ToolError(f"{self.file} is no tokenizer of Hugging Face tokenizers", hint="fetch the tokenizer again")
        return content

    @cached_property
    def facts(self) -> Facts:
        """What is read out of tokenizer.json."""
        facts = Facts.of(self.content, self.file)
        del self.content
        return facts

    @cached_property
    def engine(self) -> Engine:
        """The engine that encodes; the reference where another one refuses the tokenizer."""
        try:
            if self.engine_name == "fastokens":
                return Fastokens(self.file)
            if self.engine_name == "gigatoken":
                return Gigatoken(self.file, self.facts.around, parallel=self.parallel)
        except Refused as fault:
            self.notes.append(f"{self.engine_name} does not take this tokenizer ({fault}): tokenizers encodes")
        return self.reference

    @cached_property
    def reference(self) -> Reference:
        """Hugging Face tokenizers with this tokenizer."""
        refuse_not_utf8(self.file)
        try:
            return Reference(self.file, self.added)
        except Exception as fault:  # noqa: BLE001  # the library raises Exception itself
            raise ToolError(f"{self.file}: {fault}", hint="fetch the tokenizer again, or upgrade tokenizers") from None

    def id_of(self, token: str) -> int | None:
        """A token's id; None if the vocabulary has it not. Asked before `settle`, or about what was asked before it."""
        if token not in self._ids:
            self._ids[token] = self.facts.ids.get(token)
        return self._ids[token]

    def settle(self) -> None:
        """Lets go of what is needed only until the work begins: memory that every worker would have a copy of."""
        for name in self.special:
            self._special_id(name)
        _ = self.facts.widths
        self.facts.ids.clear()

    @property
    def eos_id(self) -> int | None:
        """Id of the end-of-sequence token."""
        return self._special_id("eos_token")

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-sequence token."""
        return self._special_id("bos_token")

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token; without one, of EOS."""
        pad = self._special_id("pad_token")
        return pad if pad is not None else self.eos_id

    def _special_id(self, name: str) -> int | None:
        token = self.special.get(name)
        return None if token is None else self.id_of(token)

    def encode(self, texts: list[str], *, special: bool = False) -> Ids:
        """Ids of texts. `special`: with what the tokenizer adds around every text (BOS)."""
        ids = self.engine.encode(texts, special=special)
        if self.engine.name != "tokenizers":
            self._note(texts, ids, special)
        return ids

    def _note(self, texts: list[str], ids: Ids, special: bool) -> None:
        """Keeps a few texts and what was made of them, for the reference to look at (`Part.checked`)."""
        step = max(1, len(texts) // CHECKED_TEXTS)
        chosen, left = [], CHECKED_CHARS
        for i in range(0, len(texts), step):
            if len(texts[i]) <= left:
                chosen.append(i)
                left -= len(texts[i])
        if chosen:
            of_chosen = joined([ids[i] for i in chosen])
            some = [texts[i] for i in chosen]
        elif texts:  # all are long: the beginning of one will do
            some = [texts[0][:CHECKED_CHARS]]
            of_chosen = self.engine.encode(some, special=special)
        else:
            return
        self.checked.append((some, of_chosen.flat.tobytes(), np.diff(of_chosen.offsets).tobytes(), special))

    def take_checked(self) -> list[Checked]:
        """What was kept since the last call, for one block: of the first blocks, and then of every so many."""
        taken, self.checked = self.checked, []
        self._taken += 1
        return taken[:1] if self._taken <= CHECKED_FIRST or self._taken % CHECKED_EVERY == 0 else []

    def encode_spans(self, texts: list[str], spans: list[Spans]) -> tuple[Ids, list[Spans]]:
        """Ids of texts, and the tokens [first, last + 1) that hold any character of each span [start, end).

        Where every token is a known number of the text's bytes, borders are found by counting them; else the reference says.
        """
        widths = self.facts.widths
        if widths is None:
            return self.reference.encode_spans(texts, spans)
        ids = self.encode(texts)
        ends = np.zeros(len(ids.flat) + 1, np.int64)  # bytes of all texts before token i
        np.cumsum(widths[ids.flat], out=ends[1:])
        bases = ends[ids.offsets[:-1]].tolist()
        sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
        changed = ends[ids.offsets[1:]] - ends[ids.offsets[:-1]] != sizes  # by a normaliser
        if self.facts.normalised:  # which may also keep the length
            changed |= np.array([not (text.isascii() or unicodedata.is_normalized("NFC", text)) for text in texts], bool)
        odd = np.flatnonzero(changed).tolist()
        starts: list[int] = []
        stops: list[int] = []
        for text, of_text, base in zip(texts, spans, bases, strict=True):
            plain = text.isascii()
            for start, end in of_text:
                starts.append(base + (start if plain else len(text[:start].encode())))
                stops.append(base + (end if plain else len(text[:end].encode())))
        # A token is in a span if any of its bytes is: it ends after the span's start and begins before its end.
        firsts = np.searchsorted(ends[1:], starts, side="right").tolist()
        lasts = (np.searchsorted(ends[1:], stops, side="left") + 1).tolist()
        found: list[Spans] = []
        at = 0
        for of_text, offset in zip(spans, ids.offsets.tolist(), strict=False):
            found.append([(firsts[k] - offset, lasts[k] - offset) for k in range(at, at + len(of_text))])
            at += len(of_text)
        return self._with_reference(ids, found, odd, texts, spans) if odd else (ids, found)

    def _with_reference(
        self, ids: Ids, found: list[Spans], odd: list[int], texts: list[str], spans: list[Spans]
    ) -> tuple[Ids, list[Spans]]:
        """The same with some texts encoded by the reference, which knows where each token comes from."""
        better, places = self.reference.encode_spans([texts[i] for i in odd], [spans[i] for i in odd])
        rows = [ids[i] for i in range(len(ids))]
        for k, i in enumerate(odd):
            rows[i], found[i] = better[k], places[k]
        return joined(rows), found

    def decode(self, ids: NDArray[Any]) -> str:
        """The text of ids, special tokens as they are written."""
        return self.engine.decode(ids.tolist())

    def treat_as_special(self, tokens: list[str]) -> None:
        """Tokens of the vocabulary that are found in texts whole, wherever they stand: these, and the configuration's."""
        wanted = dict.fromkeys([*configured_tokens(self.directory), *tokens])
        self.added = tuple(token for token in wanted if token not in self.facts.added and token in self.facts.ids)
        self.missing = tuple(token for token in wanted if token not in self.facts.ids)
        if self.missing:
            what = f"tokenizer.json has no {', '.join(self.missing[:3])}{', ...' if len(self.missing) > 3 else ''}"
            self.notes.append(f"{what}, which tokenizer_config.json names: they are encoded as any other text")
        if self.added and self.engine_name != "tokenizers":
            what = f"{', '.join(self.added)} are made special by tokenizer_config.json or the template"
            self.notes.append(f"{what}, which {self.engine_name} cannot: tokenizers encodes")
            self.engine_name = "tokenizers"


@dataclass(frozen=True)
class Facts:
    """What tokenizer.json says.

    ids:      token -> id, added tokens among them.
    size:     greatest id + 1.
    specials: texts of the tokens that are special; `added`: of all that are found whole, wherever they stand.
    around:   ids that it adds before and after every text; None: not known without the library.
    normalised: whether texts are brought to NFC first.
    widths:   id -> bytes of text that the token stands for (byte-level BPE); None: not that simple.
    """

    ids: dict[str, int]
    size: int
    specials: tuple[str, ...]
    added: tuple[str, ...]
    around: tuple[list[int], list[int]] | None
    normalised: bool
    widths: NDArray[np.int32] | None

    @classmethod
    def of(cls, content: dict[str, Any], file: Path) -> Facts:
        vocab = content["model"].get("vocab", {})
        if isinstance(vocab, list):  # Unigram: [[token, score], ...]
            vocab = {token: i for i, (token, _) in enumerate(vocab)}
        added = content.get("added_tokens") or []
        try:
            ids = {**vocab, **{token["content"]: token["id"] for token in added}}
            size = max(ids.values(), default=-1) + 1
            widths = None
            if _byte_level(content):
                widths = np.zeros(size, np.int32)
                # In a byte-level vocabulary every character stands for one byte (GPT-2's table of bytes).
                widths[np.fromiter(vocab.values(), np.int64, len(vocab))] = np.fromiter(map(len, vocab), np.int32, len(vocab))
                for token in added:
                    widths[token["id"]] = len(token["content"].encode())
            specials = tuple(token["content"] for token in added if token.get("special"))
        except (TypeError, KeyError, AttributeError, ValueError, IndexError) as fault:
            raise ToolError(f"{file} is damaged: {fault!r}", hint="fetch the tokenizer again") from None
        every = tuple(token["content"] for token in added)
        normalised = content.get("normalizer") is not None
        return cls(ids, size, specials, every, _around(content.get("post_processor")), normalised, widths)


def _byte_level(content: dict[str, Any]) -> bool:
    """Whether tokens are bytes of the text, whole and in order."""

    def types(part: Any) -> list[str]:
        if not isinstance(part, dict):
            return []
        inner = part.get("pretokenizers") or part.get("normalizers") or part.get("decoders") or []
        return [str(part.get("type")), *(name for item in inner for name in types(item))]

    before = types(content.get("pre_tokenizer"))
    prefixed = '"add_prefix_space": true' in str(content.get("pre_tokenizer")).replace("'", '"').replace("True", "true")
    stripping = any(token.get("lstrip") or token.get("rstrip") for token in content.get("added_tokens") or [])
    plain = set(types(content.get("normalizer"))) <= {"NFC", "Sequence"}
    return "ByteLevel" in before and plain and not prefixed and not stripping and content["model"].get("type") == "BPE"


def _around(post: Any) -> tuple[list[int], list[int]] | None:
    """Ids that a post-processor puts before and after one text."""
    if post is None or post.get("type") == "ByteLevel":
        return [], []
    if post.get("type") == "Sequence":
        before: list[int] = []
        after: list[int] = []
        for part in post.get("processors", []):
            inner = _around(part)
            if inner is None:
                return None
            before, after = inner[0] + before, after + inner[1]
        return before, after
    if post.get("type") != "TemplateProcessing":
        return None
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for item in post.get("single", []):
        if "Sequence" in item:
            side = 1
        else:
            sides[side].extend(post["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return sides


def open_tokenizer(directory: Path, *, engine: str = "auto", text_bytes: int | None = None, eod: str | None = None) -> Tokenizer:
    """The tokenizer of a directory (a Hugging Face model directory, or one with tokenizer.json alone).

    engine:     one of ENGINES, or "auto": the first accelerator that is installed, unless the text is small.
    text_bytes: about how much text there is; None: not known.
    eod:        another end-of-document token than the tokenizer's EOS.
    ToolError if there is no tokenizer.json, or it is damaged.
    """
    directory = directory.parent if directory.name == "tokenizer.json" else directory
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise _missing(directory)
    if engine not in ("auto", *ENGINES):
        raise ToolError(
            f"--tokenizer-engine {engine!r}: expected auto, {', '.join(ENGINES)}", hint="leave it out", code=Exit.USAGE
        )
    if engine not in ("auto", "tokenizers") and not installed(engine):
        extra = {"fastokens": "fast", "gigatoken": "gigatoken"}[engine]
        raise ToolError(f"{engine} is not installed", hint=f'pip install "jumar-data-prep[{extra}]"', code=Exit.ENVIRONMENT)
    if engine == "auto":
        small = text_bytes is not None and text_bytes < SMALL_BYTES
        engine = next((name for name in ENGINES[1:] if installed(name)), "tokenizers") if not small else "tokenizers"
    special = special_tokens(directory)
    if eod is not None:
        special["eos_token"] = eod
    return Tokenizer(directory, file, special, engine)


def _missing(directory: Path) -> ToolError:
    call = f"T.from_pretrained('{directory}').save_pretrained('{directory}')"
    hint = f'python -c "from transformers import AutoTokenizer as T; {call}"'
    if not directory.exists():
        what = "name the directory of a model or tokenizer; nothing is fetched from a hub"
        return ToolError(f"--tokenizer {directory}: does not exist", hint=what)
    if any((directory / name).is_file() for name in ("tokenizer.model", "vocab.json", "vocab.txt", "tokenizer.tiktoken")):
        return ToolError(f"{directory} has a slow tokenizer only, and no tokenizer.json", hint=f"make one: {hint}")
    return ToolError(f"{directory} has no tokenizer.json", hint="name the directory of a Hugging Face model or tokenizer")


def identity(tokenizer: Tokenizer) -> str | None:
    """The tokenizer's hash (docs/contracts.md, 5)."""
    return tokenizer_sha256(tokenizer.directory)


def configured_tokens(directory: Path) -> list[str]:
    """Tokens that the files beside tokenizer.json make special: the named ones, and `added_tokens_decoder`."""
    decoder = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder")
    entries = decoder.values() if isinstance(decoder, dict) else []
    marked = [entry.get("content") for entry in entries if isinstance(entry, dict) and entry.get("special")]
    return [token for token in (*special_tokens(directory).values(), *marked) if isinstance(token, str)]
