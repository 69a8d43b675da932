"""A training command as a recipe: its flags, and what Megatron does where one is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from jumar.chain.against import against_config
from jumar.chain.architecture import made_config, read_config
from jumar.chain.facts import Facts
from jumar.chain.jobs import Flag, Job
from jumar.chain.left_out import left_out
from jumar.chain.options import quoted
from jumar.chain.preparing import preparation
from jumar.chain.recipe_text import recipe_text, shown
from jumar.chain.training_rules import NO_EXPERTS, RULES, sets, typed, within
from jumar.chain.verdicts import Made, Outcome, Unreadable, Verdict, by_table, verdict
from jumar.schema.errors import ToolError

OTHER_STAGES = ("--stage", "--is-pairwise-dataset")
"""Where one of these is refused, a recipe without it would be another training."""
NO_MODEL = "nothing names the model's directory, with its config.json: give it with --model DIR"


@dataclass(slots=True)
class Fields:
    """Recipe fields with their values, and what is written beside each."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def set(self, values: Mapping[str, object], source: str) -> None:
        for path, value in values.items():
            self.values[path] = value
            known = self.sources.setdefault(path, [])
            if source not in known:
                known.append(source)

    def agreed(self, found: Outcome) -> Outcome:
        """Refused where another flag has set a field to something else: Megatron stops, or takes one in silence."""
        for path, value in found.sets.items():
            shared = path in ("model.config.rope_parameters", "model.config.rope_scaling")
            if not shared and self.values.get(path, value) != value:
                before = f"{path} is {shown(self.values[path])} by {' and '.join(self.sources[path])}"
                return Outcome("refused", why=f"{before}: give one of them")
        return found


def migrate_training(job: Job, name: str, model: str | None = None) -> Made:
    """A recipe and the command that runs it; before it the one that makes the data, where the script names raw files.

    name: of the recipe's file, without its suffix; model: the directory of config.json, where the script does not say.
    """
    facts, fields, environment = Facts(job), Fields(), dict[str, str]()
    prepared = preparation(facts, PurePath(name).name, model)
    files, faults, config = _model(facts, name, model)
    compared, unread = _compared(facts, config)
    verdicts: list[Verdict] = []
    for flag in (*job.launcher, *job.flags):
        found = outcome(facts, flag, compared)
        if prepared is not None:
            found = prepared.outcomes.get(flag.name, found)
        if flag.rule is not None and found.kind == "mapped":
            found = fields.agreed(found)
            fields.set(found.sets, flag.name)
            environment |= found.environment
        verdicts.append(verdict(flag, found))
    if model is not None:
        fields.set({"model.path": model}, "--model")
    for path, value, flag_name in _implied(facts, fields.values):
        fields.set({path: value}, f"{flag_name}, left out")
    if files:
        fields.set({"model.path": f"{name}-model"}, "made of the flags of the architecture")
    elsewhere = [each for each in verdicts if each.kind == "refused" and each.flag in OTHER_STAGES]
    recipe = f"{name}.yaml"
    head = [f"From {job.program}, line {job.line}. `jumar-train schema` says what each field is."]
    if facts.nodes > 1:
        environment = _machines(facts, environment)
    words = ["jumar-train", facts.task, recipe, *(["--nproc", str(facts.nproc)] if facts.nproc > 1 else [])]
    train = " ".join([*(f"{key}={_evaluated(value)}" for key, value in environment.items()), *map(quoted, words)])
    return Made(
        job=job,
        verdicts=tuple(verdicts),
        commands=() if elsewhere else (*(prepared.commands if prepared else ()), train),
        files={} if elsewhere else {recipe: recipe_text(fields.values, fields.sources, head), **files},
        notes=(*_notes(facts), *_beside_config(facts, model, made=bool(files), config=config)),
        faults=(*faults, *unread, *(prepared.faults if prepared else ()), *_contradictions(facts)),
    )


def _evaluated(value: str) -> str:
    """A value as a shell takes it, which evaluates what it holds of variables and commands."""
    return f'"{value}"' if "$" in value and quoted(value) != value else quoted(value)


