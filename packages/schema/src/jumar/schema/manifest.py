"""Manifests: what made a directory or a dataset prefix, and of what (docs/contracts.md, 4).

The same inputs give the same bytes: no timestamps, no host names, sorted keys.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jumar.schema.errors import ToolError

NAME = "manifest.json"
SCHEMA = 1
HEAD_BYTES = 1 << 20
SPREAD, SPREAD_BYTES = 64, 1 << 16
"""Blocks of a large file that are looked at behind its head, and bytes of each: 4 MiB, whatever its size."""
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


def manifest_text(*, tool: str, version: str, **facts: Any) -> str:
    """A manifest's text. `facts`: recipe, model, layout, counts, ... (None is left out)."""
    content = {"schema": SCHEMA, "tool": tool, "version": version, **{k: v for k, v in facts.items() if v is not None}}
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """A directory's manifest; see `read_manifest_file`."""
    return read_manifest_file(directory / NAME)


def read_manifest_file(path: Path) -> dict[str, Any] | None:
    """A manifest; None where there is none, or one of another project.

    ToolError if it is damaged or of a newer schema.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ToolError(f"{path} is not JSON: {fault}", hint="remove it to go on without") from None
    if not isinstance(content, dict) or not str(content.get("tool", "")).startswith("jumar"):
        return None
    if content.get("schema") != SCHEMA:
        raise ToolError(f"{path}: manifest schema {content.get('schema')}, this version reads {SCHEMA}", hint="upgrade jumar")
    if damage := _damage(content):
        raise ToolError(f"{path} is damaged: {damage}", hint="copy it again, or remove it to go on without")
    return content


def above(directory: Path) -> list[Path]:
    """Where one lies: what comes before its name, and, as of a link, `.` or `..`, where it really is."""
    named = [] if directory.name in ("", "..") else [directory.parent]
    return [*named, directory.resolve().parent]


def states(path: Path, facts: Mapping[str, Any], sources: Iterable[Path], *, head: int = HEAD_BYTES) -> bool:
    """Whether a manifest says these facts, and no source changed since it was written. False where one is not there."""
    return differing(path, facts, sources, head=head) == []


def differing(path: Path, facts: Mapping[str, Any], sources: Iterable[Path], *, head: int = HEAD_BYTES) -> list[str] | None:
    """What a manifest says otherwise than these facts, in words; None where it, or a source, is not there.

    A source that is too large for `inputs` to tell every byte of it, or not among them, must not have changed since.
    """
    try:
        manifest = read_manifest_file(path)
        made_ns = path.stat().st_mtime_ns
        whole = {
            _bytes_told(each) for each in facts.get("inputs", ()) if "head_sha256" in each and told_whole(each["size"], head)
        }
        later = [s for s in sources if s.stat().st_ctime_ns > made_ns and not _is_among(s, whole, head)]
    except (ToolError, OSError):
        return None
    if manifest is None:
        return None
    said = json.loads(json.dumps(dict(facts)))
    found = [word for key, value in sorted(said.items()) if manifest.get(key) != value for word in _words(key, manifest, value)]
    return found or [f"{each.name} (begins alike, but was touched since)" for each in later[:1]]


def told_whole(size: int, head: int = HEAD_BYTES) -> bool:
    """Whether what `identify` says of a file of this size depends on its every byte."""
    return size <= head + SPREAD * SPREAD_BYTES


def _is_among(file: Path, whole: Collection[tuple[Any, ...]], head: int) -> bool:
    """Whether a file is one of those whose every byte is told. A copy of it, or another owner, changes nothing then."""
    return bool(whole) and told_whole(file.stat().st_size, head) and _bytes_told(identify(file, head=head)) in whole


def _bytes_told(each: Mapping[str, Any]) -> tuple[Any, ...]:
    return each["size"], each["head_sha256"], each.get("spread_sha256", "")


def _words(key: str, manifest: Mapping[str, Any], now: Any) -> list[str]:
    """Of a fact that differs: its own name; of inputs the files', of a recipe the options'."""
    was = manifest.get(key)
    if key == "inputs" and isinstance(was, list):
        return sorted({str(each.get("name")) for each in (*was, *now) if (each in was) != (each in now)}) or [key]
    if isinstance(now, dict) and isinstance(was, dict):
        return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    return [key]


def _damage(content: dict[str, Any]) -> str | None:
    """What is wrong with a manifest's values that are looked into."""
    for key, kind in (("model", dict), ("hf", dict), ("layout", dict), ("outputs", list), ("dialect", str)):
        if not isinstance(content.get(key, kind()), kind):
            return f"{key} is {content[key]!r:.60}, expected a {kind.__name__}"
    hf, model, copies = content.get("hf", {}), content.get("model", {}), content.get("hf", {}).get("copies", {})
    for name, right, found in (
        ("outputs", all(isinstance(n, str) for n in content.get("outputs", ())), content.get("outputs")),
        ("model.spec", isinstance(model.get("spec", {}), dict), model.get("spec")),
        ("hf.copies", isinstance(copies, dict) and all(isinstance(n, str) for n in copies.values()), copies),
        ("hf.base", isinstance(hf.get("base", True), bool), hf.get("base")),
    ):
        if not right:
            return f"{name} is {found!r:.60}"
    return None


