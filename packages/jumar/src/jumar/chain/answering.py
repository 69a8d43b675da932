"""Generation as a jumar-infer command, evaluation as a jumar-eval command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

from jumar.chain.converting import DTYPES
from jumar.chain.facts import Facts
from jumar.chain.jobs import Flag, Job
from jumar.chain.options import Value, classed, line, option
from jumar.chain.tables import tables
from jumar.chain.verdicts import Made, Outcome, text, whole, words
from jumar.schema.slots import template_names

PROMPT = "PROMPT"
FOLDERS = ("test", "val", "dev", "data")


class Answers(Facts):
    """What a script that asks a model says."""

    @property
    def tasks(self) -> list[str]:
        flag = self.job.last("--task")
        return [] if flag is None else words(flag)

    @property
    def command(self) -> str:
        if "server" in self.job.program:
            return "serve"
        return "chat" if "chat" in self.tasks else "generate"

    @property
    def processes(self) -> int:
        """Of torchrun: those that share the model there, where one machine has them."""
        count = self.tp * self.pp
        return count if self.said_nodes == 1 and 1 < count <= (self.said_ranks or 1) else 1

    @property
    def copies(self) -> int:
        """Processes of an evaluation: all of the machine, in as many copies of the model as they make."""
        ranks = self.said_ranks or 1
        return ranks if self.said_nodes == 1 and ranks % (self.tp * self.pp) == 0 else 1


def _task(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Answers)
    known = tables()["inference"].more["tasks"]
    sets: dict[str, object] = {}
    for task in words(flag):
        if task not in known:
            return Outcome("refused", why=f"of greedy, do_sample, beam_search and chat; leave {task} out")
        if known[task] is None:
            return Outcome("refused", why="beams are not drawn by lot: choose beam_search, or do_sample")
        if isinstance(known[task], list) and known[task] and not t.has(known[task][0]):
            sets[known[task][0]] = known[task][1]
    more = " ".join(f"{name} {value}" for name, value in sets.items())
    return Outcome("mapped", f"jumar-infer {t.command} {more}".strip(), sets=sets)


def _template(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Answers)
    chat: dict[str, object] = {"--chat": True} if t.command == "generate" else {}
    if flag.name == "--hf-chat-template":
        return Outcome("mapped", "the model's own template" if not chat else "--chat", sets=chat)
    if text(flag) not in template_names():
        return Outcome("refused", why="jumar-data templates lists the names; leave the flag out for the model's own template")
    return Outcome("mapped", f"--template {flag.text}", sets={**chat, "--template": flag.text})


def _stages(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Answers)
    stages = whole(flag)
    if t.processes == 1:
        return Outcome("no effect", why="the files are read whatever their layout, by one process")
    return option("--pp", str(stages)) if stages > 1 else Outcome("default", why="one stage")


def _serving(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Answers)
    assert flag.rule is not None
    return option(flag.rule.ours, text(flag)) if t.command == "serve" else Outcome("no effect", why="nothing is served")


def _family(t: Facts, flag: Flag) -> Outcome:
    found = tables()["conversion"].more["families"].get(text(flag))
    return option("--family", found) if found else Outcome("refused", why="no family of docs/families.md; a family is one file")


def _prompts(t: Facts, flag: Flag) -> Outcome:
    if flag.name in ("--prompt-file", "--data"):
        return option("FILE", text(flag), 'each line {"prompt": ...}, where it has {"text": ...} there')
    if len(flag.values) > 1:
        return Outcome("refused", why='-p is one prompt; several are lines of a file, {"prompt": ...}: name it in their place')
    return option("-p", text(flag))


def _logprobs(t: Facts, flag: Flag) -> Outcome:
    if flag.name == "--return-log-probs" and t.has("--top-n-logprobs"):
        return Outcome("default", why="--logprobs N has both")
    return option("--logprobs", str(whole(flag)) if flag.values else "0")


INFERENCE = {
    "task": _task,
    "template": _template,
    "stages": _stages,
    "serving": _serving,
    "family": _family,
    "prompts": _prompts,
    "logprobs": _logprobs,
}
OPENED = ("MODEL", "--tokenizer", "--dtype", "--adapter", "--iteration", "--family", "--pp")
SERVED = (*OPENED, "--host", "--port", "--template", "--max-batch")
GREEDY = ("greedy", "greedy_search")
SAMPLING = ("--temperature", "--top-k", "--top-p")
SAMPLED = ("--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed", "--stop")
BATCHED = ("--num-beams", "--length-penalty", "--max-batch", "--chat", "--logprobs", "-p", "FILE")


def migrate_inference(job: Job, name: str, model: str | None = None) -> Made:
    """The jumar-infer command; where the script shares the model out over processes of one machine, under torchrun."""
    t = Answers(job)
    allowed = {
        "serve": SERVED,
        "chat": (*OPENED, *SAMPLED, "--template"),
        "generate": (*OPENED, *SAMPLED, *BATCHED, "--template"),
    }[t.command]

    def amend(outcome: Outcome) -> Outcome:
        if outcome.sets and not set(outcome.sets) <= set(allowed):
            where = "each request says it" if t.command == "serve" else f"jumar-infer {t.command} has no use for it"
            return Outcome("no effect", why=where)
        return outcome

    ranks = "torchrun starts the ranks that share the model: tp x pp" if t.processes > 1 else "one process does it"
    verdicts, options = classed(job, INFERENCE, t, amend, ranks=ranks)
    _without_own_tokenizer(options, model)
    if t.command == "generate":
        asks = "-p" in options or "FILE" in options
        options |= {} if asks else {"-p": PROMPT}
        if t.tasks and set(t.tasks) <= set(GREEDY):
            options = {key: value for key, value in options.items() if key not in SAMPLING} | {"--temperature": "0"}
    program = ["jumar-infer"]
    if t.processes > 1:
        program = ["torchrun", "--nproc-per-node", str(t.processes), "-m", "jumar.infer"]
    faults = () if "MODEL" in options else ("--load is not given: name the model with --model DIR",)
    unasked = (job.line, f"its prompts stand in the program: write yours for {PROMPT}, or a file of them")
    notes = (unasked,) if options.get("-p") == PROMPT else ()
    return Made(job, verdicts, (line([*program, t.command], options, ("MODEL", "FILE", "-p")),), notes=notes, faults=faults)


def _without_own_tokenizer(options: dict[str, Value], model: str | None) -> None:
    if model is not None:
        options["MODEL"] = model
    if options.get("--tokenizer") == options.get("MODEL"):
        options.pop("--tokenizer", None)


# --- evaluation


def _tasks(t: Facts, flag: Flag) -> Outcome:
    task = t.job.last("--task")
    more = tables()["evaluation"].more
    asked = [name for word in (words(task) if task is not None else []) for name in word.split(",")]
    names = [more["tasks"][name] for name in asked if name in more["tasks"]]
    if not names or len(names) < len(asked):
        return Outcome("refused", why="jumar-eval list --protocol mindspeed shows the tasks; one of your own is a YAML file")
    if t.has("--chain-of-thought"):
        steps = more["step by step"]
        if not set(names) <= set(steps):
            return Outcome("refused", why=f"{', '.join(steps)} alone is asked step by step: leave --chain-of-thought out")
        names = [steps[name] for name in names]
    length = t.job.last("--max-position-embeddings")
    for place, name in enumerate(names):
        if length is None or (sets := more["sets"].get(name)) is None:
            continue
        if (thousands := whole(length) // 1024) not in sets:
            held = ", ".join(str(1024 * n) for n in sets)
            return Outcome("refused", why=f"{name} is of --max-position-embeddings {held}: give one of them")
        names[place] = f"{name}_{thousands}k"
    return option("--tasks", ",".join(names))


def _data(t: Facts, flag: Flag) -> Outcome:
    path = words(flag)[0] if flag.values else text(flag)
    folder, _, last = path.rstrip("/").rpartition("/")
    return (
        option("--data", folder or ".", "the benchmark's folder, that of its parts")
        if last in FOLDERS
        else option("--data", path)
    )


def _batch(t: Facts, flag: Flag) -> Outcome:
    return (
        option("--batch", str(whole(flag))) if whole(flag) > 1 else Outcome("no effect", why="scores do not depend on the batch")
    )


def _shared(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Answers)
    assert flag.rule is not None
    if t.copies == 1:
        return Outcome("no effect", why="weights are read as slices of the files where they lie, by one process")
    return option(flag.rule.ours, str(whole(flag))) if whole(flag) > 1 else Outcome("default", why="--tp and --pp are 1")


EVALUATION = {"tasks": _tasks, "data": _data, "batch": _batch, "family": _family, "shared": _shared}


def migrate_evaluation(job: Job, name: str, model: str | None = None) -> Made:
    """The jumar-eval command, with MindSpeed-LLM's prompts and ways to count."""
    t = Answers(job)
    ranks = "torchrun starts the ranks: --tp x --pp share a copy of the model" if t.copies > 1 else "one process does it"
    verdicts, options = classed(job, EVALUATION, t, ranks=ranks)
    program = ["jumar-eval"] if t.copies == 1 else ["torchrun", "--nproc-per-node", str(t.copies), "-m", "jumar.eval"]
    _without_own_tokenizer(options, model)
    options["--protocol"] = "mindspeed"
    options["--out"] = f"runs/{PurePath(name).name}"
    needed = (("--load", "MODEL", "the model with --model DIR"), ("--task", "--tasks", "a task"))
    faults = tuple(f"{flag} is not given or refused: name {what}" for flag, key, what in needed if key not in options)
    note = (job.line, "--fewshot FILE gives it that project's own worked examples (fewshot_template/*.json there)")
    return Made(job, verdicts, (line([*program, "run"], options, ("MODEL",)),), notes=(note,), faults=faults)


