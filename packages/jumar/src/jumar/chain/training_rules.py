"""Flags of training one by one: the recipe fields that they become, or why they become none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from jumar.chain.facts import NOWHERE, TUNING, Facts, numbers_of, shares_of
from jumar.chain.jobs import Flag
from jumar.chain.recipe_text import shown
from jumar.chain.verdicts import Outcome, Unreadable, real, text, whole, words

NO_EXPERTS = "this model has no experts"


def typed(how: str, flag: Flag) -> object:
    if how.startswith("= "):
        return {"true": True, "false": False, "1": 1}.get(how[2:], how[2:])
    return {"int": whole, "float": real, "text": text, "path": text}[how](flag)


def sets(path: str, value: object, why: str = "") -> Outcome:
    return Outcome("mapped", f"{path}: {shown(value)}", why, {path: value})


# --- rules


def exported(name: str, value: str) -> Outcome:
    return Outcome("mapped", f"{name}={value}", environment={name: value})


def no_effect(why: str) -> Outcome:
    return Outcome("no effect", why=why)


def default(why: str) -> Outcome:
    return Outcome("default", why=why)


def refused(why: str) -> Outcome:
    return Outcome("refused", why=why)


def _load(t: Facts, flag: Flag) -> Outcome:
    path = text(flag)
    if path in NOWHERE:
        return no_effect("nothing is loaded")
    if not t.loads:
        return default("a run goes on where its save.path holds a checkpoint")
    alone = t.has("--finetune", "--no-load-optim", "--enable-hf2mg-convert")
    return sets("load.path", path, "" if alone else "weights alone, from step 1; optimizer state is that of save.path")


def _blend(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    parts: list[str] = []
    for value in words(flag):  # a whole blend in quotes is one
        parts += value.split() if _weighted(value.split()) else [value]
    if not parts:
        raise Unreadable("expected a dataset, got nothing")
    if len(parts) == 1:
        return sets(flag.rule.ours, parts[0])
    if _weighted(parts):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return sets(flag.rule.ours, [{"prefix": prefix, "weight": float(weight)} for weight, prefix in pairs])
    return sets(flag.rule.ours, [{"prefix": prefix} for prefix in parts])


def _weighted(parts: list[str]) -> bool:
    try:
        return len(parts) % 2 == 0 and all(float(weight) >= 0 for weight in parts[::2])
    except ValueError:
        return False


def _split(t: Facts, flag: Flag) -> Outcome:
    shares = shares_of(text(flag))
    if not shares or not shares[0]:
        raise Unreadable(f"expected shares such as 98,1,1, got {flag.text!r}")
    if t.has("--train-data-path", "--valid-data-path"):
        return no_effect("each part has data of its own")
    if len(shares) == 1:
        return default("all of data.train trains")
    return sets("data.split", [int(share) if share.is_integer() else share for share in shares])


def _pretraining(t: Facts, flag: Flag) -> Outcome:
    return sets("data.eod_mask_loss", True) if t.task == "pretrain" else no_effect("labels of conversations say what is trained")


def _tuning(t: Facts, flag: Flag) -> Outcome:
    if t.task != "sft":
        return no_effect("samples of pretraining are all of one length, in an order that train.seed decides")
    assert flag.rule is not None
    return sets(flag.rule.ours, False if flag.name == "--no-shuffle" else whole(flag))


def _tokenizer(t: Facts, flag: Flag) -> Outcome:
    kind = t.said("--tokenizer-type") or "PretrainedFromHF"
    read = "--tokenizer-name-or-path" if kind == "PretrainedFromHF" else "--tokenizer-model"
    if flag.name != read and t.has(read):
        return no_effect(f"{read} says which, with --tokenizer-type {kind}")
    if kind == "Llama2Tokenizer" and flag.text.endswith(".model"):
        folder = flag.text.rpartition("/")[0] or "."
        return sets("model.path", folder, "where its tokenizer lies; --model DIR where config.json does not")
    if kind not in ("PretrainedFromHF", "HuggingFaceTokenizer", "SFTTokenizer"):
        return default("the data is token ids already")
    if t.said("--load") == flag.text and t.loads:
        return default("load.path is the same directory")
    return sets("model.path", text(flag), "the directory of config.json")


def _random_weights(t: Facts, flag: Flag) -> Outcome:
    return no_effect("the weights come from load.path") if t.loads else sets("model.init_std", real(flag))


def _storage(t: Facts, flag: Flag) -> Outcome:
    return sets("save.storage", "per_node") if t.nodes > 1 else no_effect("one machine")


def _numbers(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    numbers = numbers_of(text(flag))
    if not numbers:
        raise Unreadable(f"expected numbers such as 5,5,6, got {flag.text!r}")
    if t.pp == 1:
        return no_effect("there is one stage")
    return sets(flag.rule.ours, numbers)


def _chunks(t: Facts, flag: Flag) -> Outcome:
    each, slots = whole(flag), t.slots
    if t.pp == 1:
        return no_effect("there is one stage")
    if slots is None or each < 1 or slots % (t.pp * each):
        return refused(f"{slots} layers are no multiple of pp {t.pp} x {each}: set parallel.vpp, the chunks of a stage")
    return sets("parallel.vpp", t.vpp, "chunks of a stage, where the flag counts layers of a chunk")


def _sequence(t: Facts, flag: Flag) -> Outcome:
    return default("parallel.sequence_parallel is on where tp > 1") if t.tp > 1 else no_effect("tp is 1")


def _overlap(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    if t.dp * t.cp == 1:
        return no_effect("dp x cp is 1")
    if flag.name == "--overlap-param-gather" and not t.has("--overlap-grad-reduce"):
        return no_effect("it goes with --overlap-grad-reduce, there too")
    return sets(flag.rule.ours, True)


def _recompute(t: Facts, flag: Flag) -> Outcome:
    wanted = recomputation(t)
    if wanted is None:
        return no_effect(
            "nothing is recomputed: --recompute-granularity is not given, 0 layers are, or modules that this model has not"
        )
    return Outcome("mapped", f"features.recompute: {shown(wanted)}", sets={"features.recompute": wanted})


def recomputation(t: Facts) -> dict[str, object] | None:
    granularity = "selective" if t.has("--recompute-activations") else t.said("--recompute-granularity")
    if t.has("--activations-checkpoint-method", "--checkpoint-activations"):  # as they were once called
        granularity = "full"
    if granularity == "selective":
        known = ("core_attn", "mlp", "layernorm", "moe_act", "moe", "mla_up_proj", "shared_experts")
        flag = t.job.last("--recompute-modules")
        if flag is None:
            return {"granularity": "selective", "modules": ["core_attn"]}
        inside = {"moe_act", "shared_experts"}
        without = set() if t.experts else {"moe", *inside}
        without |= set() if t.has("--multi-latent-attention", "--multi-head-latent-attention") else {"mla_up_proj"}
        without |= inside if "moe" in words(flag) else set()
        modules = [name for name in dict.fromkeys(words(flag)) if name in known and name not in without]
        return {"granularity": "selective", "modules": modules} if modules else None
    method = t.said("--recompute-method") or t.said("--activations-checkpoint-method") or "uniform"
    names = ("--recompute-num-layers", "--activations-checkpoint-num-layers", "--checkpoint-num-layers")
    layers = next((count for name in names if (count := t.number(name)) is not None), 1)
    if granularity != "full" or not layers:
        return None
    if method == "block" and t.has("--enable-recompute-layers-per-pp-rank"):
        layers = -(-layers // t.vpp)
    counts = t.layers_of_chunks or [layers]
    layers = min(layers, max(counts))
    if method == "uniform" and any(count % layers for count in counts):
        layers = 1
    return {"granularity": "full", "method": method, "layers": layers}


def _half(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    if flag.name == "--initial-loss-scale" and t.has("--loss-scale"):
        return no_effect("--loss-scale is fixed")
    return sets(flag.rule.ours, real(flag)) if t.has("--fp16") else no_effect("loss scaling is for fp16")


def _steady(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    other = t.job.last("--end-weight-decay" if flag.name == "--start-weight-decay" else "--start-weight-decay")
    if other is None or real(other) != real(flag):
        return refused("weight decay does not change while training: set optim.weight_decay")
    return sets(flag.rule.ours, real(flag))


def _steps(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    samples = whole(flag)
    return sets(flag.rule.ours, -(-samples // t.batch), f"{samples} samples / {t.batch}")


def _decaying(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    if t.said("--lr-decay-style") == "constant":
        return no_effect("the learning rate is constant")
    if flag.rule.ours == "schedule.min_lr":
        return sets(flag.rule.ours, real(flag))
    steps = whole(flag) if flag.name == "--lr-decay-iters" else t.in_steps(whole(flag))
    return default("schedule.decay_steps is train.steps") if steps == t.steps else sets(flag.rule.ours, steps)


CURVES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "wsd": "wsd"}


def _curve(t: Facts, flag: Flag) -> Outcome:
    curve = CURVES.get(text(flag).lower())
    if curve is None:
        return refused("schedule.kind is cosine, linear, constant or wsd: choose one with --lr-decay-style")
    return default("schedule.kind is cosine") if curve == "cosine" else sets("schedule.kind", curve)


def _fraction(t: Facts, flag: Flag) -> Outcome:
    total = t.number("--lr-decay-iters") or t.in_steps(t.number("--lr-decay-samples")) or t.steps
    if total is None:
        return refused("a fraction of --train-iters or --lr-decay-iters, neither of which is given")
    return sets("schedule.warmup_steps", math.floor(real(flag) * total + 0.5), f"{flag.text} of {total}")


def _stable(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    if (t.said("--lr-decay-style") or "").lower() != "wsd":
        return no_effect("the learning rate is not WSD")
    return sets(flag.rule.ours, whole(flag) if flag.name.endswith("iters") else text(flag).lower())


def _evaluation(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    number = whole(flag)
    if not t.validates:
        return no_effect("there is no evaluation: no share for it in --split, or --eval-iters 0")
    return sets(flag.rule.ours, number)


def _dispatcher(t: Facts, flag: Flag) -> Outcome:
    if not t.experts:
        return no_effect(NO_EXPERTS)
    if text(flag) == "allgather":
        return sets("features.moe.dispatcher", "allgather")
    return (
        default("features.moe.dispatcher is alltoall")
        if text(flag) == "alltoall"
        else no_effect("alltoall gives the same result")
    )


def balance(t: Facts) -> tuple[str, float | None] | None:
    """(features.moe.balancing, its coefficient); None for a way of routing that is not here."""
    kind = t.said("--moe-router-load-balancing-type") or "aux_loss"
    flag = t.job.last("--moe-aux-loss-coeff")
    coefficient = real(flag) if flag is not None and flag.values else 0.0
    sequence = t.has("--seq-aux") or kind == "seq_aux_loss"
    if kind in ("none", "softmax_topk") or not coefficient:
        return "none", None
    if kind == "noaux_tc":
        return ("sequence", coefficient) if sequence else ("none", None)
    if kind in ("aux_loss", "seq_aux_loss", "group_limited_greedy", "pai_megatron_aux_loss"):
        return ("sequence" if sequence else "micro_batch"), coefficient
    return None


def _balancing(t: Facts, flag: Flag) -> Outcome:
    if not t.experts:
        return no_effect(NO_EXPERTS)
    found = balance(t)
    if found is None:
        return refused("the auxiliary loss is of each micro batch, of each sequence, or none: features.moe.balancing")
    kind, coefficient = found
    if flag.name == "--moe-aux-loss-coeff":
        real(flag)
        return no_effect("nothing is balanced by a loss") if coefficient is None else sets("features.moe.aux_loss", coefficient)
    if kind == "micro_batch":
        return default("features.moe.balancing is micro_batch")
    return sets("features.moe.balancing", kind)


def _events(t: Facts, flag: Flag) -> Outcome:
    save = t.said("--save") or "save.path"
    return sets("log.tensorboard", True, f"its files are in {save}/tensorboard, and not in {text(flag)}")


def _bias(t: Facts, flag: Flag) -> Outcome:
    if not t.has("--moe-router-enable-expert-bias"):
        return no_effect("the router has no balancing bias")
    return sets("features.moe.bias_rate", real(flag))


def _minutes(t: Facts, flag: Flag) -> Outcome:
    seconds = whole(flag) * 60
    return exported("JUMAR_COLLECTIVE_TIMEOUT_S", str(seconds))


def _stage(t: Facts, flag: Flag) -> Outcome:
    stage = flag.text if flag.name == "--stage" else "sft"
    if stage not in (*TUNING, "pretrain", "pt"):
        return refused("preferences, rewards and reinforcement learning are not trained yet: jumar-train has pretrain and sft")
    return Outcome("mapped", f"jumar-train {t.task}")


def _ranks(t: Facts, flag: Flag) -> Outcome:
    ranks = whole(flag)
    if ranks < 1:
        raise Unreadable(f"expected 1 or more, got {flag.text!r}")
    return Outcome("mapped", f"--nproc {ranks}")


def _nodes(t: Facts, flag: Flag) -> Outcome:
    assert flag.rule is not None
    name = flag.rule.ours
    if flag.name in ("--nnodes", "--worker_num"):
        whole(flag)
        if t.nodes == 1:
            return default("one machine")
        return exported("PET_NNODES", str(t.nodes))
    if t.nodes == 1:
        return no_effect("one machine")
    return exported(name, text(flag))


def _endpoint(t: Facts, flag: Flag) -> Outcome:
    if t.nodes == 1:
        return no_effect("one machine")
    if t.has("--master_addr"):
        return no_effect("--master_addr is given")
    host, _, port = text(flag).rpartition(":") if ":" in text(flag) else (text(flag), "", "")
    found = {"PET_MASTER_ADDR": host, **({"PET_MASTER_PORT": port} if port else {})}
    return Outcome("mapped", " ".join(f"{name}={value}" for name, value in found.items()), environment=found)


AT_LEAST_1 = (
    *("parallel.tp", "parallel.pp", "parallel.vpp", "parallel.cp", "parallel.ep", "parallel.etp", "train.micro_batch_size"),
    *(
        "train.global_batch_size",
        "train.steps",
        "train.eval_every",
        "train.eval_batches",
        "data.seq_len",
        "save.every",
        "log.every",
    ),
    *("model.vocab_divisible_by", "schedule.decay_steps", "schedule.wsd_steps", "data.pad_to_multiple_of"),
)
AT_LEAST_0 = ("optim.weight_decay", "optim.clip_grad", "schedule.min_lr", "schedule.warmup_steps", "data.workers", "train.seed")
ABOVE_0 = ("optim.lr", "optim.eps", "optim.loss_scale", "optim.initial_loss_scale", "model.init_std")
BELOW_1 = ("optim.beta1", "optim.beta2", "model.hidden_dropout")


def within(outcome: Outcome) -> Outcome:
    """Refused where jumar-train would refuse the number."""
    for path, value in outcome.sets.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for paths, fits, expected in (
            (AT_LEAST_1, value >= 1, "1 or more"),
            (AT_LEAST_0, value >= 0, "0 or more"),
            (ABOVE_0, value > 0, "more than 0"),
            (BELOW_1, 0 <= value < 1, "0 or more, less than 1"),
        ):
            if path in paths and not fits:
                return refused(f"{path} is {expected}, got {shown(value)}: change it in the script")
    return outcome


RULES: Mapping[str, Callable[[Facts, Flag], Outcome]] = {
    "load": _load,
    "blend": _blend,
    "split": _split,
    "pretraining": _pretraining,
    "tuning": _tuning,
    "tokenizer": _tokenizer,
    "random_weights": _random_weights,
    "storage": _storage,
    "numbers": _numbers,
    "chunks": _chunks,
    "sequence": _sequence,
    "overlap": _overlap,
    "recompute": _recompute,
    "half": _half,
    "steady": _steady,
    "steps": _steps,
    "decaying": _decaying,
    "curve": _curve,
    "fraction": _fraction,
    "stable": _stable,
    "evaluation": _evaluation,
    "dispatcher": _dispatcher,
    "balancing": _balancing,
    "bias": _bias,
    "events": _events,
    "minutes": _minutes,
    "stage": _stage,
    "ranks": _ranks,
    "nodes": _nodes,
    "endpoint": _endpoint,
}
