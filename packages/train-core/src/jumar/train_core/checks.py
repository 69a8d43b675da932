"""What does not fit, before anything is launched: model against engine, layout against model, the recipe in itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from jumar.schema.cli import human_bytes
from jumar.schema.errors import Exit, ToolError
from jumar.schema.parallel import Shard
from jumar.schema.placement import Placement
from jumar.train_core import features
from jumar.train_core.data_checks import check_data
from jumar.train_core.features.base import Problem, is_set, without_effect
from jumar.train_core.job import Job, in_recipe_words
from jumar.train_core.ssm_checks import check_ssm

WEIGHTS = ("config.json", "*.safetensors", "*.gguf", "mp_rank_*", ".metadata", "release", "iter_*")
"""One of these is in every directory of weights; whether they are whole is for who reads them to say."""


def check(job: Job) -> list[Problem]:
    """Everything that does not fit, faults before warnings. Nothing is written; data files are looked at."""
    found = [*check_model(job), *features.check(job), *check_recipe(job), *check_load(job), *check_data(job), *check_save(job)]
    if not any(not problem.warning for problem in found):  # what is left is cut as checkpoints cut it
        found += _check_placement(job)
    return sorted(found, key=lambda problem: problem.warning)


def check_model(job: Job) -> Iterator[Problem]:
    """Traits that the engine cannot express."""
    spec, rope, seq_len = job.spec, job.spec.rope, job.recipe.data.seq_len
    if spec.position == "learned" and seq_len > spec.max_position_embeddings:
        yield Problem(
            f"data.seq_len {seq_len} is longer than the model's {spec.max_position_embeddings} learned positions",
            f"set data.seq_len={spec.max_position_embeddings}, or less",
        )
    if spec.position == "rope" and seq_len > spec.max_position_embeddings > 0:
        yield Problem(
            f"data.seq_len {seq_len} is longer than the model's max_position_embeddings {spec.max_position_embeddings}",
            "set it in model.config, with rope_scaling if the model is to be extended",
            warning=True,
        )
    scaling = rope.scaling
    if scaling is not None and spec.position == "rope":
        if scaling.kind == "dynamic":
            yield Problem(
                "RoPE scaling 'dynamic' changes with the length of each text, which is not trained",
                "set rope_scaling in model.config: linear, llama3 or yarn",
            )
        if scaling.kind == "yarn" and scaling.original_max_position_embeddings is None:
            yield Problem(
                "RoPE scaling 'yarn' without original_max_position_embeddings",
                "add it to rope_scaling in model.config: the length that the model was trained on before",
            )
    yield from _check_experts(job)
    yield from check_ssm(job)


def _check_experts(job: Job) -> Iterator[Problem]:
    moe = job.spec.moe
    if moe is None:
        return
    if moe.score_bias and moe.score != "sigmoid":
        yield Problem(
            f"a balancing bias on {moe.score} scores is not trained (megatron-core has it on sigmoid scores)",
            "does config.json belong to these weights?",
        )
    size = moe.num_experts // max(moe.num_groups, 1)
    least = 2 if moe.group_score == "top2_sum" else 1
    if moe.num_groups > 1 and (
        moe.num_experts % moe.num_groups or size < least or moe.topk_groups > moe.num_groups or moe.topk_groups * size < moe.top_k
    ):
        yield Problem(
            f"{moe.top_k} of {moe.num_experts} experts from {moe.topk_groups} of {moe.num_groups} groups is not possible",
            "look at n_group, topk_group and num_experts_per_tok in config.json",
        )


def check_recipe(job: Job) -> Iterator[Problem]:
    """Numbers that no run has, and fields that nothing looks at."""
    recipe = job.recipe
    yield from _check_numbers(job)
    for name in ("hidden_dropout", "attention_dropout"):
        if not 0 <= getattr(recipe.model, name) < 1:
            yield Problem(f"model.{name} is {getattr(recipe.model, name)}, expected 0 to 1", f"set model.{name}=0.1")
    if recipe.model.attention_dropout:
        yield Problem(
            f"model.attention_dropout {recipe.model.attention_dropout}: attention here is fused and has no dropout",
            "leave model.attention_dropout out; model.hidden_dropout is there",
        )
    if recipe.load.path is not None:
        yield from without_effect(job, ("model.init_std",), "the weights come from load.path")
    else:
        yield from without_effect(job, ("load.iteration",), "load.path is not set")
    if recipe.train.precision != "fp16":
        why = f"train.precision is {recipe.train.precision}"
        yield from without_effect(job, ("optim.loss_scale", "optim.initial_loss_scale"), why)
    elif recipe.optim.loss_scale is not None:
        yield from without_effect(job, ("optim.initial_loss_scale",), "optim.loss_scale is fixed")
    if recipe.train.on_nan == "stop":
        yield from without_effect(job, ("train.max_skipped",), "train.on_nan is stop")
    if recipe.train.eval_every is None and recipe.data.test is None and not sum((recipe.data.split or ())[2:]):
        for idle in without_effect(job, ("train.eval_batches",), "train.eval_every is not set, and there is no test data"):
            yield replace(idle, warning=True)  # a recipe is tried without evaluation
    yield from _check_schedule(job)


AT_LEAST_ONE = ("train.steps", "train.eval_batches", "train.max_skipped", "data.seq_len", "log.every", "save.every", "save.keep")
NOT_NEGATIVE = ("optim.weight_decay", "optim.clip_grad", "schedule.min_lr", "schedule.warmup_steps", "data.workers")
POSITIVE = ("optim.lr", "optim.eps", "optim.loss_scale", "optim.initial_loss_scale", "model.init_std")
FRACTIONS = ("optim.beta1", "optim.beta2")


def _check_numbers(job: Job) -> Iterator[Problem]:
    from jumar.train_core.features.base import default, value

    whole = (*AT_LEAST_ONE, "train.eval_every", "schedule.decay_steps", "schedule.wsd_steps", "load.iteration")
    rules: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
        (whole, lambda n: n >= 1, "1 or more"),
        (NOT_NEGATIVE, lambda n: n >= 0, "0 or more"),
        (POSITIVE, lambda n: n > 0, "more than 0"),
        (FRACTIONS, lambda n: 0 <= n < 1, "0 or more, less than 1"),
    )
    for names, fits, expected in rules:
        for name in names:
            number = value(job.recipe, name)
            if number is not None and not fits(number):
                usual = default(name)
                yield Problem(f"{name} is {number}, expected {expected}", f"set {name}={usual}" if usual else f"leave {name} out")


def _check_schedule(job: Job) -> Iterator[Problem]:
    s, steps = job.recipe.schedule, job.recipe.train.steps
    decay, name = (steps, "train.steps") if s.decay_steps is None else (s.decay_steps, "schedule.decay_steps")
    if decay >= 1 and s.warmup_steps >= decay:
        hint = f"set schedule.warmup_steps below {decay}, or more steps"
        yield Problem(f"schedule.warmup_steps {s.warmup_steps} leaves nothing of {name} {decay}", hint)
    if s.min_lr > job.recipe.optim.lr:
        yield Problem(
            f"schedule.min_lr {s.min_lr:g} is more than optim.lr {job.recipe.optim.lr:g}", "set schedule.min_lr below optim.lr"
        )
    if s.kind == "constant":
        why = "schedule.kind is constant"
        yield from without_effect(job, ("schedule.decay_steps", "schedule.min_lr"), why)
    if s.kind != "wsd":
        yield from without_effect(job, ("schedule.wsd_steps", "schedule.wsd_decay"), f"schedule.kind is {s.kind}")
    elif s.wsd_steps is None:
        yield Problem(
            "schedule.kind=wsd needs schedule.wsd_steps, the steps of its decay", f"set schedule.wsd_steps={max(1, decay // 10)}"
        )
    elif s.warmup_steps + s.wsd_steps > decay:
        yield Problem(
            f"schedule.warmup_steps {s.warmup_steps} and wsd_steps {s.wsd_steps} are more than {name} {decay}",
            f"set schedule.wsd_steps={max(1, decay - s.warmup_steps)}, or less",
        )


def check_save(job: Job) -> Iterator[Problem]:
    """Where the run writes: whether it does at all, whether there is room, and the extras that logging needs."""
    save = job.recipe.save
    if save.path is None:
        fields = [f"save.{name}" for name in ("every", "keep", "background", "optimizer", "storage", "hf")]
        fields += ["log.tensorboard", "log.wandb"]
        yield from without_effect(job, fields, "save.path is not set", "set save.path=runs/NAME")
        yield Problem("nothing is saved: save.path is not set", "set save.path=runs/NAME to keep what is trained", warning=True)
    elif (fault := _unwritable(save.path)) is not None:
        yield Problem(
            f"save.path {save.path}: {fault}", "set save.path to a directory that can be written", code=Exit.ENVIRONMENT
        )
    elif (room := _room(save.path)) is not None:
        nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1")) if save.storage == "per_node" else 1
        need = checkpoint_bytes(job) // nodes
        what = "a checkpoint with its Hugging Face directory" if save.hf else "a checkpoint"
        if need > room:
            yield Problem(
                f"save.path {save.path}: {what} takes about {human_bytes(need)}, {human_bytes(room)} are free",
                "make room, or set save.path to another disk" + (", or save.optimizer=false" if save.optimizer else ""),
                code=Exit.ENVIRONMENT,
                local=True,
            )
    extras = {"tensorboard": ("log.tensorboard", "tensorboard"), "wandb": ("log.wandb", "wandb")}
    for extra, (field, module) in {**extras, "convert": ("save.hf", "jumar.ckpt_convert")}.items():
        if is_set(job, field) and save.path is not None and find_spec(module) is None:
            hint = f'pip install "jumar-train-core[{extra}]", or leave {field} out'
            yield Problem(f"{field} needs {module}, which is not installed", hint, code=Exit.ENVIRONMENT)


def checkpoint_bytes(job: Job) -> int:
    """Size of one checkpoint: weights as they are trained, again for Hugging Face, and, with the optimizer, three fp32 numbers a
    parameter."""
    from jumar.train_core.estimate import whole_parameters

    save, each = job.recipe.save, 4 if job.recipe.train.precision == "fp32" else 2
    return whole_parameters(job.family, job.spec) * (each * (2 if save.hf else 1) + (12 if save.optimizer else 0))


def check_load(job: Job) -> Iterator[Problem]:
    """Whether weights are there at all; what is in them is looked at by who reads them."""
    path, iteration = job.recipe.load.path, job.recipe.load.iteration
    if path is None:
        return
    steps = sorted(int(each.name[5:]) for each in path.glob("iter_*") if each.name[5:].isdigit())
    if path.is_dir() and not steps and not any(True for pattern in WEIGHTS for _ in path.glob(pattern)):
        yield Problem(f"load.path: {path} holds no weights", "give the path of a Hugging Face or Megatron directory")
    elif iteration is not None and steps and iteration not in steps:
        yield Problem(
            f"load.iteration: {path} has no iteration {iteration}", f"set it to one of {', '.join(map(str, steps[-8:]))}"
        )


def _unwritable(path: Path) -> str | None:
    """Why nothing can be written to `path`; None where it can, as far as can be told without writing."""
    here = _existing(path)
    if not here.is_dir():
        return f"{here} is a file"
    return None if os.access(here, os.W_OK | os.X_OK) else f"{here} cannot be written by this user"


def _existing(path: Path) -> Path:
    """`path`, or the nearest of the directories above it that is there."""
    here = path.absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    return here


def _room(path: Path) -> int | None:
    """Free bytes where `path` is or will be; None where nobody can tell."""
    try:
        return shutil.disk_usage(_existing(path)).free
    except OSError:
        return None


def _check_placement(job: Job) -> Iterator[Problem]:
    """The first rank of each stage, cut as a checkpoint is: what no rule above speaks of."""
    placement = Placement(
        family=job.family, spec=job.spec, layout=job.layout, vocab_divisible_by=job.recipe.model.vocab_divisible_by
    )
    try:
        with in_recipe_words():
            for stage in range(job.layout.pp):
                for _ in placement.tensors(Shard("", tp=0, pp=stage)):
                    pass
    except ToolError as fault:
        yield Problem(fault.message, fault.hint or "choose another layout")


def raise_first(problems: list[Problem]) -> None:
    """Raises ToolError for the first that is no warning."""
    for problem in problems:
        if not problem.warning:
            raise ToolError(problem.message, hint=problem.hint, code=problem.code)