# --- lm-eval


LM_WAYS = (
    *("model", "trust_remote_code", "num_concurrent", "max_retries", "tokenized_requests", "tokenizer_backend", "batch_size"),
    *("gpu_memory_utilization", "tensor_parallel_size", "data_parallel_size", "parallelize", "device_map", "attn_implementation"),
)
"""Of --model_args: how the model is asked, or where it lies; no score depends on them."""


def _lm_model(t: Facts, flag: Flag) -> Outcome:
    if flag.name == "--model":
        kinds = ("hf", "hf-auto", "vllm", "local-completions")
        return (
            Outcome("default", why="a directory or an endpoint")
            if text(flag) in kinds
            else Outcome("refused", why="of " + ", ".join(kinds))
        )
    given = dict(part.partition("=")[::2] for part in text(flag).split(","))
    path = given.pop("pretrained", "") or given.pop("base_url", "").removesuffix("/completions")
    if not path:
        return Outcome("refused", why="expected pretrained=DIR or base_url=http://HOST/v1/completions")
    dtype, of_path = given.pop("dtype", "auto"), "pretrained=" in text(flag)
    if of_path and dtype not in ("auto", *DTYPES):
        return Outcome("refused", why="dtypes are bf16, fp16 and fp32: change dtype= in it")
    if left := ", ".join(name for name in given if name not in LM_WAYS):
        return Outcome("refused", why=f"{left}: not of --model_args here; take them out and look at jumar-eval run --help")
    found = option("MODEL", path, f"without {', '.join(given)}, which change no score" if given else "")
    if not of_path or dtype == "auto":
        return found
    return replace(found, ours=f"{found.ours} --dtype {DTYPES[dtype]}", sets={**found.sets, "--dtype": DTYPES[dtype]})


