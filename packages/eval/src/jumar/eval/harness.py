"""Our engine as a model of lm-eval's: its tasks, prompts and metrics, our log-likelihoods and answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import LM
from tqdm import tqdm

from jumar.eval.local import LocalModel, common
from jumar.eval.requests import Opening, Request, Response
from jumar.eval.sampled import sample, sampling_of
from jumar.infer.conversation import open_template
from jumar.schema.cli import dist_version
from jumar.schema.errors import Exit, ToolError
from jumar.schema.templates import ChatTemplate, TemplateFault

LOG = logging.getLogger("lm_eval.jumar")
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
AT_ONCE = 16
ANY_DEVICE = "cuda:0"  # what its command names where nobody else does
MARK = "\ue000"  # of private use: what no text holds, and no template trims
Args = tuple[Any, ...]


class JumarLM(LM):  # type: ignore[misc]
    """`--model jumar --model_args path=DIR,...`; `pretrained` is another name of `path`, the rest are jumar-eval's options.

    batch_size: answers at once. lm-eval's default, 1, and "auto" mean 16: no score depends on it
    enable_thinking: told to the chat template; think_end_token: of an answer counts what comes after it
    Raises ToolError as `LocalModel`, and (2) for arguments that it does not know.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        pretrained: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if (path is None) == (pretrained is None):
            raise ToolError("one checkpoint is scored", hint="name it: --model_args path=DIR", code=Exit.USAGE)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ToolError("several processes were started, and one scores", hint="run it without torchrun", code=Exit.USAGE)
        if trust_remote_code:
            LOG.warning("trust_remote_code has no effect: no code of a checkpoint is run")
        self.max_gen_toks, self.thinking, self.think_end = max_gen_toks, enable_thinking, think_end_token
        opening = _opening(options, device, DTYPES.get(dtype, dtype), _at_once(batch_size, max_batch_size))
        self.model = LocalModel(Path(str(path or pretrained)), opening)
        for note in self.model.engine.notes:
            LOG.info(note)

    # --- what lm-eval asks

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the most probable one) of each continuation."""
        asked = [
            Request("loglikelihood", each.args[0], each.args[1], head)
            for each, head in zip(requests, heads(requests), strict=True)
        ]
        return self._answers("loglikelihood", [each.args for each in requests], asked, disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, in windows."""
        asked = [Request("rolling", "", *each.args) for each in requests]
        return self._answers("loglikelihood_rolling", [each.args for each in requests], asked, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """An answer to each prompt: the most probable one, or drawn as its generation arguments say."""
        wanted = [sampling_of(each.args[1], self.max_gen_toks) for each in requests]
        asked = [
            Request("generate", each.args[0], "", head, sampling.stop, sampling.max_new_tokens)
            for each, head, sampling in zip(requests, heads(requests), wanted, strict=True)
        ]
        seed = torch.initial_seed()  # of --seed
        drawn = {n: sampling for n, sampling in enumerate(wanted) if sampling.temperature or sampling.penalised}

        def answer(done: Callable[[int, Response], None]) -> None:
            plain = [n for n in range(len(asked)) if n not in drawn]
            self.model.answer([asked[n] for n in plain], lambda i, response: done(plain[i], response))
            sample(self.model, {n: (asked[n].context, sampling) for n, sampling in drawn.items()}, seed, done)

        return self._answers("generate_until", [each.args for each in requests], asked, disable_tqdm, answer)

    def _answers(
        self,
        kind: str,
        arguments: Sequence[Args],
        asked: Sequence[Request],
        quiet: bool,
        answer: Callable[[Callable[[int, Response], None]], None] | None = None,
    ) -> list[Any]:
        """In the order of the requests; each is told to lm-eval's cache (--use_cache) as it comes."""
        found: dict[int, Any] = {}
        cut = 0
        with tqdm(total=len(asked), desc=f"Running {kind} requests", disable=quiet) as bar:

            def done(number: int, response: Response) -> None:
                nonlocal cut
                value = response.value
                if isinstance(value, str) and self.think_end is not None:
                    value = value.split(self.think_end)[-1].lstrip()
                found[number] = value
                cut += response.truncated
                self.cache_hook.add_partial(kind, arguments[number], value)
                bar.update()

            if answer is None:
                self.model.answer(asked, done)
            else:
                answer(done)
        if cut:
            LOG.warning(f"{cut} prompts were longer than the model's context of {self.model.context}, and lost their beginning")
        return [found[number] for number in range(len(asked))]

    # --- conversations

    @cached_property
    def _template(self) -> ChatTemplate:
        if not self.model.tokenizer.has_template:
            raise ToolError(f"{self.model.tokenizer.directory} has no chat template", hint="leave --apply_chat_template out")
        own = open_template(self.model.tokenizer).own
        assert isinstance(own, ChatTemplate)
        if self.thinking is not None:
            own.variables["enable_thinking"] = self.thinking
        return own

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the results. A model here has one at most: another name is refused."""
        if isinstance(chat_template, str) and chat_template != "default":
            what = f"there is no chat template named {chat_template!r}"
            raise ToolError(what, hint="the model's own: --apply_chat_template", code=Exit.USAGE)
        return self._template.source if chat_template else None

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, up to where the answer begins; without that, up to the end of its last message."""
        try:
            if add_generation_prompt:
                return self._template.render(list(chat_history), prompt=True)
            return open_end(self._template, chat_history)
        except TemplateFault as fault:
            raise ToolError(f"the conversation cannot be written: {fault}", hint="see the roles and their order") from None

    @property
    def tokenizer_name(self) -> str:
        """What --cache_requests tells prompts of one model from those of another by."""
        return str(self.model.tokenizer.directory.resolve()).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's results say of the model beside its arguments."""
        engine = self.model.engine
        facts = {"model_device": engine.device.name, "model_notes": list(engine.notes), "max_length": self.model.context}
        return {**facts, "jumar_infer_version": dist_version("jumar-infer")}


def heads(requests: Sequence[Any]) -> list[str]:
    """Of each request what all prompts of its task begin with alike: worked examples that are not drawn, a description."""
    contexts: dict[str, set[str]] = {}
    for each in requests:
        contexts.setdefault(each.task_name, set()).add(each.args[0])
    shared = {task: _alike(min(texts), max(texts)) if len(texts) > 1 else "" for task, texts in contexts.items()}
    return [shared[each.task_name] for each in requests]


def _alike(first: str, last: str) -> str:
    """What two texts begin with alike; of the first and the last in alphabetical order all between them do, too."""
    return first[: common(first, last)]


def open_end(template: ChatTemplate, messages: Sequence[dict[str, str]]) -> str:
    """A conversation whose last message goes on, as transformers cuts it: without spaces behind, where the template trims them.

    Raises ToolError (3) where the template does not write that message.
    """
    *before, last = messages
    text = template.render([*before, {**last, "content": last["content"] + MARK + " "}])
    written, found, after = text.rpartition(MARK)
    if not found:
        raise ToolError("the chat template does not write the last message", hint="leave gen_prefix out of the task")
    return written if after.startswith(" ") else written.rstrip()


def _opening(options: Mapping[str, Any], device: str | None, dtype: str, at_once: int) -> Opening:
    known = {"tokenizer", "adapter", "quantize", "iteration", "family", "engine", "cache_tokens"}
    if unknown := ", ".join(sorted(options.keys() - known)):
        others = ("path", "device", "dtype", "batch_size", "max_gen_toks", "enable_thinking", "think_end_token")
        hint = f"known: {', '.join((*others, *sorted(known)))}"
        raise ToolError(f"--model_args: jumar does not know {unknown}", hint=hint, code=Exit.USAGE)
    given: dict[str, Any] = {name: str(value) for name, value in options.items() if name != "cache_tokens"}
    given |= {name: Path(given[name]) for name in ("tokenizer", "adapter") if name in given}
    kind, _, number = ("auto" if device in (None, ANY_DEVICE) else device).partition(":")
    if number not in ("", "0"):
        hint = "CUDA_VISIBLE_DEVICES or ASCEND_RT_VISIBLE_DEVICES choose among several"
        raise ToolError(f"--device {device}: a device has no number here", hint=hint, code=Exit.USAGE)
    return Opening(device=kind, dtype=dtype, max_batch=at_once, cache_tokens=options.get("cache_tokens"), **given)


def _at_once(batch_size: int | str | None, most: int | None) -> int:
    text = str(batch_size or "auto").partition(":")[0]
    if text not in ("auto", "1"):
        if not text.isdigit():
            raise ToolError(f"--batch_size {batch_size}: expected a number or auto", hint="auto", code=Exit.USAGE)
        return int(text)
    return min(AT_ONCE, most or AT_ONCE)
