"""The token that ends a document, or a conversation."""

from __future__ import annotations

import json

from jumar.schema.errors import Exit, ToolError
from jumar.train_core.job import Job


def eod_id(job: Job, why: str) -> int:
    """The recipe's, or the EOS of config.json, or of generation_config.json. why: what asks for it, for the error."""
    if (given := job.recipe.data.eod_id) is not None:
        return given
    generation = None if job.hf is None else job.hf / "generation_config.json"
    other = json.loads(generation.read_text(encoding="utf-8")) if generation and generation.is_file() else {}
    said = [config.get("eos_token_id") for config in (job.config, other)]
    if one := [eos for eos in said if isinstance(eos, int)]:
        return one[0]
    text = f"{why}: the model does not say which one token ends a document: eos_token_id {said[0] or said[1]}"
    raise ToolError(text, hint="set data.eod_id to the token that the data was made with", code=Exit.USAGE)
