"""What each command makes of records: the rows of a block go in, tokens and reasons come out (into a Part)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jumar.data_prep.faults import BadRecord
from jumar.data_prep.formats import Pair, Prompt, Steps, to_chat, to_pair, to_prompt, to_steps, to_text
from jumar.data_prep.job import Job
from jumar.data_prep.long import DROPPED, fitted
from jumar.data_prep.mapping import Mapping
from jumar.data_prep.part import Part
from jumar.data_prep.render import IGNORED, Renderer, Rendering
from jumar.data_prep.tokenizer import Tokenizer
from jumar.schema.errors import ToolError
from jumar.schema.indexed import dtype_for

R = TypeVar("R")
Rows = list[tuple[int, dict[str, Any]]]


@dataclass
class Task(ABC):
    """One command's work on rows.

    keys: those of the output that are made of tokens. `attention_mask` of ones is made when the files are finished.
    """

    job: Job
    tokenizer: Tokenizer
    mapping: Mapping | None
    renderer: Renderer | None
    keys: tuple[str, ...] = field(init=False, default=())
    ones: str | None = field(init=False, default=None)  # the key whose lengths the mask of ones takes

    @abstractmethod
    def __post_init__(self) -> None:
        """Says the keys; refuses what a tokenizer lacks."""

    @abstractmethod
    def __call__(self, rows: Rows, part: Part) -> None:
        """A block's rows as tokens of `part`; those that cannot be used are rejected there."""

    def read(self, rows: Rows, part: Part, make: Callable[[dict[str, Any]], R]) -> Iterator[tuple[int, dict[str, Any], R]]:
        """Rows as records; those that are none leave the stream."""
        for line, value in rows:
            try:
                yield line, value, make(value)
            except BadRecord as fault:
                part.reject(line, fault.reason, fault.detail, value)

    @property
    def rendering(self) -> Renderer:
        """The renderer, of commands that have one."""
        assert self.renderer is not None
        return self.renderer

    @property
    def columns(self) -> Mapping:
        """The mapping, of commands that have one."""
        assert self.mapping is not None
        return self.mapping


class Pretrain(Task):
    """Documents, or their sentences."""

    def __post_init__(self) -> None:
        self.keys = self.job.keys
        self.dtype = dtype_for(self.tokenizer.facts.size)
        self.eod: NDArray[Any] | None = None
        if self.job.append_eod:
            if self.tokenizer.eos_id is None:
                raise no_eos(self.tokenizer, "--append-eod")
            self.eod = np.array([self.tokenizer.eos_id], self.dtype)
        self.sentences = sentences(self.job.language) if self.job.split_sentences else None

    def __call__(self, rows: Rows, part: Part) -> None:
        names = self.keys
        if len(names) == 1 and not self.sentences:
            self._whole(rows, part)
            return

        def texts_of(value: dict[str, Any]) -> list[str]:
            return [to_text(value, name) for name in names]

        records = list(self.read(rows, part, texts_of))
        made = []
        for column in range(len(names)):
            split = [self.sentences(texts[column]) if self.sentences else [texts[column]] for _, _, texts in records]
            ids = self.tokenizer.encode([text for of_record in split for text in of_record], special=self.job.special)
            borders = [0, *accumulate(map(len, split))]
            flat = ids.flat.view(np.int32) if self.dtype == np.int32 else ids.flat.astype(self.dtype)
            made.append((flat, ids.offsets.tolist(), borders))
        for i, (line, value, _) in enumerate(records):
            documents = [self._document(*of_key, i) for of_key in made]
            if not all(lengths for _, lengths in documents):
                part.reject(line, "empty", "the tokenizer makes no token of it", value)
                continue
            for name, (pieces, lengths) in zip(names, documents, strict=True):
                key = part.key(name)
                key.values += pieces
                key.lengths += lengths
            pieces, lengths = documents[0]
            part.note(line, sum(lengths), pieces[0], len(lengths) if self.sentences else None)

    def _whole(self, rows: Rows, part: Part) -> None:
        """One key, a document a sequence, as nearly all data is: a block's ids are taken as they are."""
        name = self.keys[0]
        records = list(self.read(rows, part, lambda value: to_text(value, name)))
        ids = self.tokenizer.encode([text for _, _, text in records], special=self.job.special)
        lengths = np.diff(ids.offsets)
        if self.eod is None and not lengths.all():
            for i in np.flatnonzero(lengths == 0).tolist():
                part.reject(records[i][0], "empty", "the tokenizer makes no token of it", records[i][1])
            records = [record for record, length in zip(records, lengths.tolist(), strict=True) if length]
            lengths = lengths[lengths > 0]
        flat = ids.flat.view(np.int32) if self.dtype == np.int32 else ids.flat.astype(self.dtype)
        if self.eod is not None:
            flat, lengths = np.insert(flat, ids.offsets[1:], self.eod[0]), lengths + 1
        key = part.key(name)
        key.values.append(flat)
        key.lengths += lengths.tolist()
        begin = 0
        for (line, _, _), length in zip(records, lengths.tolist(), strict=True):
            part.note(line, length, flat[begin : begin + length])
            begin += length

    def _document(
        self, flat: NDArray[Any], offsets: list[int], borders: list[int], i: int
    ) -> tuple[list[NDArray[Any]], list[int]]:
        """A document's ids, and the lengths of its sequences."""
        own = offsets[borders[i] : borders[i + 1] + 1]
        lengths = [b - a for a, b in pairwise(own) if b > a]
        if self.eod is None:
            return [flat[own[0] : own[-1]]], lengths
        return [flat[own[0] : own[-1]], self.eod], [*lengths[:-1], lengths[-1] + 1] if lengths else [1]


