"""From a run's work folder to its finished files: tokens, index, rejects, report and, last of all, the manifest."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from jumar.data_prep.datasets import read_prefix_manifest
from jumar.data_prep.job import Job
from jumar.data_prep.pack import pack
from jumar.data_prep.render import IGNORED
from jumar.data_prep.report import build_report
from jumar.data_prep.report_html import report_html
from jumar.data_prep.store import DOCUMENTS, Store
from jumar.data_prep.tasks import Task
from jumar.data_prep.tokenizer import Tokenizer
from jumar.schema.cli import dist_version
from jumar.schema.errors import Exit, ToolError
from jumar.schema.indexed import dtype_for, write_index
from jumar.schema.manifest import manifest_text, told_whole

CHUNK = 1 << 20
PACKED = {"numbered_by": "attention_mask", "position_ids": "restart"}  # what a trainer must know of packed samples
RUN = "run.json"
DONE = "done"  # in a shard's folder: nothing is missing from it


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run made. already: by an earlier call of the same run."""

    report: dict[str, Any]
    outputs: list[str]
    already: bool = False


def finished_before(job: Job, facts: dict[str, Any], sources: Sequence[Path] = ()) -> Finished | None:
    """What the same run made before, if it did and nobody asks for it anew.

    sources: its files. Raises ToolError (3) where what is there is of another run, or may be: the manifest knows parts of a
    large file, so that it must not have changed since.
    """
    if job.force:
        return None
    if job.shard is not None:
        done = job.work / DONE
        if not done.is_file():
            return None
        summary = json.loads(done.read_text())
        _refuse_bad(job, summary["records"])
        return Finished(summary, [str(job.work)], True)
    path, report = job.beside("manifest.json"), job.beside("report.json")
    manifest = read_prefix_manifest(job.output)
    if manifest is None:
        if path.is_file():
            raise ToolError(f"{path} is not jumar's", hint="choose another -o, or add --force to replace it")
        return None
    outputs = [Path(job.output).parent / name for name in manifest.get("outputs", [])]
    if any(manifest.get(name) != value for name, value in facts.items()) or not all(file.is_file() for file in outputs):
        raise ToolError(
            f"{path} is of another run: other inputs or options",
            hint="choose another -o, or add --force to replace what is there",
        )
    made_ns = path.stat().st_mtime_ns
    if changed := [s for s in sources if not told_whole((stat := s.stat()).st_size) and stat.st_ctime_ns > made_ns]:
        hint = "add --force to make it again, or choose another -o"
        raise ToolError(f"{changed[0]} has changed since {path} was written", hint=hint)
    known = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    _refuse_bad(job, known.get("records", {}))
    return Finished(known, [str(file) for file in outputs], True)


def _refuse_bad(job: Job, records: dict[str, int]) -> None:
    """ToolError if what is finished has more bad records than this call allows."""
    bad, read = records.get("rejected", 0), records.get("read", 0)
    if bad and (job.strict or (job.max_bad is not None and bad > job.max_bad * read)):
        raise ToolError(
            f"{job.output} is there, and {bad:,} of {read:,} records were bad", hint="leave out --strict or --max-bad"
        )


def refuse_existing(job: Job) -> None:
    """ToolError if the output is there and nothing says that it is this run's."""
    if job.force or job.beside("manifest.json").is_file() or job.work.exists():
        return
    folder = Path(job.output).parent
    pattern = f"{Path(job.output).name}{job.packed_name}_*_{job.level}.*"
    there = sorted(file.name for file in folder.glob(pattern) if file.suffix in (".bin", ".idx")) if folder.is_dir() else []
    there += [path.name for path in (job.beside("report.json"), job.beside("report.html")) if path.exists()]
    if there:
        raise ToolError(f"{folder / there[0]} is there already", hint="choose another -o, or add --force to replace it")


def finish(job: Job, store: Store, sources: list[str], sizes: list[int], task: Task, facts: dict[str, Any]) -> Finished:
    """Writes what the run is for, each file beside its place and then renamed, the manifest last, and removes the work folder."""
    totals = store.totals
    if job.shard is not None:
        summary = {"shard": list(job.shard), "records": {"read": totals.read, "kept": totals.kept, "rejected": totals.rejected}}
        _describe(store, job, sources, sizes, Keys.of(task))
        (store.folder / DONE).write_text(json.dumps(summary))
        return Finished(summary, [str(store.folder)])
    if not totals.kept:
        raise nothing_kept(job, store, sources)
    if job.max_bad is not None and totals.rejected > job.max_bad * totals.read:
        raise too_many_bad(job, store, sources)
    return complete(job, store, sources, sizes, Keys.of(task), task.tokenizer, facts)


