"""Answers to a file: whole or not there, with a manifest of what they answer; those that are there are not asked for again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jumar.schema.cli import dist_version
from jumar.schema.errors import Exit, ToolError, writing
from jumar.schema.manifest import differing, identify_all, manifest_text


@dataclass(frozen=True)
class Output:
    """A file of JSON lines.

    inputs: all files that decide what is in it; roots: directories below which they have their names
    recipe: what is asked, and how; None is left out
    """

    path: Path
    inputs: Sequence[Path]
    roots: Sequence[Path]
    recipe: Mapping[str, Any]

    @property
    def manifest(self) -> Path:
        return self.path.with_name(f"{self.path.name}.manifest.json")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the manifest says."""
        return {
            "tool": "jumar-infer",
            "version": dist_version("jumar-infer"),
            "inputs": identify_all(self.inputs, *self.roots),
            "recipe": {key: value for key, value in self.recipe.items() if value is not None},
            "outputs": [self.path.name],
        }

    def already(self, *, force: bool) -> bool:
        """Whether the file is there, of the same files and options. Raises ToolError (3) where another one is, unless `force`."""
        folder = self.path.parent
        if not folder.is_dir():
            raise ToolError(f"{self.path}: there is no directory {folder}", hint=f"mkdir -p {folder}", code=Exit.ENVIRONMENT)
        if self.path.is_dir():
            raise ToolError(f"-o {self.path}: a directory; expected a file", hint=f"-o {self.path / 'answers.jsonl'}")
        if force or not os.path.lexists(self.path):
            return False
        if (others := differing(self.manifest, self.facts, self.inputs)) == []:
            return True
        what = f"{self.path} is there, and was not made of these files with these options"
        why = f": {', '.join(others[:4])}" if others else ""
        raise ToolError(f"{what}{why}", hint="choose another -o, or add --force to replace it")

    def write(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """The file, beside its place and then renamed; the manifest comes last."""
        part, facts = self.path.with_name(f"{self.path.name}.part"), self.facts
        with writing(self.path), part.open("w", encoding="utf-8") as file:
            for value in objects:
                file.write(json.dumps(value, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with writing(self.path):
            self.manifest.unlink(missing_ok=True)  # none beside another file
            os.replace(part, self.path)
            self.manifest.write_text(manifest_text(**facts), encoding="utf-8")

    def counts(self) -> dict[str, int]:
        """Lines, and the tokens that they tell of."""
        with self.path.open(encoding="utf-8") as lines:
            tokens = [json.loads(line)["tokens"] for line in lines]
        return {"samples": len(tokens), "tokens": sum(tokens)}
