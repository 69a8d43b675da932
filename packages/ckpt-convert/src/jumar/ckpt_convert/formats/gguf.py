"""A GGUF file of a llama-shaped model, read as a Hugging Face checkpoint of LlamaForCausalLM.

`open_gguf` shows its config, its tokenizer and its tensors under their Hugging Face names; `import_gguf` streams them
into a directory. Both need the extra `[gguf]`, whose package dequantises the tensors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jumar.ckpt_convert.formats.gguf_config import TORCH_DTYPES, generation_config, llama_config
from jumar.ckpt_convert.formats.gguf_header import GgufTensor, gguf_package, read_header
from jumar.ckpt_convert.formats.gguf_tokenizer import json_bytes, take_ids, tokenizer_files
from jumar.ckpt_convert.formats.hf import plan_files
from jumar.ckpt_convert.plan import Record
from jumar.ckpt_convert.tensors import DTYPES
from jumar.schema.errors import Exit, ToolError

_CHUNK_BYTES = 16 << 20  # of float32 values, dequantised at a time

_LAYER_WEIGHTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Hugging Face name -> GGUF name, in a layer, in the model's order"""

_ROPE_FACTORS = "rope_freqs.weight"  # goes into the config, not into a tensor
_INFORMATION = ("general.", "quantize.", "tokenizer.ggml.fim_", "tokenizer.ggml.prefix_token_id",
                "tokenizer.ggml.suffix_token_id", "tokenizer.ggml.middle_token_id")  # fmt: skip
"""Fields that say nothing about what the model computes, and that a Hugging Face directory has no place for"""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A llama-shaped GGUF file under Hugging Face names.

    config:     config.json of LlamaForCausalLM
    files:      file name -> content: tokenizer, chat template, generation config
    tensors:    Hugging Face name -> (ggml type in the file, shape), in the model's order
    quantisation: ggml type -> how many tensors of the file have it
    not_carried: fields of the file that have no place in a Hugging Face directory (author, licence, ...)
    """

    path: Path
    config: dict[str, Any]
    files: dict[str, bytes]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    quantisation: dict[str, int]
    not_carried: list[str]
    _sources: dict[str, GgufTensor] = field(repr=False)
    _data: np.memmap[Any, np.dtype[np.uint8]] = field(repr=False)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows [start, stop) of the Hugging Face tensor `name` (of a vector: its elements), dequantised.

        Of an F32 tensor it may be a read-only view of the file; memory beyond the result is a few times its size.
        Raises KeyError for an unknown name and IndexError for rows out of range.
        """
        source = self._sources[name]
        if not 0 <= start <= stop <= source.shape[0]:
            raise IndexError(f"{name}: rows {start}:{stop} of {source.shape[0]}")
        rows: npt.NDArray[np.intp] | slice = slice(start, stop)
        if ".q_proj." in name or ".k_proj." in name:
            rows = permuted_rows(np.arange(start, stop), self.config["head_dim"])
        return _dequantise(source, self._data, rows)