@dataclass(frozen=True, slots=True)
class Keys:
    """Names and types of the output's keys. ones: the key whose lengths `attention_mask` takes, if that is made."""

    names: tuple[str, ...]
    ones: str | None
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, task: Task) -> Keys:
        """Those of a command."""
        dtype = dtype_for(task.tokenizer.facts.size) if task.job.command == "pretrain" else np.dtype(np.int32)
        return cls(task.keys, task.ones, dtype)


def _describe(store: Store, job: Job, sources: list[str], sizes: list[int], keys: Keys) -> None:
    """Writes into a shard's folder what its merging must know beside the run's facts."""
    file = job.template_file[0]
    about = {
        "tokenizer": str(job.tokenizer.resolve()),
        "template": job.template_at(file and file.resolve()),
        "sources": sources,
        "sizes": sizes,
        "keys": keys.names,
        "ones": keys.ones,
        "dtype": keys.dtype.name,
    }
    (store.folder / RUN).write_text(json.dumps(about), encoding="utf-8")


def complete(
    job: Job, store: Store, sources: list[str], sizes: list[int], keys: Keys, tokenizer: Tokenizer, facts: dict[str, Any]
) -> Finished:
    """`finish` for a work folder that holds all of a run."""
    out = store.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if job.pack:
        packing = _write_packed(job, store, keys, tokenizer, out)
    else:
        packing = None
        _write_samples(job, store, keys, out)
    name = Path(job.output).name
    reasons = write_rejects(store, sources, out / f"{name}.rejects.jsonl")
    report = build_report(job, store, sources, sizes, keys.names, keys.dtype, tokenizer, packing, reasons)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (out / f"{name}.report.json").write_text(text, encoding="utf-8")
    (out / f"{name}.report.html").write_text(report_html(report), encoding="utf-8")
    if not reasons:
        (out / f"{name}.rejects.jsonl").unlink()
        job.beside("rejects.jsonl").unlink(missing_ok=True)  # of a run that --force replaces
    outputs = sorted(file.name for file in out.iterdir())
    manifest = manifest_text(
        tool="jumar-data",
        version=dist_version("jumar-data-prep"),
        outputs=outputs,
        vocab_size=tokenizer.facts.size,
        seq_len=job.seq_len,
        packed=packing and {k: packing[k] for k in ("samples", "sub_samples")} | PACKED,
        counts={"records": report["records"], "tokens": report["tokens"]},
        seed=job.seed,
        **facts,
    )
    (out / f"{name}.manifest.json").write_text(manifest, encoding="utf-8")
    folder = Path(job.output).parent
    job.beside("manifest.json").unlink(missing_ok=True)  # no manifest beside files that are half replaced
    for file in [*outputs, f"{name}.manifest.json"]:
        os.replace(out / file, folder / file)
    store.remove()
    return Finished(report, [str(folder / file) for file in outputs])


def _write_samples(job: Job, store: Store, keys: Keys, out: Path) -> None:
    for key in keys.names:
        base = job.prefix_of(key).name
        _link(store.folder / f"{key}.bin", out / f"{base}.bin")
        lengths = store.array(f"{key}.len", np.int32)
        documents = np.arange(len(lengths) + 1)
        if job.split_sentences:
            documents = np.concatenate([[0], np.cumsum(store.array(DOCUMENTS, np.int32), dtype=np.int64)])
        write_index(out / f"{base}.idx", keys.dtype, lengths, documents)
    if keys.ones:
        base, lengths = job.prefix_of("attention_mask").name, store.array(f"{keys.ones}.len", np.int32)
        with (out / f"{base}.bin").open("wb") as file:
            left = int(lengths.sum(dtype=np.int64))
            while left > 0:
                np.ones(min(left, CHUNK), np.int32).tofile(file)
                left -= CHUNK
        write_index(out / f"{base}.idx", np.int32, lengths, np.arange(len(lengths) + 1))


