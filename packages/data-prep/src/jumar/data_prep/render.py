"""A conversation to ids and labels: through the model's own chat template, or through slots.

Whatever the template, a token is trained if any of its characters is the assistant's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jumar.data_prep.faults import BadRecord
from jumar.data_prep.tokenizer import Tokenizer
from jumar.schema.chat import ChatRecord
from jumar.schema.errors import ToolError
from jumar.schema.slots import Piece, SlotTemplate, Special, Token
from jumar.schema.templates import ChatTemplate, TemplateFault

T = TypeVar("T")
IGNORED = -100  # the label of a token that is not trained


@dataclass(frozen=True, slots=True)
class Rendering:
    """ids, labels: [tokens] int32. answers: tokens [start, end) of every assistant turn, in order."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    answers: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return int(np.count_nonzero(self.labels != IGNORED))

    def cut(self, length: int) -> Rendering:
        """Its first tokens."""
        return replace(self, ids=self.ids[:length], labels=self.labels[:length])


class Renderer(Protocol):
    """last: only the last assistant turn is trained."""

    def chats(self, records: list[ChatRecord], *, last: bool) -> list[Rendering | BadRecord]: ...

    def prompts(self, records: list[ChatRecord]) -> list[NDArray[np.int32] | BadRecord]: ...


@dataclass(frozen=True, slots=True)
class TemplateRenderer:
    """The model's chat template. The text is tokenised as a whole, as `apply_chat_template` does."""

    template: ChatTemplate
    tokenizer: Tokenizer

    def chats(self, records: list[ChatRecord], *, last: bool) -> list[Rendering | BadRecord]:
        out: list[Rendering | BadRecord] = [BadRecord("")] * len(records)
        texts, spans, places = [], [], []
        for i, record in enumerate(records):
            try:
                text, found = _with_content(self.template.render_labelled, record)
            except TemplateFault as fault:
                out[i] = BadRecord("template cannot render it", str(fault))
                continue
            texts.append(text)
            spans.append(found)
            places.append(i)
        ids, tokens = self.tokenizer.encode_spans(texts, spans)
        flat, offsets = ids.flat.astype(np.int32), ids.offsets.tolist()
        for i, place in enumerate(places):
            row, answers = flat[offsets[i] : offsets[i + 1]], tokens[i]
            labels = np.full(len(row), IGNORED, np.int32)
            for start, end in answers[-1:] if last else answers:
                labels[start:end] = row[start:end]
            out[place] = Rendering(row, labels, answers)
        return out

    def prompts(self, records: list[ChatRecord]) -> list[NDArray[np.int32] | BadRecord]:
        out: list[NDArray[np.int32] | BadRecord] = [BadRecord("")] * len(records)
        texts, places = [], []
        for i, record in enumerate(records):
            try:
                texts.append(_with_content(partial(self.template.render, prompt=True), record))
                places.append(i)
            except TemplateFault as fault:
                out[i] = BadRecord("template cannot render it", str(fault))
        ids = self.tokenizer.encode(texts)
        for k, place in enumerate(places):
            out[place] = ids[k].astype(np.int32)
        return out


def _with_content(render: Callable[..., T], record: ChatRecord) -> T:
    """What a template makes of a record. Many fail on tool calls without content: they get an empty one."""
    messages, tools = record.messages(), list(record.tools) or None
    try:
        return render(messages, tools)
    except TemplateFault:
        if all("content" in message for message in messages):
            raise
        return render([{"content": "", **message} for message in messages], tools)