def identify(path: Path, *, full: bool = False, head: int = HEAD_BYTES) -> dict[str, Any]:
    """Name, size in bytes and sha256 of an input file: of the whole, or of its first `head` bytes (headers, indexes) and, where
    more come behind these, of blocks spread over them: a model and what was tuned of it may well begin alike."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        told = {"name": path.name, "size": size}
        if full:
            return {**told, "sha256": _sha256(file, [(0, size)])}
        told["head_sha256"] = _sha256(file, [(0, head)])
        return told if size <= head else {**told, "spread_sha256": _sha256(file, _spread(head, size))}


def _sha256(file: BinaryIO, ranges: Iterable[tuple[int, int]]) -> str:
    """Of these ranges of bytes (begin, end), as far as there are any."""
    digest = hashlib.sha256()
    for begin, end in ranges:
        file.seek(begin)
        while begin < end and (block := file.read(min(end - begin, 1 << 20))):
            digest.update(block)
            begin += len(block)
    return digest.hexdigest()


def _spread(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """A range; of one that is too large, blocks evenly from its beginning to its end."""
    if end - begin <= SPREAD * SPREAD_BYTES:
        yield begin, end
        return
    for number in range(SPREAD):
        at = begin + (end - begin - SPREAD_BYTES) * number // (SPREAD - 1)
        yield at, at + SPREAD_BYTES


def identify_all(files: Iterable[Path], *roots: Path, head: int = HEAD_BYTES) -> list[dict[str, Any]]:
    """Files, each once, with the names that they have below the first of the roots that holds them, and in the order of these.

    Where the files are, and how their paths and those of the roots are spelled, changes nothing.
    """
    found = {_place(file): {**identify(file, head=head), "name": _name_below(file, roots)} for file in files}
    return sorted(found.values(), key=lambda each: (each["name"], *_bytes_told(each)))


def _name_below(file: Path, roots: Iterable[Path]) -> str:
    for root in roots:
        for path, home in ((file.absolute(), root.absolute()), (_place(file), root.resolve())):
            if home in path.parents and ".." not in (below := path.relative_to(home)).parts:
                return below.as_posix()
    return file.name


def _place(file: Path) -> Path:
    """The one path of a file, by whatever links its directory is reached. It may be a link itself, and has its own name."""
    return file.parent.resolve() / file.name


def tokenizer_sha256(directory: Path) -> str | None:
    """The tokenizer's identity; None without a tokenizer.

    sha256 of tokenizer.json, or of the sorted (name, sha256) pairs of its other files.
    """
    main = directory / "tokenizer.json"
    if main.is_file():
        return hashlib.sha256(main.read_bytes()).hexdigest()
    pairs = [
        (name, hashlib.sha256((directory / name).read_bytes()).hexdigest())
        for name in sorted(TOKENIZER_FILES)
        if (directory / name).is_file()
    ]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest() if pairs else None


def template_sha256(directory: Path) -> str | None:
    """sha256 of the text of a model's chat template, found as `templates.template_of` finds it; None without any."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (template := _template_in(directory / name)) is not None:
            return hashlib.sha256(template.encode()).hexdigest()
    return None


def _template_in(config: Path) -> str | None:
    if not config.is_file():
        return None
    try:
        loaded: Any = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ToolError(f"{config} is not JSON: {fault}", hint="fetch the file again") from None
    if not isinstance(loaded, dict):
        raise ToolError(f"{config}: a {type(loaded).__name__}, expected keys and values", hint="fetch the file again")
    template = loaded.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}.get("default")
    return template if isinstance(template, str) else None