def _write_packed(job: Job, store: Store, keys: Keys, tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    """Samples packed to exactly seq_len: attention_mask numbers them 1, 2, 3, ... and is 0 on padding (docs/contracts.md, 10)."""
    assert job.seq_len is not None
    pad = tokenizer.pad_id
    if pad is None:
        raise ToolError(
            f"--pack: {tokenizer.directory} names neither pad_token nor eos_token", hint="name one: --eod '<|endoftext|>'"
        )
    lengths = store.array("input_ids.len", np.int32)
    begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    values = {key: store.array(f"{key}.bin", np.int32) for key in ("input_ids", "labels")}
    empty = {"input_ids": pad, "labels": IGNORED, "attention_mask": 0}
    per_sample: Counter[int] = Counter()
    files = {key: (out / f"{job.prefix_of(key).name}.bin").open("wb") for key in empty}
    try:
        for packed in pack(lengths, job.seq_len):
            for members in packed:
                rows = {key: np.full(job.seq_len, value, np.int32) for key, value in empty.items()}
                at = 0
                for number, sample in enumerate(members.tolist(), 1):
                    begin, end = begins[sample], begins[sample + 1]
                    stop = at + end - begin
                    for key, flat in values.items():
                        rows[key][at:stop] = flat[begin:end]
                    rows["attention_mask"][at:stop] = number
                    at = stop
                per_sample[len(members)] += 1
                for key, row in rows.items():
                    row.tofile(files[key])
    finally:
        for file in files.values():
            file.close()
    samples = sum(per_sample.values())
    full = np.broadcast_to(np.int32(job.seq_len), samples)
    for key in empty:
        write_index(out / f"{job.prefix_of(key).name}.idx", np.int32, full, np.arange(samples + 1))
    tokens = int(begins[-1])
    return {
        "samples": samples,
        "sub_samples": len(lengths),
        "efficiency": tokens / (samples * job.seq_len),
        "lower_bound": -(-tokens // job.seq_len),
        "per_sample": per_sample,
    }


def _link(source: Path, target: Path) -> None:
    """The same file by another name; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_rejects(store: Store, sources: list[str], path: Path) -> Counter[str]:
    """Every record that is not in the output, with its reason; and how often each reason occurs."""
    reasons: Counter[str] = Counter()
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        for reject in store.rejects(sources):
            reasons[reject["reason"]] += 1
            file.write(orjson.dumps(reject, option=orjson.OPT_APPEND_NEWLINE))
    os.replace(beside, path)
    return reasons


def most_common(reasons: Counter[str]) -> str:
    """The reasons in words, the commonest first."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))


def nothing_kept(job: Job, store: Store, sources: list[str]) -> ToolError:
    """No record is left: says why, and removes the work folder."""
    totals = store.totals
    if not totals.read:
        what = f"{totals.blank:,} empty lines and nothing else" if totals.blank else "nothing"
        fault = f" ({totals.faults[0]})" if totals.faults else ""
        store.remove()
        return ToolError(f"{', '.join(sources[:3])}: there is {what} to read{fault}", hint="check the path")
    reasons = Counter(dict(write_rejects(store, sources, job.beside("rejects.jsonl")).most_common()))
    store.remove()
    return ToolError(
        f"none of {totals.read:,} records can be used: {most_common(reasons)}",
        hint=f"see {job.beside('rejects.jsonl')}{_advice(job, next(iter(reasons), ''))}",
        code=Exit.INPUT,
    )


def too_many_bad(job: Job, store: Store, sources: list[str]) -> ToolError:
    """The share of bad records is above what was allowed."""
    reasons = write_rejects(store, sources, job.beside("rejects.jsonl"))
    totals = store.totals
    return ToolError(
        f"{totals.rejected:,} of {totals.read:,} records are bad, more than --max-bad {job.max_bad:.4g}: {most_common(reasons)}",
        hint=f"see {job.beside('rejects.jsonl')}; with the inputs mended, start again with --force",
    )


def _advice(job: Job, reason: str) -> str:
    """What may help where every record is bad for one reason."""
    if reason == "wrong columns":
        return "; --key names the column" if job.command == "pretrain" else "; --map names columns, --format says what they are"
    if reason == "template cannot render it":
        return "; --template names another template"
    small = job.seq_len is not None and reason in ("nothing to train on", "longer than --seq-len")
    return "; --seq-len may be too small" if small else ""