class Tune(Task):
    """Conversations: ids and labels; cut, split or dropped where they are longer than seq_len."""

    def __post_init__(self) -> None:
        self.keys, self.ones = ("input_ids", "labels"), "input_ids"

    def __call__(self, rows: Rows, part: Part) -> None:
        records = list(self.read(rows, part, lambda value: to_chat(value, self.columns)))
        last = self.job.train_on == "last"
        renderings = self.rendering.chats([record for _, _, record in records], last=last)
        ids, labels = part.key("input_ids"), part.key("labels")
        for (line, value, record), rendering in zip(records, renderings, strict=True):
            try:
                samples = fitted(record, rendering, self.rendering, self.job, part.counts)
            except BadRecord as fault:
                part.reject(line, fault.reason, fault.detail, value, wrong=fault.reason != DROPPED)
                continue
            for sample in samples:
                ids.add(sample.ids)
                labels.add(sample.labels)
                part.note(line, sample.trained, sample.ids)


class Compare(Task):
    """Pairs of answers to one conversation, for DPO and reward models: only the answers are trained."""

    def __post_init__(self) -> None:
        self.keys = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")

    def __call__(self, rows: Rows, part: Part) -> None:
        def pair_of(value: dict[str, Any]) -> Pair:
            return to_pair(value, self.columns)

        records = list(self.read(rows, part, pair_of))
        both = [
            pair.prompt.with_turns(*pair.prompt.turns, answer)
            for _, _, pair in records
            for answer in (pair.chosen, pair.rejected)
        ]
        renderings = self.rendering.chats(both, last=True)
        for i, (line, value, _) in enumerate(records):
            try:
                chosen, rejected = (self._fitted(r, part) for r in renderings[2 * i : 2 * i + 2])
            except BadRecord as fault:
                part.reject(line, fault.reason, fault.detail, value, wrong=fault.reason != DROPPED)
                continue
            arrays = dict(zip(self.keys, (chosen.ids, chosen.labels, rejected.ids, rejected.labels), strict=True))
            hashed = chosen.ids.tobytes() + rejected.ids.tobytes()
            part.add(line, arrays, chosen.trained + rejected.trained, hash_of=hashed)

    def _fitted(self, rendering: Rendering | BadRecord, part: Part) -> Rendering:
        return fitted(None, rendering, self.rendering, self.job, part.counts)[0]


