"""Args of a Megatron checkpoint, completed: what the user says, then what they say themselves, then what the files show.

What stays unknown is gathered, so that one error can ask for all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jumar.ckpt_convert.shown import Shown
from jumar.schema.errors import Exit, ToolError
from jumar.schema.parallel import ParallelLayout
from jumar.schema.read_megatron_args import UNREAD_SPLITS
from jumar.schema.spec import ModelSpec

LAYOUT_ARGS = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
    "layers_per_stage": "num_layer_list",
    "noop_layers": "noop_layers",
    "schedule": "schedules_method",
    "tp_extend_ep": "moe_tp_extend_ep",
}
TARGET_FLAGS = re.compile(
    r"--(tp|pp|vpp|ep|etp|layers-per-stage|noop-layers|moe-tp-extend-ep|expert-layout|dialect)\b|parallel sizes"
)
RANKS = tuple(LAYOUT_ARGS[short] for short in ("tp", "pp", "ep"))
ETP, EXTEND = LAYOUT_ARGS["etp"], LAYOUT_ARGS["tp_extend_ep"]
SPLITS = (
    *("num_layer_list", "noop_layers", "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"),
    *UNREAD_SPLITS,
)
OLD_NAMES = {
    "model_parallel_size": "tensor_model_parallel_size",
    "layernorm_epsilon": "norm_epsilon",
    "qk_nope_head_dim": "qk_head_dim",
    "qk_rope_head_dim": "qk_pos_emb_head_dim",
    "moe_intermediate_size": "moe_ffn_hidden_size",
    "n_group": "moe_router_num_groups",
    "topk_group": "moe_router_group_topk",
    "routed_scaling_factor": "moe_router_topk_scaling_factor",
}
"""Names of before Megatron-LM 2.0, and of MindSpeed-LLM 1 -> today's."""


class Args(dict[str, Any]):
    """A shard's args with the user's over them; remembers which were looked at."""

    def __init__(self, own: Mapping[str, Any], sets: Mapping[str, Any]) -> None:
        super().__init__(own)
        self.empty = not own
        self.fill({new: own[old] for old, new in OLD_NAMES.items() if old in own})
        if "hidden_size" in own and own.get("use_rotary_position_embeddings"):
            self.fill({"rotary_base": 10000})  # what it was before Megatron-LM had --rotary-base
        self.given = {LAYOUT_ARGS.get(k, k): v for k, v in sets.items()}
        self.update(self.given)
        self.seen: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def peek(self, key: str) -> Any:
        """The value, without having looked."""
        return super().get(key)

    def fill(self, facts: Mapping[str, Any]) -> None:
        """Takes facts for what is not said, or said to be None."""
        self.update({k: v for k, v in facts.items() if super(Args, self).get(k) is None})

    def count(self, key: str) -> int:
        """A size without having looked; 1 where it is not said, or no size (what reads it will say so)."""
        text = str(self.peek(key))
        return max(int(text), 1) if text.isdecimal() else 1

    def refuse_unused(self) -> None:
        unused = sorted(set(self.given) - self.seen)
        if unused:
            raise ToolError(
                f"--set {', '.join(unused)}: has no effect on this checkpoint",
                hint=f"layout fields are {', '.join(LAYOUT_ARGS)}, dialect, expert_layout; others are Megatron's argument names",
                code=Exit.USAGE,
            )


@contextmanager
def values_given(args: Args) -> Iterator[None]:
    """A value of --set that is wrong whatever the checkpoint is: a fault of the command line, not of the checkpoint (2)."""
    try:
        yield
    except ToolError as fault:
        given = [name for name in (*LAYOUT_ARGS, *args.given) if LAYOUT_ARGS.get(name, name) in args.given]
        wrong = next((name for name in given if _names(fault.message, name)), None)
        if wrong is None:
            raise
        message = fault.message.replace("the checkpoint's args say", "--set")
        raise ToolError(message, hint=f"correct it with --set {wrong}=...", code=Exit.USAGE) from None


def _names(message: str, name: str) -> bool:
    return any(re.search(rf"\b{re.escape(n)}\b", message) for n in (name, LAYOUT_ARGS.get(name, name)))


@contextmanager
def hints_for_a_source() -> Iterator[None]:
    """Layouts that do not fit, said to somebody who has no flags for them but --set."""
    try:
        yield
    except ToolError as fault:
        if not TARGET_FLAGS.search(fault.hint or ""):
            raise
        hint = "is the layout that the checkpoint's args say right (--set tp=...), and the model (hf/config.json)?"
        raise ToolError(fault.message, hint=hint, code=fault.code) from None


def complete(args: Args, shown: Shown, spec: ModelSpec | None) -> tuple[list[str], list[str]]:
    """Fills `args` with what the files show. Gives the names of layout args that stay unknown, and notes.

    spec: of the model, where a config or manifest says it; its sizes are then not looked for.
    """
    if spec is not None and spec.moe is not None:
        shown.has_experts = True  # its files are those of a model with experts, even if each of its layers is dense
    missing, notes = _ranks(args, shown)
    if not missing:
        _pipeline(args, shown)
        missing = _experts(args, shown, spec)
    if spec is None:
        etp = 1 if args.peek(EXTEND) else args.count(ETP) if args.peek(ETP) is not None else None
        sizes = shown.sizes(args.count(RANKS[0]), args.count(RANKS[1]), etp, args)
        if not (args.peek("vocab_size") or args.peek("padded_vocab_size")) and "padded_vocab_size" in sizes:
            notes.append(
                f"nothing says the vocabulary's true size: all {sizes['padded_vocab_size']} rows are taken (--set vocab_size=N)"
            )
        args.fill(sizes)
    else:
        args.fill({"mtp_num_layers": shown.sizes(1, 1, None, args).get("mtp_num_layers")})
    return missing, notes