def _machines(t: Facts, said: Mapping[str, str]) -> dict[str, str]:
    """The variables of a run on several machines; those that the script does not say by their usual names."""
    usual = {"PET_NNODES": str(t.nodes), "PET_NODE_RANK": "$NODE_RANK", "PET_MASTER_ADDR": "$MASTER_ADDR"}
    return {**usual, **said}


def _model_of(t: Facts) -> str | None:
    """The directory that the recipe names for its model."""
    flags = (t.job.last(name) for name in ("--tokenizer-name-or-path", "--tokenizer-model", "--load"))
    named = [outcome(t, flag, {}).sets for flag in flags if flag is not None]
    return next((str(sets[field]) for field in ("model.path", "load.path") for sets in named if field in sets), None)


def outcome(t: Facts, flag: Flag, compared: Mapping[str, Outcome]) -> Outcome:
    """What a flag of training, or of its launcher, is. compared: flags that say otherwise than the model's config.json."""
    found = by_table(flag, t.job, ("tuning",) if t.task == "sft" else ())
    if found is None:
        return _with_effect(t, within(_mapped(t, flag)))
    return compared.get(flag.name, found) if t.job.last(flag.name) is flag else found


def _compared(t: Facts, config: Mapping[str, Any] | None) -> tuple[Mapping[str, Outcome], list[str]]:
    """(flags that say otherwise than config.json, why it could not be read)."""
    if config is None:
        return {}, []
    try:
        return against_config(t, config), []
    except ToolError as fault:
        return {}, [f"{fault.message}; {fault.hint}" if fault.hint else fault.message]


def _model(t: Facts, name: str, model: str | None) -> tuple[dict[str, str], list[str], Mapping[str, Any] | None]:
    """(files, faults, config.json): of the directory that is named, or made of the flags where none is."""
    where = model or _model_of(t)
    if where is not None:
        return {}, [], read_config(where)
    try:
        config = made_config(t)
    except ToolError as fault:
        said = fault.message.replace("the checkpoint's args do", "they do")
        return {}, [f"{NO_MODEL} (of the flags alone none can be made: {said})"], None
    return {f"{name}-model/config.json": json.dumps(config, indent=2) + "\n"}, [], config


def _mapped(facts: Facts, flag: Flag) -> Outcome:
    rule = flag.rule
    assert rule is not None
    try:
        if rule.how.startswith("by "):
            return RULES[rule.how[3:]](facts, flag)
        return sets(rule.ours, typed(rule.how, flag))
    except Unreadable as fault:
        return Outcome("refused", why=str(fault))


def _with_effect(t: Facts, outcome: Outcome) -> Outcome:
    """Fields that jumar-train would refuse as having no effect are left out."""
    for path in outcome.sets:
        if path.startswith(("save.", "log.tensorboard", "log.wandb")) and not t.has("--save"):
            return Outcome("no effect", why="nothing is saved: --save is not given")
        of_experts = path in ("parallel.ep", "parallel.etp") or path.startswith("features.moe.")
        if of_experts and not t.experts:
            return Outcome("no effect", why=NO_EXPERTS)
        if path == "features.mtp_loss" and not t.has("--mtp-num-layers"):
            return Outcome("no effect", why="this model has no multi-token-prediction layers")
    return outcome