class SlotRenderer:
    """Slots, their pieces tokenised one by one, as MindSpeed-LLM does with its templates.json.

    With `efficient_eos`, EOS is the label of the token that follows an answer, and stands itself only at the end.
    """

    def __init__(self, template: SlotTemplate, tokenizer: Tokenizer, thinking: bool | None = None) -> None:
        self.template, self.tokenizer, self.thinking = template, tokenizer, thinking
        eos = template.stop_words[0] if template.replace_eos and template.stop_words else tokenizer.special.get("eos_token")
        if eos is not None and tokenizer.id_of(eos) is None:
            raise _no_token(template, eos, tokenizer)
        self.eos = None if eos is None else tokenizer.id_of(eos)
        self.bos = tokenizer.bos_id
        if template.efficient_eos and self.eos is None:
            raise ToolError(
                f"template {template.name} ends answers with EOS, and {tokenizer.directory} names no eos_token",
                hint='add "eos_token" to its tokenizer_config.json, or give --eod TOKEN',
            )
        self._known: dict[str, int] = {}

    def chats(self, records: list[ChatRecord], *, last: bool) -> list[Rendering | BadRecord]:
        sides: list[list[tuple[list[Piece], list[Piece]]] | BadRecord] = []
        texts: list[str] = []
        for record in records:
            try:
                pairs = self.template.pairs(record, thinking=self.thinking)
            except ValueError as fault:
                sides.append(BadRecord("template cannot render it", str(fault)))
                continue
            sides.append(pairs)
            texts.extend(piece for pair in pairs for side in pair for piece in side if isinstance(piece, str) and piece)
        rows = self._rows(texts)
        return [pairs if isinstance(pairs, BadRecord) else self._rendering(pairs, rows, last) for pairs in sides]

    def _rendering(self, pairs: list[tuple[list[Piece], list[Piece]]], rows: Any, last: bool) -> Rendering:
        ids: list[NDArray[np.int32]] = []
        labels: list[NDArray[np.int32]] = []
        answers, at, efficient = [], 0, self.template.efficient_eos
        for number, (prompt, answer) in enumerate(pairs):
            trained = not last or number + 1 == len(pairs)
            source, target = self._ids(prompt, rows), self._ids(answer, rows)
            before = np.full(len(source), IGNORED, np.int32)
            if self.eos is not None and efficient and number and len(source) and not last:
                before[0] = self.eos
            ids += [source, target]
            labels += [before, target if trained else np.full(len(target), IGNORED, np.int32)]
            answers.append((at + len(source), at + len(source) + len(target)))
            at = answers[-1][1]
        if efficient:
            end = np.array([self.eos], np.int32)
            ids.append(end)
            labels.append(end)
            answers[-1] = (answers[-1][0], at + 1)
        return Rendering(np.concatenate(ids), np.concatenate(labels), answers)

    def prompts(self, records: list[ChatRecord]) -> list[NDArray[np.int32] | BadRecord]:
        sides: list[list[Piece] | BadRecord] = []
        for record in records:
            try:
                sides.append(self.template.prompt(record, thinking=self.thinking))
            except ValueError as fault:
                sides.append(BadRecord("template cannot render it", str(fault)))
        texts = [piece for pieces in sides if isinstance(pieces, list) for piece in pieces if isinstance(piece, str) and piece]
        rows = self._rows(texts)
        return [self._ids(pieces, rows) if isinstance(pieces, list) else pieces for pieces in sides]

    def _rows(self, texts: list[str]) -> Any:
        """The ids of texts, one after another in the order in which they are asked for."""
        encoded = self.tokenizer.encode(texts)
        flat, offsets = encoded.flat.astype(np.int32), encoded.offsets.tolist()
        return (flat[a:b] for a, b in pairwise(offsets))

    def _ids(self, pieces: list[Piece], rows: Any) -> NDArray[np.int32]:
        out: list[NDArray[np.int32]] = []
        for piece in pieces:
            if isinstance(piece, str):
                if piece:
                    out.append(next(rows))
            elif (token := self._token(piece)) is not None:
                out.append(np.array([token], np.int32))
        return np.concatenate(out) if out else np.empty(0, np.int32)

    def _token(self, piece: Token | Special) -> int | None:
        """The id of a token that a slot names; None: the tokenizer has no BOS or EOS, and none is written."""
        if isinstance(piece, Special):
            return self.eos if piece.name == "eos_token" else self.bos
        if piece.name not in self._known:
            found = self.tokenizer.id_of(piece.name)
            if found is None:
                raise _no_token(self.template, piece.name, self.tokenizer)
            self._known[piece.name] = found
        return self._known[piece.name]


def _no_token(template: SlotTemplate, token: str, tokenizer: Tokenizer) -> ToolError:
    return ToolError(
        f"template {template.name} needs the token {token!r}, which the vocabulary of {tokenizer.directory} has not",
        hint="choose the template of this model; --template auto takes its own",
    )
