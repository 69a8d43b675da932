"""jumar-infer generate: prompts in, answers out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TextIO

from jumar.infer.beams import beamed, check_beams, search
from jumar.infer.conversation import Template, open_template
from jumar.infer.engine import Engine
from jumar.infer.rows import Row, read_rows
from jumar.infer.sampling import LogProb, Sampling
from jumar.infer.scheduler import Request
from jumar.schema.cli import json_text
from jumar.schema.errors import Exit, ToolError


@dataclass(frozen=True, slots=True)
class How:
    """How many answers a prompt gets, and whether by beams."""

    returns: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0

    def check(self, sampling: Sampling, *, final: bool = True) -> None:
        """Raises ToolError (2) where all answers to a prompt would be the same, and for what beams do not do.

        final: the temperature is not still to come from the model's own settings
        """
        if self.num_beams > 1:
            check_beams(sampling, self.num_beams, self.returns)
            return
        if self.length_penalty != 1:
            raise ToolError("--length-penalty goes with beams", hint="give --num-beams as well", code=Exit.USAGE)
        if final and self.returns > 1 and sampling.temperature == 0:
            what = f"--num-return {self.returns}: the answers would be the same"
            raise ToolError(what, hint="give --temperature 1 as well, or --num-beams", code=Exit.USAGE)

    def recipe(self) -> dict[str, Any]:
        """For manifests."""
        return {
            "command": "generate",
            "num_return": self.returns,
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
        }

    def answers(self, engine: Engine, prompt: list[int], sampling: Sampling) -> list[Request]:
        """All answers to one prompt."""
        if self.num_beams > 1:
            beams, penalty = self.num_beams, self.length_penalty
            return search(engine, prompt, sampling, num_beams=beams, length_penalty=penalty, returns=self.returns)
        requests = ask(engine, prompt, sampling, self.returns)
        engine.run(requests)
        return requests


def one_prompt(engine: Engine, prompt: list[int], sampling: Sampling, out: TextIO) -> None:
    """Writes an answer as it comes."""
    for piece in engine.stream(engine.add(prompt, sampling)):
        out.write(piece)
        out.flush()
    out.write("\n")


def prompts_of(engine: Engine, rows: list[Row], sampling: Sampling, template: str) -> list[tuple[list[int], Sampling]]:
    """Tokens of every row, `prompt` as it is, `messages` through the chat template, and how they are answered.

    ToolError (3) says which line is at fault.
    """
    opened: Template | None = None
    prompts = []
    for row in rows:
        prompt, messages = row.values.get("prompt"), row.values.get("messages")
        if (prompt is None) == (messages is None):
            raise row.fault("expected one of prompt and messages", 'for example {"prompt": "..."}')
        if (tools := row.values.get("tools")) is not None:
            _check_tools(row, tools)
        if prompt is not None and not isinstance(prompt, str):
            raise row.fault(f"prompt is of type {type(prompt).__name__}, expected a text", 'for example {"prompt": "..."}')
        try:
            if prompt is not None:
                prompts.append((engine.encode(prompt), sampling))
            else:
                opened = opened or chat_template(engine, template)
                prompts.append((opened.prompt(messages or [], tools), with_stops(sampling, opened)))
        except ToolError as fault:
            raise ToolError(f"{row.where}: {fault.message}", hint=fault.hint, code=fault.code) from None
    return prompts


def _check_tools(row: Row, tools: Any) -> None:
    if row.values.get("messages") is None:
        raise row.fault("tools go with messages", "leave them out, or give messages instead of prompt")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise row.fault("tools is no list of objects", 'for example [{"type": "function", "function": {...}}]')


def chat_template(engine: Engine, name: str) -> Template:
    """The engine's chat template. Raises ToolError (3) where there is none."""
    return open_template(engine.needs_tokenizer(), name)