def _implied(t: Facts, fields: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """(field, value, flag) of what Megatron takes where a flag is left out, and jumar-train would take otherwise."""
    for path, value, flag in (
        ("optim.weight_decay", 0.01, "--weight-decay"),
        ("optim.beta2", 0.999, "--adam-beta2"),
        ("schedule.kind", "linear", "--lr-decay-style"),
        ("model.hidden_dropout", 0.1, "--hidden-dropout"),
        ("log.every", 100, "--log-interval"),
    ):
        if not t.has(flag) and path not in fields:
            yield path, value, flag
    if not t.has("--bf16", "--fp16"):
        yield "train.precision", "fp32", "--bf16"
    if not t.has("--global-batch-size"):
        yield "train.global_batch_size", t.batch, "--global-batch-size"
    if not t.loads and not t.has("--init-method-std"):
        yield "model.init_std", 0.02, "--init-method-std"
    if t.task == "sft" and not t.has("--calculate-per-token-loss"):
        yield "train.loss", "micro_batch", "--calculate-per-token-loss"
    if t.tp > 1 and not t.has("--sequence-parallel") and not t.experts:
        yield "parallel.sequence_parallel", False, "--sequence-parallel"
    if t.tp > 1 and t.experts and not t.has("--expert-tensor-parallel-size", "--moe-tp-extend-ep"):
        yield "parallel.etp", t.tp, "--expert-tensor-parallel-size"
    if not t.has("--split", "--train-data-path", "--valid-data-path", "--test-data-path"):
        yield "data.split", [969, 30, 1], "--split"
    if t.validates:
        for path, number, flag in (("train.eval_every", 1000, "--eval-interval"), ("train.eval_batches", 100, "--eval-iters")):
            if path not in fields:
                yield path, number, flag


def _beside_config(t: Facts, model: str | None, *, made: bool, config: Mapping[str, Any] | None) -> Iterator[tuple[int, str]]:
    """What is to be known of the flags of the architecture. made: config.json is made of them."""
    where = model or _model_of(t)
    if where is not None and config is None:
        named = "" if model else "; --model DIR names one that is"
        yield t.job.line, f"the architecture is not compared with config.json: {where} is not here{named}"
    elif config is not None and not made and (said := left_out(t, config)):
        yield t.job.line, said


def _contradictions(t: Facts) -> Iterator[str]:
    """What a dry run would refuse: ranks and batches that do not go together."""
    ranks, batch, micro = t.nproc * t.nodes, t.number("--global-batch-size"), t.number("--micro-batch-size", 1) or 1
    if ranks % t.unit:
        yield f"{_layout(t)} = {t.unit} does not divide the {ranks} ranks of the launcher: change one of them in the script"
    elif t.slots and t.slots % (t.pp * t.vpp) and not t.has("--num-layer-list") and t.pp > 1:
        yield f"{t.slots} layers are no multiple of pp {t.pp} x vpp {t.vpp}: parallel.layers_per_stage shares them out unevenly"
    elif batch and batch % (micro * t.dp):
        yield f"--global-batch-size {batch} is no multiple of --micro-batch-size {micro} x dp {t.dp}: change it in the script"


def _layout(t: Facts) -> str:
    ep = t.number("--expert-model-parallel-size", 1) or 1
    dense = f"tp {t.tp} x pp {t.pp} x cp {t.cp}"
    return f"{dense}, with etp {t.etp} x ep {ep} x pp {t.pp}," if t.experts and ep > 1 else dense


def _notes(t: Facts) -> Iterator[tuple[int, str]]:
    line, ranks = t.job.line, (t.said_ranks or 1) * t.said_nodes
    if not t.has("--attention-dropout"):
        yield line, "--attention-dropout is 0.1 there where it is left out; attention here has no dropout"
    if t.said_ranks is None and t.unit > 1:
        yield line, f"nothing says how many ranks there are: {t.unit} are the least, one copy of the model"
    elif ranks % t.unit and t.nodes > t.said_nodes:
        yield line, f"{_layout(t)} = {t.unit} ranks, the launcher has {ranks}: {t.nodes} machines of {t.nproc} are the least"
    if t.nodes > 1 and not t.has("--node_rank"):
        numbers = f"0 to {t.nodes - 1}, another on each machine; under srun: $SLURM_NODEID inside of what it starts"
        yield line, f"PET_NODE_RANK is {numbers}"
    for flag in ("--lr", "--seq-length", "--micro-batch-size", "--data-path", "--train-data-path"):
        if not t.has(flag) and not (flag.endswith("data-path") and t.has("--data-path", "--train-data-path")):
            yield line, f"{flag} is not given: the recipe's own default holds"
    if t.steps is None:
        yield line, "--train-iters is not given: the recipe's own train.steps holds"