def _ranks(args: Args, shown: Shown) -> tuple[list[str], list[str]]:
    """tp, pp and ep. Args that the files contradict give way, if the files are all there for what they show."""
    seen = shown.ranks()
    said = {name: args.peek(name) for name in RANKS}
    wrong = {n: v for n, v in seen.items() if n not in args.given and str(said[n]).isdecimal() and int(said[n]) != v}
    notes = []
    if wrong and len(seen) == len(RANKS) and fitting_etps(args, shown, [seen[n] for n in RANKS]):
        args.update(wrong)
        notes = [f"the checkpoint's args say {n}={said[n]}, its files show {v}" for n, v in wrong.items()]
    if not (seen.keys() >= set(RANKS) or args.empty):
        args.fill({RANKS[2]: 1} if said[RANKS[1]] is not None else {})  # of before Megatron had EP
    args.fill(seen)
    return [name for name in RANKS if args.peek(name) is None], notes


def fitting_etps(args: Args, shown: Shown, ranks: Iterable[int] | None = None) -> list[int]:
    """Values of etp under which the files' names are exactly those of the layout. ranks: other tp, pp, ep than the args'."""
    tp, pp, ep = ranks or (args.count(name) for name in RANKS)
    extend = bool(args.peek(EXTEND))
    fitting = []
    for etp in [n for n in range(1, tp + 1) if tp % n == 0] if shown.has_experts and not extend else [1]:
        try:
            layout = ParallelLayout(tp=tp, pp=pp, ep=ep, etp=etp if shown.has_experts else None, tp_extend_ep=extend)
            names = {s.name for s in layout.shards(moe=shown.has_experts)}
        except ToolError:
            continue
        if names == set(shown.files):
            fitting.append(etp)
    return fitting


def _pipeline(args: Args, shown: Shown) -> None:
    """Chunks, schedule, uneven stages and no-op slots, where the args do not say them."""
    pp, layers = args.count(RANKS[1]), args.count("num_layers") if args.peek("num_layers") is not None else None
    stages = {n[1] if pp > 1 and len(n) > 1 else 0 for n in shown.numbers.values()}
    if len(stages) != pp or max(stages) >= pp:
        return  # the files of a stage are missing, which is said later
    facts = shown.pipeline(pp, layers)
    said = any(args.peek(name) not in (None, "", False, (), []) for name in SPLITS)
    args.fill({k: v for k, v in facts.items() if not said or k in ("schedules_method", "virtual_pipeline_model_parallel_size")})


def _experts(args: Args, shown: Shown, spec: ModelSpec | None) -> list[str]:
    """How experts are cut, where the args do not say it."""
    if not shown.has_experts or args.peek(ETP) is not None or args.peek(EXTEND):
        return []
    tp, ep = args.count(RANKS[0]), args.count(RANKS[2])
    router = spec.moe.num_experts if spec and spec.moe else shown.sizes(1, 1, 1, args).get("num_experts", 0)
    here = shown.experts_here()
    if tp > 1 and here and router == here * ep * tp:
        args.fill({EXTEND: True})
        return []
    fitting, width = fitting_etps(args, shown), shown.expert_columns(args)
    ffn = spec.moe.ffn_size if spec and spec.moe else args.count("moe_ffn_hidden_size")
    etp = ffn // width if width and ffn > 1 and ffn % width == 0 else fitting[0] if len(fitting) == 1 else None
    if etp is None and not args.empty:
        etp = tp  # what Megatron takes where nothing is said
    if etp is None:
        return [ETP] if here else [ETP, EXTEND]
    args.fill({ETP: etp})
    # experts of one grouped tensor are as large whole on tp times the ranks as cut into tp parts
    return [EXTEND] if args.empty and not here and etp == tp > 1 and EXTEND not in args.given else []


def ask_for(missing: Iterable[str], where: object, family_hint: str | None = None) -> ToolError:
    """One error that names everything that neither the args nor the files say."""
    names = list(missing)
    short = {arg: field for field, arg in LAYOUT_ARGS.items()}
    said = " ".join(f"--set {short.get(n, n)}=..." for n in names)
    what = f"the checkpoint's args do not say {', '.join(names)}" if names else ""
    if family_hint:
        nothing = "nothing says which model this is (no hf/config.json, manifest or model_type_hf)"
        return ToolError(
            f"{where}: {nothing}" + (f"; and {what}" if names else ""),
            hint=f"add --family NAME (see jumar-convert families){f' {said}' if said else ''}, {family_hint}",
        )
    return ToolError(f"{where}: {what}", hint=f"give them: {said}; or put the model's Hugging Face files into CHECKPOINT/hf/")