class Reward(Task):
    """Texts whose steps are judged: a step's reward is the label of the placeholder that ends it."""

    def __post_init__(self) -> None:
        self.keys, self.ones = ("input_ids", "labels"), "input_ids"
        self.placeholder = self._one("--placeholder", self.job.placeholder)
        self.rewards = {token: self._one("--reward-token", token) for token in self.job.reward_tokens}

    def _one(self, flag: str, token: str) -> int:
        ids = self.tokenizer.reference.encode([token])[0]
        if len(ids) != 1:
            raise ToolError(
                f"{flag} {token!r}: the tokenizer makes {len(ids)} tokens of it, expected one",
                hint=f"choose a token of the vocabulary: {flag} TOKEN",
            )
        return int(ids[0])

    def __call__(self, rows: Rows, part: Part) -> None:
        records = list(self.read(rows, part, lambda value: to_steps(value, self.columns)))
        ids = self.tokenizer.encode([steps.text for _, _, steps in records])
        for i, (line, value, steps) in enumerate(records):
            row = ids[i].astype(np.int32)
            try:
                rendering = Rendering(row, self._labels(row, steps), [], len(steps.values))
                sample = fitted(None, rendering, None, self.job, part.counts)[0]
            except BadRecord as fault:
                part.reject(line, fault.reason, fault.detail, value, wrong=fault.reason != DROPPED)
                continue
            part.add(line, {"input_ids": sample.ids, "labels": sample.labels}, sample.trained, hash_of=sample.ids)

    def _labels(self, row: NDArray[np.int32], steps: Steps) -> NDArray[np.int32]:
        places = np.flatnonzero(row == self.placeholder)
        if len(places) != len(steps.values):
            raise BadRecord("steps and rewards differ", f"{len(places)} placeholders in the text, {len(steps.values)} values")
        unknown = [value for value in steps.values if value not in self.rewards]
        if unknown:
            raise BadRecord("unknown reward", f"{unknown[0]!r}, expected one of {', '.join(self.rewards)}")
        labels = np.full(len(row), IGNORED, np.int32)
        labels[places] = [self.rewards[value] for value in steps.values]
        return labels


class Ask(Task):
    """Prompts for reinforcement learning: conversations up to where the answer begins, and columns that the reward looks at."""

    def __post_init__(self) -> None:
        self.extra = self.job.keys
        self.keys, self.ones = ("input_ids", *self.extra), "input_ids"

    def __call__(self, rows: Rows, part: Part) -> None:
        columns = [name for name in self.extra if name != "labels"]

        def prompt_of(value: dict[str, Any]) -> Prompt:
            prompt = to_prompt(value, self.columns, columns)
            if "labels" in self.extra and not (prompt.answer or "").strip():
                raise BadRecord("empty answer", "labels are made of it")
            return prompt

        records = list(self.read(rows, part, prompt_of))
        prompts = self.rendering.prompts([prompt.record for _, _, prompt in records])
        texts = [p.answer if name == "labels" else p.extra[name] for _, _, p in records for name in self.extra]
        extras = self.tokenizer.encode([text or "" for text in texts])
        for i, ((line, value, _), prompt) in enumerate(zip(records, prompts, strict=True)):
            if not isinstance(prompt, BadRecord) and self.job.seq_len is not None and len(prompt) > self.job.seq_len:
                part.counts["dropped"] += 1
                part.reject(line, DROPPED, f"{len(prompt)} tokens, --seq-len is {self.job.seq_len}", value, wrong=False)
            elif isinstance(prompt, BadRecord):
                part.reject(line, prompt.reason, prompt.detail, value)
            else:
                own = {name: extras[i * len(self.extra) + k].astype(np.int32) for k, name in enumerate(self.extra)}
                part.add(line, {"input_ids": prompt, **own}, 0, hash_of=prompt)


TASKS: dict[str, type[Task]] = {
    "pretrain": Pretrain,
    "sft": Tune,
    "pairwise": Compare,
    "process-reward": Reward,
    "prompts": Ask,
}


def sentences(language: str) -> Callable[[str], list[str]]:
    """A splitter into sentences (pysbd: rules, not nltk's statistics)."""
    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its patterns are written without r""
            import pysbd
    except ImportError:
        from jumar.schema.errors import Exit

        raise ToolError(
            "--split-sentences needs pysbd", hint='pip install "jumar-data-prep[sentences]"', code=Exit.ENVIRONMENT
        ) from None
    try:
        segmenter = pysbd.Segmenter(language=language, clean=False)
    except ValueError as fault:
        from jumar.data_prep.job import usage

        raise usage(f"--language {language!r}: {fault}", "for example --language zh") from None
    segment: Callable[[str], list[str]] = segmenter.segment
    return segment


def no_eos(tokenizer: Tokenizer, flag: str) -> ToolError:
    """A tokenizer without an end token, where one is needed."""
    named = tokenizer.special.get("eos_token")
    what = f"names {named!r}, which its vocabulary has not" if named else "names no eos_token"
    return ToolError(f"{flag}: {tokenizer.directory} {what}", hint="name the token that ends a document: --eod '<|endoftext|>'")
