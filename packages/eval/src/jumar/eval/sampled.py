"""Answers that are drawn, and greedy ones with penalties: lm-eval's generation arguments, each request with a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jumar.eval.local import LocalModel
from jumar.eval.requests import Response
from jumar.infer import Sampling
from jumar.schema.errors import Exit, ToolError

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DRAWING = ("top_k", "top_p", "min_p")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "length_penalty": 1, "typical_p": 1}
"""Of transformers; any other value is refused."""


def sampling_of(arguments: Mapping[str, Any], max_new_tokens: int) -> Sampling:
    """`generation_kwargs` of a request, as lm-eval's own models read them. max_new_tokens: where they do not say.

    do_sample decides; without it, a temperature above 0. Raises ToolError (2) that names what is not known.
    """
    left = {key: value for key, value in arguments.items() if WITHOUT_EFFECT.get(key) != value or value is None}
    until = left.pop("until", None) or ()
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    lengths = [left.pop(name, None) for name in LENGTHS]
    length = next((int(n) for n in lengths if n is not None), max_new_tokens)
    drawn, warm = left.pop("do_sample", None), left.pop("temperature", None)
    seed = left.pop("seed", None)
    words = {name: value for name in (*DRAWING, *PENALTIES) if (value := left.pop(name, None)) is not None}
    if left:
        hint = "known: " + ", ".join(("until", *LENGTHS, "do_sample", "temperature", "seed", *DRAWING, *PENALTIES))
        raise ToolError(f"generation arguments that are not supported: {_listed(left)}", hint=hint, code=Exit.USAGE)
    if drawn is None:
        drawn = bool(warm)
    if not drawn:
        return Sampling(max_new_tokens=length, stop=stop, **{name: words[name] for name in PENALTIES if name in words})
    temperature = 1.0 if warm is None else float(warm)
    if not temperature:
        raise ToolError("do_sample with a temperature of 0", hint="do_sample=False takes the most probable", code=Exit.USAGE)
    return Sampling(max_new_tokens=length, temperature=temperature, stop=stop, seed=seed, **words)


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.40}" for name, value in arguments.items())


def sample(
    model: LocalModel, asked: Mapping[int, tuple[str, Sampling]], seed: int, done: Callable[[int, Response], None]
) -> None:
    """number -> (prompt, how). Equal prompts get different answers: seeds are counted up from `seed`, or the request's own."""
    owners: dict[int, tuple[int, bool]] = {}
    for place, (number, (context, sampling)) in enumerate(asked.items()):
        ids, cut = model.prompt(context, sampling.max_new_tokens)
        start = (seed if sampling.seed is None else sampling.seed) % 2**61 + place
        own = replace(sampling, seed=start, stop_ids=model.stop_ids(sampling.stop))
        owners[model.engine.add(ids, own).number] = number, cut
    while owners:
        for request in model.engine.step():
            if request.finish is not None and request.number in owners:
                number, cut = owners.pop(request.number)
                done(number, Response(model.text(request), cut))
