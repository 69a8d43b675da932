"""The tokenizer in a GGUF file's metadata -> tokenizer.json, tokenizer_config.json and the chat template.

Byte-level BPE ("gpt2") is taken over as it is; sentencepiece BPE ("llama") gets its merges back from the scores.
A GGUF names its pre-tokenizer but does not hold it: `_PRE_TOKENIZERS` does, one entry a name.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, llama.cpp's llama-vocab.cpp (which splits and
defaults belong to a name), https://huggingface.co/docs/tokenizers (tokenizer.json)
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jumar.ckpt_convert.formats.gguf_header import Fields
from jumar.schema.errors import ToolError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_TYPES = {_NORMAL: "normal", _UNKNOWN: "unknown", _CONTROL: "control", _USER_DEFINED: "user-defined", _UNUSED: "unused",
          _BYTE: "byte"}  # fmt: skip
_OWN_TOKENIZER = "pass the directory of the model's own tokenizer: --tokenizer DIR"

_ID_FIELDS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # sic
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_NAMED_TOKENS = ("bos", "eos", "unk", "sep", "pad", "mask")  # those that tokenizer_config.json has a place for


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """steps: tokenizer.json's pre-tokenizers, in order; the others as tokenizer.json names them."""

    steps: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _PreTokenizer(
    (_split(_CL100K_SPLIT.replace("DIGITS", "{1,3}")), _byte_level(use_regex=False)), ignore_merges=True, add_bos=True
)
_PRE_TOKENIZERS = {
    "gpt-2": _PreTokenizer((_byte_level(use_regex=True),)),
    "smollm": _PreTokenizer(({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True))),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _PreTokenizer(
        (_split(_CL100K_SPLIT.replace("DIGITS", "")), _byte_level(use_regex=False)), normalizer={"type": "NFC"}
    ),
    # What llama.cpp does with a tokenizer it has no name for. It is not GPT-2's.
    "default": _PreTokenizer(
        (
            _split(r"[\p{P}\$\+<=>\^~\|]+"),
            _split(_GPT2_SPLIT),
            _split(r"\p{N}+"),
            _split(r"[0-9][0-9][0-9]"),
            _byte_level(use_regex=False),
        )
    ),
}