def with_stops(sampling: Sampling, template: Template) -> Sampling:
    """Answers also end where the template says so."""
    return replace(sampling, stop_ids=(*sampling.stop_ids, *template.stop_ids))


def prompt_ids(engine: Engine, prompt: str, sampling: Sampling, template: str | None) -> tuple[list[int], Sampling]:
    """Tokens of one prompt; as a user's message by a chat template, if one is named."""
    if template is None:
        return engine.encode(prompt), sampling
    opened = chat_template(engine, template)
    return opened.prompt([{"role": "user", "content": prompt}]), with_stops(sampling, opened)


def ask(engine: Engine, prompt: list[int], sampling: Sampling, returns: int) -> list[Request]:
    """`returns` answers to a prompt, each with a seed of its own."""
    seeds = [None if sampling.seed is None else sampling.seed + i for i in range(returns)]
    return [engine.add(prompt, replace(sampling, seed=seed)) for seed in seeds]


def many_prompts(engine: Engine, source: str, sampling: Sampling, how: How, template: str) -> Iterator[dict[str, Any]]:
    """One object for each answer, in the order of the rows, as they are done. Nothing is computed if a row is at fault."""
    rows = read_rows(source)
    prompts = prompts_of(engine, rows, sampling, template)
    requests: list[list[Request]] = []
    for row, (prompt, its) in zip(rows, prompts, strict=True):
        try:
            if how.num_beams > 1:
                beamed(engine, prompt, its, how.num_beams)  # one prompt is searched after another: here it is only checked
            else:
                requests.append(ask(engine, prompt, its, how.returns))
        except ToolError as fault:
            raise ToolError(f"{row.where}: {fault.message}", hint=fault.hint, code=fault.code) from None
    for i, (row, (prompt, its)) in enumerate(zip(rows, prompts, strict=True)):
        found = requests[i] if requests else how.answers(engine, prompt, its)
        for number, request in enumerate(found):
            engine.run([request])
            kept: dict[str, Any] = {key: row.values[key] for key in ("id", "prompt", "messages") if key in row.values}
            yield {**kept, **({"return": number} if how.returns > 1 else {}), **answer(engine, request)}


def all_answers(
    engine: Engine, sampling: Sampling, how: How, source: str | None, prompt: str | None, template: str, *, chat: bool
) -> Iterator[dict[str, Any]]:
    """Those to every row of a file, or to one prompt. chat: that is a user's message."""
    if prompt is None:
        assert source is not None
        yield from many_prompts(engine, source, sampling, how, template)
        return
    ids, sampling = prompt_ids(engine, prompt, sampling, template if chat else None)
    for number, request in enumerate(how.answers(engine, ids, sampling)):
        yield {"prompt": prompt, **({"return": number} if how.returns > 1 else {}), **answer(engine, request)}


def answer(engine: Engine, request: Request) -> dict[str, Any]:
    """An answer as a JSON object."""
    found: dict[str, Any] = {
        "text": request.text,
        "finish": request.finish,
        "prompt_tokens": len(request.prompt),
        "tokens": len(request.output),
    }
    if engine.tokenizer is None:
        found["ids"] = request.output
    if request.sampling.logprobs is not None:
        found["logprobs"] = [log_prob_object(engine, entry) for entry in request.logprobs]
    return found


def log_prob_object(engine: Engine, entry: LogProb) -> dict[str, Any]:
    """A token's log-probability with the most probable alternatives."""

    def named(token: int, value: float) -> dict[str, Any]:
        text = {"token": engine.tokenizer.token(token)} if engine.tokenizer is not None else {}
        return {"id": token, **text, "logprob": round(value, 6)}

    found = named(entry.token, entry.logprob)
    return {**found, "top": [named(*pair) for pair in entry.top]} if entry.top else found


def write_lines(objects: Iterator[dict[str, Any]]) -> None:
    """One JSON object a line on standard output."""
    for value in objects:
        sys.stdout.write(json_text(value) + "\n")
        sys.stdout.flush()