def _lm_batch(t: Facts, flag: Flag) -> Outcome:
    size = text(flag)
    return (
        option("--batch", size)
        if size.isdecimal() and int(size) > 1
        else Outcome("no effect", why="scores do not depend on the batch")
    )


def _lm_device(t: Facts, flag: Flag) -> Outcome:
    kind, _, number = text(flag).partition(":")
    chosen = f"number {number}: by CUDA_VISIBLE_DEVICES or ASCEND_RT_VISIBLE_DEVICES before the command"
    return option("--device", kind, chosen if number else "")


LM_EVAL = {"model": _lm_model, "batch": _lm_batch, "device": _lm_device}


def migrate_lm_eval(job: Job, name: str, model: str | None = None) -> Made:
    """jumar-eval for lm-eval: the same prompts, the same numbers."""
    if [word.text for word in job.loose] == ["run"]:  # the command of newer releases
        job = replace(job, loose=())
    verdicts, options = classed(job, LM_EVAL, Facts(job))
    _without_own_tokenizer(options, model)
    if "--data" not in options:
        options["--data"] = "benchmarks"
    faults = tuple(
        f"{flag} is not given: name it" for flag, key in (("--model_args", "MODEL"), ("--tasks", "--tasks")) if key not in options
    )
    note = (
        job.line,
        "nothing is fetched: --data is the folder of the benchmarks' files; jumar-eval list --data DIR says what is expected",
    )
    return Made(job, verdicts, (line(["jumar-eval", "run"], options, ("MODEL",)),), notes=(note,), faults=faults)


# --- MMLU of Megatron-LM's examples of ModelOpt


def _own_task() -> str:
    """The one task that the program knows."""
    return str(tables()["scores"].more["task"])


def _least(t: Facts, flag: Flag) -> Outcome:
    return option("--fail-under", f"{_own_task()}.acc={text(flag)}")


SCORES = {"least": _least, "shared": _shared}


def migrate_scores(job: Job, name: str, model: str | None = None) -> Made:
    """jumar-eval with lm-eval's MMLU; the program's own prompts are near to it, and not the same."""
    t = Answers(job)
    verdicts, options = classed(job, SCORES, t)
    _without_own_tokenizer(options, model)
    options = {"--tasks": _own_task(), "--data": "benchmarks", **options}
    faults = () if "MODEL" in options else ("--load is not given: name the model with --model DIR",)
    note = (job.line, "its prompts are near those of lm-eval, which are asked here; --data is the folder that has mmlu's files")
    program = ["jumar-eval"] if t.copies == 1 else ["torchrun", "--nproc-per-node", str(t.copies), "-m", "jumar.eval"]
    return Made(job, verdicts, (line([*program, "run"], options, ("MODEL",)),), notes=(note,), faults=faults)
