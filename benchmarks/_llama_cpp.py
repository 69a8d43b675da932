"""llama.cpp on the same weights, through its Python wheel: pip install xllamacpp gguf."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import xllamacpp
from gguf.quants import quantize

KINDS = {"F16": gguf.GGMLQuantizationType.F16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}


def requantised(source: Path, target: Path, kind: str) -> None:
    """The GGUF file `source` with its matrices in another type: what its own rounding left is rounded again."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        of = KINDS[kind] if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, quantize(values, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def server(path: Path, context: int) -> Callable[[list[int], int], None]:
    """Answers of so many tokens to a prompt, by one thread and without what it remembers of others."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, True, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    running = xllamacpp.Server(params)

    def answer(prompt: list[int], new: int) -> None:
        asked = {"prompt": prompt, "n_predict": new, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        got = running.handle_completions(asked)
        got = json.loads(got) if isinstance(got, str | bytes) else got
        assert got["usage"]["completion_tokens"] == new, got

    return answer