def open_gguf(path: Path | str, *, dtype: str = "F32", tokenizer: Path | str | None = None) -> GgufModel:
    """Open a GGUF file of a llama-shaped model without experts.

    dtype:     "F32", "BF16" or "F16": what config.json says the tensors will be written in
    tokenizer: a directory whose tokenizer files are taken instead of the file's own tokenizer

    Raises ToolError: exit 2 for an unknown dtype, 3 for a file that is damaged or that LlamaForCausalLM cannot
    express, 4 where the gguf package is missing.
    """
    if dtype not in TORCH_DTYPES:
        raise ToolError(f"dtype {dtype!r} is not known", hint=f"choose one of {', '.join(TORCH_DTYPES)}", code=Exit.USAGE)
    path = Path(path)
    fields, tensors = read_header(path)
    _check_types(path, tensors)
    data: np.memmap[Any, np.dtype[np.uint8]] = np.memmap(path, np.uint8, "r")
    embedding = tensors.get("token_embd.weight")
    factors = tensors.get(_ROPE_FACTORS)
    vocab_rows = embedding.shape[0] if embedding else 0
    config = llama_config(
        fields,
        names=set(tensors),
        vocab_rows=vocab_rows,
        rope_factors=None if factors is None else _dequantise(factors, data).reshape(factors.shape),
        dtype=dtype,
    )
    sources = _map_tensors(path, config, tensors)
    ids = take_ids(fields, vocab_rows)
    config |= {f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")}
    files = {"generation_config.json": json_bytes(generation_config(fields, ids))}
    if tokenizer is None:
        context_length = config["max_position_embeddings"]
        files |= tokenizer_files(fields, ids, vocab_rows=vocab_rows, context_length=context_length)
        not_carried = []
    else:
        files |= _tokenizer_of(Path(tokenizer))
        not_carried = fields.take_prefix("tokenizer.")
    not_carried += fields.take_prefix(*_INFORMATION)
    fields.refuse_rest()
    return GgufModel(
        path=path,
        config=config,
        files=files,
        tensors={name: (source.type, source.shape) for name, source in sources.items()},
        quantisation=dict(Counter(tensor.type for tensor in tensors.values())),
        not_carried=sorted(not_carried),
        _sources=sources,
        _data=data,
    )


def import_gguf(
    path: Path | str,
    dst: Path | str,
    *,
    dtype: str = "F32",
    tokenizer: Path | str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a GGUF file as a Hugging Face directory: config, tokenizer, and safetensors of one dtype.

    dtype, tokenizer: as in `open_gguf`
    max_shard_bytes:  a file holds at most so many bytes of tensors, or a single larger tensor
    on_progress:      called with the bytes of tensors written so far and in all

    Memory is bounded by chunks of rows, whatever the size of the model. `dst` is made if it is not there.

    Returns {"tensors", "bytes", "shards", "quantisation": {ggml type: tensors of the file}, "not_carried": [field]}.
    Raises ToolError as `open_gguf`, exit 3 for a value that `dtype` cannot hold; OSError where writing fails.
    """
    model, dst = open_gguf(path, dtype=dtype, tokenizer=tokenizer), Path(dst)
    records = [Record(name, dtype, shape, shape, ()) for name, (_, shape) in model.tensors.items()]
    shards, index = plan_files(records, max_shard_bytes)
    total, written = sum(record.nbytes for record in records), 0
    dst.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        with (dst / shard.path).open("wb") as file:
            file.write(shard.header)
            for record in shard.records:
                for chunk in _chunks(model, record):
                    file.write(chunk.data)
                    written += chunk.nbytes
                    if on_progress is not None:
                        on_progress(written, total)
    for name, content in {"config.json": json_bytes(model.config), **model.files, **index}.items():
        (dst / name).parent.mkdir(exist_ok=True)
        (dst / name).write_bytes(content)
    return {
        "tensors": len(records),
        "bytes": total,
        "shards": len(shards),
        "quantisation": model.quantisation,
        "not_carried": model.not_carried,
    }


def permuted_rows(rows: npt.NDArray[np.intp], head_dim: int) -> npt.NDArray[np.intp]:
    """Where llama.cpp keeps these rows of a q or k projection.

    llama.cpp rotates neighbouring elements of a head (2i, 2i + 1), Hugging Face element i with i + head_dim / 2; so
    each head is written as [2, head_dim / 2] transposed. k differs from q only in the number of heads.

    Source: `LlamaModel.permute` in llama.cpp's conversion
    """
    head, row = np.divmod(rows, head_dim)
    half, pair = np.divmod(row, head_dim // 2)
    permuted: npt.NDArray[np.intp] = head * head_dim + 2 * pair + half
    return permuted


def _map_tensors(path: Path, config: dict[str, Any], tensors: dict[str, GgufTensor]) -> dict[str, GgufTensor]:
    """Hugging Face name -> the tensor in the file; ToolError for one that is missing, unknown or of another shape."""
    num_layers = config["num_hidden_layers"]
    if num_layers > len(tensors):
        raise ToolError(
            f"{path}: llama.block_count is {num_layers}, but the file has only {len(tensors)} tensors",
            hint="the file is damaged: get it again",
        )
    expected = _expected_tensors(config)
    missing = [name for name, _ in expected.values() if name not in tensors]
    unknown = tensors.keys() - {name for name, _ in expected.values()} - {_ROPE_FACTORS}
    if missing or unknown:
        found = [f"missing {_few(missing)}"] * bool(missing) + [f"unknown {_few(sorted(unknown))}"] * bool(unknown)
        raise ToolError(
            f"{path}: the tensors are not those of LlamaForCausalLM with {num_layers} layers: {'; '.join(found)}",
            hint="the file is damaged or not of a plain Llama: start from the Hugging Face checkpoint",
        )
    for name, shape in expected.values():
        if tensors[name].shape != shape:
            raise ToolError(
                f"{path}: tensor {name} has the shape {list(tensors[name].shape)}, expected {list(shape)} "
                "by the fields of the file",
                hint="the file is damaged: get it again",
            )
    return {hf_name: tensors[name] for hf_name, (name, _) in expected.items()}


def _expected_tensors(config: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Hugging Face name -> (GGUF name, shape), in the model's order."""
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q_rows = config["num_attention_heads"] * config["head_dim"]
    kv_rows = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_q": (q_rows, hidden),
        "attn_k": (kv_rows, hidden),
        "attn_v": (kv_rows, hidden),
        "attn_output": (hidden, q_rows),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    biased = {"self_attn": config["attention_bias"], "mlp": config["mlp_bias"]}
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("token_embd.weight", (vocab, hidden))}
    for layer in range(config["num_hidden_layers"]):
        for hf_name, name in _LAYER_WEIGHTS.items():
            prefix, key = f"model.layers.{layer}.{hf_name}", f"blk.{layer}.{name}"
            expected[f"{prefix}.weight"] = (f"{key}.weight", shapes[name])
            if biased.get(hf_name.split(".")[0]):
                expected[f"{prefix}.bias"] = (f"{key}.bias", shapes[name][:1])
    expected["model.norm.weight"] = ("output_norm.weight", (hidden,))
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = ("output.weight", (vocab, hidden))
    return expected


def _check_types(path: Path, tensors: dict[str, GgufTensor]) -> None:
    """ToolError for a type that the gguf package has no dequantisation for."""
    gguf = gguf_package()
    for kind in {tensor.type for tensor in tensors.values()}:
        number = gguf.GGMLQuantizationType[kind]
        block = np.zeros((1, gguf.GGML_QUANT_SIZES[number][1]), np.uint8)
        try:
            gguf.quants.dequantize(block, number)
        except NotImplementedError:
            names = [name for name, tensor in tensors.items() if tensor.type == kind]
            raise ToolError(
                f"{path}: tensors of type {kind} cannot be dequantised: {_few(names)}",
                hint="pip install --upgrade gguf, or quantise the model to another type",
            ) from None


def _dequantise(
    tensor: GgufTensor, data: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp] | slice = slice(None)
) -> npt.NDArray[np.float32]:
    """`rows` of a tensor as float32 [rows, columns]; of a vector, its elements as float32 [rows]."""
    gguf = gguf_package()
    kind = gguf.GGMLQuantizationType[tensor.type]
    raw = np.asarray(data[tensor.offset : tensor.offset + tensor.nbytes])
    values: npt.NDArray[np.float32]
    if len(tensor.shape) == 1:
        values = gguf.quants.dequantize(raw, kind)[rows]
    else:
        values = gguf.quants.dequantize(raw.reshape(tensor.shape[0], -1)[rows], kind)
    return values


def _chunks(model: GgufModel, record: Record) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of a tensor in the record's dtype, some rows at a time."""
    num_rows, *row = record.shape
    step = max(1, _CHUNK_BYTES // (math.prod(row) * 4))
    for start in range(0, num_rows, step):
        values = model.read_rows(record.name, start, min(start + step, num_rows))
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(values, dtype=DTYPES[record.dtype])
        if np.any(np.isinf(cast) & np.isfinite(values)):
            raise ToolError(
                f"{model.path}: {record.name} has values up to {np.abs(values).max():g}, too large for {record.dtype}",
                hint="choose another dtype: BF16 or F32",
            )
        yield cast.reshape(-1).view(np.uint8)


def _tokenizer_of(directory: Path) -> dict[str, bytes]:
    """The tokenizer files of a Hugging Face directory, by name."""
    files = {name: (directory / name).read_bytes() for name in _TOKENIZER_FILES if (directory / name).is_file()}
    if not {"tokenizer.json", "tokenizer.model"} & files.keys():
        raise ToolError(f"{directory}: no tokenizer.json and no tokenizer.model there", hint="--tokenizer DIR names a directory")
    return files


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