@dataclass(frozen=True, slots=True)
class _Vocab:
    """tokens and types: by id; ids: "bos", "eos", ... -> id."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]

    def in_model(self) -> dict[str, int]:
        """token -> id. Rows that only pad the embedding ("[PAD49152]", type unused) are no tokens."""
        return {
            token: index
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if not (kind == _UNUSED and re.fullmatch(r"\[PAD\d+\]", token))
        }

    def added(self) -> list[dict[str, Any]]:
        """The tokens that are found in a text before it is split; special ones are left out of decoded text."""
        named = {self.ids[name] for name in _NAMED_TOKENS if name in self.ids}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": index, "content": token, **flags, "special": kind != _USER_DEFINED or index in named}
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) or index in named
        ]


def take_ids(fields: Fields, vocab_size: int) -> dict[str, int]:
    """The ids of the special tokens the file names: "bos", "eos", "eot", "eom", "pad", "unk", "sep", "mask" -> id."""
    ids = {}
    for name, field in _ID_FIELDS.items():
        value = fields.take(f"tokenizer.ggml.{field}", int)
        if value is not None:
            if not 0 <= value < vocab_size:
                raise ToolError(
                    f"{fields.path}: tokenizer.ggml.{field} is {value}, expected an id below {vocab_size}",
                    hint="start from the Hugging Face checkpoint",
                )
            ids[name] = value
    return ids


def tokenizer_files(fields: Fields, ids: dict[str, int], *, vocab_rows: int, context_length: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and the chat templates, by file name.

    vocab_rows: rows of the embedding; there are at most so many tokens

    Raises ToolError for a tokenizer that the file does not define wholly, or that is not known.
    """
    for flag in ("add_sep_token", "remove_extra_whitespaces"):
        if fields.take(f"tokenizer.ggml.{flag}", bool, False):
            raise ToolError(f"{fields.path}: tokenizer.ggml.{flag} is true, expected false", hint=_OWN_TOKENIZER)
    model = fields.take("tokenizer.ggml.model", str, "none")
    vocab = _take_vocab(fields, ids, vocab_rows) if model in ("gpt2", "llama") else None
    if vocab is None:
        raise ToolError(f"{fields.path}: tokenizer.ggml.model is {model!r}, expected 'gpt2' or 'llama'", hint=_OWN_TOKENIZER)
    spec, add_bos = _byte_level_bpe(fields, vocab) if model == "gpt2" else _sentencepiece_bpe(fields, vocab)
    add = {
        "bos": fields.take("tokenizer.ggml.add_bos_token", bool, add_bos),
        "eos": fields.take("tokenizer.ggml.add_eos_token", bool, False),
    }
    for name in ("bos", "eos"):
        if add[name] and name not in ids:
            raise ToolError(
                f"{fields.path}: the tokenizer adds a {name} token to every text, but {_ID_FIELDS[name]} is missing",
                hint=_OWN_TOKENIZER,
            )
    added = vocab.added()
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": spec["normalizer"],
        "pre_tokenizer": spec["pre_tokenizer"],
        "post_processor": _post_processor(vocab, add["bos"], add["eos"]),
        "decoder": spec["decoder"],
        "model": spec["model"],
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": vocab.tokens[ids[name]] for name in _NAMED_TOKENS if name in ids},
        "add_bos_token": add["bos"],
        "add_eos_token": add["eos"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    return {
        "tokenizer.json": json_bytes(document),
        "tokenizer_config.json": json_bytes(config),
        **_chat_templates(fields),
    }


def json_bytes(document: Any) -> bytes:
    """A JSON file as Hugging Face writes it: two spaces, UTF-8, a newline at the end."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _take_vocab(fields: Fields, ids: dict[str, int], vocab_rows: int) -> _Vocab:
    tokens = fields.need_list("tokenizer.ggml.tokens", str)
    types = fields.need_list("tokenizer.ggml.token_type", int)
    last_id = max(ids.values(), default=0)
    if not last_id < len(tokens) == len(types) <= vocab_rows:
        raise ToolError(
            f"{fields.path}: {len(tokens)} tokens, {len(types)} token types, special ids up to {last_id}, "
            f"expected a type for each token, ids among them, and at most {vocab_rows} (rows of the embedding)",
            hint="the file is damaged: get it again",
        )
    vocab = _Vocab(tokens, types, ids)
    doubtful = sorted({kind for kind in types if kind not in _TYPES})
    if doubtful:
        raise ToolError(
            f"{fields.path}: tokens of type {doubtful}, expected {', '.join(f'{n} ({t})' for n, t in _TYPES.items())}",
            hint=_OWN_TOKENIZER,
        )
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise ToolError(f"{fields.path}: the token {twice!r} stands there twice", hint=_OWN_TOKENIZER)
    return vocab


def _byte_level_bpe(fields: Fields, vocab: _Vocab) -> tuple[dict[str, Any], bool]:
    """Parts of tokenizer.json for byte-level BPE, and whether such a tokenizer adds bos where the file is silent."""
    name = fields.take("tokenizer.ggml.pre", str, "missing")
    pre = _PRE_TOKENIZERS.get(name)
    if pre is None:
        raise ToolError(
            f"{fields.path}: tokenizer.ggml.pre is {name!r}, expected one of {', '.join(_PRE_TOKENIZERS)}",
            hint=_OWN_TOKENIZER,
        )
    if fields.take("tokenizer.ggml.add_space_prefix", bool, False):
        raise ToolError(
            f"{fields.path}: tokenizer.ggml.add_space_prefix is true for a byte-level tokenizer, expected false",
            hint=_OWN_TOKENIZER,
        )
    fields.take("tokenizer.ggml.scores", list)  # without meaning where there are merges; some converters write them
    tokens = vocab.in_model()
    merges = [merge.split(" ") for merge in fields.need_list("tokenizer.ggml.merges", str)]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= tokens.keys():
            raise ToolError(
                f"{fields.path}: the merge {' '.join(merge)!r} is not of two tokens that make a third",
                hint="the file is damaged: get it again",
            )
    steps = list(pre.steps)
    spec = {
        "normalizer": pre.normalizer,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe_model(tokens, merges, unk=None, byte_fallback=False, ignore_merges=pre.ignore_merges),
    }
    return spec, pre.add_bos


def _sentencepiece_bpe(fields: Fields, vocab: _Vocab) -> tuple[dict[str, Any], bool]:
    """The same for sentencepiece BPE with byte fallback, as the tokenizer.json of Llama 2 has it."""
    fields.take("tokenizer.ggml.pre", str)  # "default": sentencepiece does not split a text beforehand
    scores = fields.need_list("tokenizer.ggml.scores", float)
    merges = _merges_by_score(fields, vocab, scores)
    unk = next((token for token, kind in zip(vocab.tokens, vocab.types, strict=True) if kind == _UNKNOWN), None)
    space = fields.take("tokenizer.ggml.add_space_prefix", bool, True)
    prepend = [{"type": "Prepend", "prepend": "▁"}] if space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    to_mark = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    to_space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    spec = {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, to_mark]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _bpe_model(vocab.in_model(), merges, unk=unk, byte_fallback=True, ignore_merges=False),
    }
    return spec, True


def _merges_by_score(fields: Fields, vocab: _Vocab, scores: list[float]) -> list[list[str]]:
    """The merges of a sentencepiece BPE model, best first: every way to make a normal token of two others.

    Source: transformers' `generate_merges`. Sentencepiece merges the pair whose token has the highest score.
    """
    if len(scores) != len(vocab.tokens):
        raise ToolError(
            f"{fields.path}: {len(scores)} scores, expected one for each of {len(vocab.tokens)} tokens",
            hint="the file is damaged: get it again",
        )
    normal = [index for index, kind in enumerate(vocab.types) if kind == _NORMAL]
    pieces = {vocab.tokens[index]: scores[index] for index in normal}
    merges = []
    for token, score in pieces.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                merges.append((-score, -cut, left, right))
    # Runs of spaces share a score in Llama's own tokenizer: the longest left part first makes them grow from the left.
    merged = {left + right: score for score, _, left, right in merges if (left + right).strip("▁")}
    if len(set(merged.values())) < len(merged):
        raise ToolError(
            f"{fields.path}: {len(merged)} merged tokens share {len(set(merged.values()))} scores, expected a score of "
            "its own for each: without it the order of the merges is unknown",
            hint=_OWN_TOKENIZER,
        )
    return [[left, right] for *_, left, right in sorted(merges)]


def _bpe_model(
    vocab: dict[str, int], merges: list[list[str]], *, unk: str | None, byte_fallback: bool, ignore_merges: bool
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": [" ".join(merge) for merge in merges],
    }


def _post_processor(vocab: _Vocab, add_bos: bool, add_eos: bool) -> dict[str, Any] | None:
    if not add_bos and not add_eos:
        return None

    def wrap(sequence: str, type_id: int) -> list[dict[str, Any]]:
        def special(name: str) -> dict[str, Any]:
            return {"SpecialToken": {"id": vocab.tokens[vocab.ids[name]], "type_id": type_id}}

        body = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        return [special("bos")] * add_bos + body + [special("eos")] * add_eos

    used = [vocab.ids[name] for name, added in (("bos", add_bos), ("eos", add_eos)) if added]
    return {
        "type": "TemplateProcessing",
        "single": wrap("A", 0),
        "pair": wrap("A", 0) + wrap("B", 1),
        "special_tokens": {vocab.tokens[i]: {"id": vocab.tokens[i], "ids": [i], "tokens": [vocab.tokens[i]]} for i in used},
    }


def _chat_templates(fields: Fields) -> dict[str, bytes]:
    """chat_template.jinja, and additional_chat_templates/NAME.jinja for those that have a name."""
    files = {}
    template = fields.take("tokenizer.chat_template", str)
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    names = fields.need_list("tokenizer.chat_templates", str) if "tokenizer.chat_templates" in fields else []
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise ToolError(
                f"{fields.path}: a chat template has the name {name!r}, expected letters, digits, - and _",
                hint=_OWN_TOKENIZER,
            )
        text = fields.need(f"tokenizer.chat_template.{name}", str)
        files[f"additional_chat_templates/{name}.jinja"] = text.encode()
    return files
