"""Flags of the architecture against a model's config.json: so there too, laid over it, or refused as another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jumar.chain.facts import Facts, numbers_of
from jumar.chain.jobs import Flag
from jumar.chain.recipe_text import shown
from jumar.chain.tables import tables
from jumar.chain.traits import FIELDS_OF_SCALING, SCALING, idle, layers_of, traits
from jumar.chain.verdicts import Outcome, Unreadable, real, text
from jumar.schema.errors import ToolError
from jumar.schema.registry import family_of_config
from jumar.schema.spec import ROPE_KINDS, ModelSpec

OTHERWISE = "change the flag, or name its model with --model DIR"


def against_config(t: Facts, config: Mapping[str, Any]) -> dict[str, Outcome]:
    """flag -> what it is beside this config.json, without those that say the same. Raises ToolError for one that is not read.

    A number that differs is laid over config.json by the key that says it, if the family then reads what the flag says.
    """
    compared = _Compared(t, config)
    found: dict[str, Outcome] = {}
    waiting = list(_flags(t))
    while waiting:
        left = [flag for flag in waiting if not compared.settled(flag, found)]
        if len(left) == len(waiting):
            break
        waiting = left  # one may need another: fewer experts are read where fewer are chosen
    else:
        waiting = []
    found |= compared.together(waiting) if waiting else {}
    return {name: compared.at_last(outcome) for name, outcome in found.items()}


def _flags(t: Facts) -> Iterator[Flag]:
    flags = [flag for flag in t.job.flags if flag.rule is not None and flag.rule.config and t.job.last(flag.name) is flag]
    return iter(sorted(flags, key=lambda flag: flag.name != "--num-layers"))


class _Compared:
    """A config.json and what is laid over it so far."""

    def __init__(self, t: Facts, config: Mapping[str, Any]) -> None:
        self.t, self.config, self.changes = t, config, dict[str, Any]()
        self.family = family_of_config(config, "the model's config.json")
        self.spec = self.family.spec(config)

    def settled(self, flag: Flag, found: dict[str, Outcome]) -> bool:
        """Whether a flag is decided: the same, idle, laid over or refused. All but the first are noted in `found`."""
        try:
            outcome = self.outcome(flag)
        except Unreadable as fault:
            outcome = Outcome("refused", why=str(fault))
        except _NotYet:
            return False
        if outcome is not None:
            found[flag.name] = outcome
        return True

    def outcome(self, flag: Flag) -> Outcome | None:
        if flag.name == "--model-type-hf":
            return self._family(flag)
        there = traits(self.spec)
        if flag.name not in there or self._same(flag, self.spec):
            return None
        if (why := idle(self.t, self.spec).get(flag.name)) is not None:
            return Outcome("no effect", why=why)
        faulty = False
        for key in sorted(self._keys(flag), key=lambda key: self._value(key) is None):
            change = self._change(flag, key)
            try:
                spec = self.family.spec({**self.config, **self.changes, **change})
            except ToolError:
                faulty = faulty or self._value(key) is not None
                continue
            if self._same(flag, spec):
                return self._lay(key, change, spec)
        if faulty:
            raise _NotYet
        return Outcome("refused", why=_contradiction(flag, there[flag.name]))

    def _keys(self, flag: Flag) -> Sequence[str]:
        if flag.name in (*SCALING, *FIELDS_OF_SCALING):
            return ("rope_scaling",) if self._kind() in ROPE_KINDS else ()
        keys: Sequence[str] = tables()["training"].more["keys"].get(flag.name, ())
        return keys

    def _kind(self) -> str | None:
        return "llama3" if self.t.has("--use-rope-scaling") else self.t.said("--rope-scaling-type")

    def _lay(self, key: str, change: Mapping[str, Any], spec: ModelSpec) -> Outcome:
        before = self._value(key)
        why = f"config.json says {shown(before)}" if before is not None else "config.json does not say it"
        self.changes |= change
        self.spec = spec
        ((name, value),) = change.items()
        return Outcome("mapped", f"model.config.{name}: {shown(value)}", why, {f"model.config.{name}": value})

    def together(self, flags: list[Flag]) -> dict[str, Outcome]:
        """Flags of which each alone gives a model that cannot be."""
        change: dict[str, Any] = {}
        own = {}
        for flag in flags:
            key = next(key for key in self._keys(flag) if self._value(key) is not None)
            own[flag.name] = (key, self._change(flag, key))
            change |= own[flag.name][1]
        try:
            spec = self.family.spec({**self.config, **self.changes, **change})
        except ToolError as fault:
            return {flag.name: Outcome("refused", why=f"{fault.message}: {OTHERWISE}") for flag in flags}
        return {flag.name: self._lay(*own[flag.name], spec) for flag in flags}

    def at_last(self, outcome: Outcome) -> Outcome:
        """With the settings of RoPE that several flags share as all of them leave them."""
        last = {path: self.changes[path.removeprefix("model.config.")] for path in outcome.sets}
        return replace(outcome, sets={**outcome.sets, **last})

    def _value(self, key: str) -> Any:
        if key in self.config:
            return self.config[key]
        for nest in ("rope_parameters", "rope_scaling"):
            if isinstance(self.config.get(nest), dict) and key in self.config[nest]:
                return self.config[nest][key]
        return None

    def _change(self, flag: Flag, key: str) -> dict[str, Any]:
        if key == "rope_scaling":
            return self._scaling()
        value: Any = flag.name != "--untie-embeddings-and-output-weights"
        if flag.rule is not None and flag.rule.takes:
            value = self._number(flag)
            whole = not isinstance(self._value(key), float) and value == int(value)
            value = int(value) if whole and flag.name != "--rotary-base" else value
        nested = self.config.get("rope_parameters")
        if key in ("rope_theta", "partial_rotary_factor") and key not in self.config and isinstance(nested, dict):
            return {"rope_parameters": {**nested, **self.changes.get("rope_parameters", {}), key: value}}
        return {key: value}

    def _scaling(self) -> dict[str, Any]:
        """The script's scaling of RoPE as a whole, in the spelling of config.json."""
        kind = self._kind()
        fixed = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        made: dict[str, Any] = {"rope_type": kind, **(fixed if self.t.has("--use-rope-scaling") else {})}
        for flag in self.t.job.flags:
            if name := FIELDS_OF_SCALING.get(flag.name):
                number = real(flag)
                made[name] = int(number) if name == "original_max_position_embeddings" else number
        nested = self.config.get("rope_parameters")
        if not isinstance(nested, dict):
            return {"rope_scaling": made}
        nested = {**nested, **self.changes.get("rope_parameters", {})}
        kept = {name: nested[name] for name in ("rope_theta", "partial_rotary_factor") if name in nested}
        return {"rope_parameters": {**kept, **made}}

    def _number(self, flag: Flag) -> float:
        if flag.name == "--window-size":
            return float(numbers_of(_pair(flag))[0] + 1)
        number = real(flag)
        return number - len(numbers_of(self.t.said("--noop-layers"))) if flag.name == "--num-layers" else number

    def _same(self, flag: Flag, spec: ModelSpec) -> bool:
        there: Any = traits(spec)[flag.name]
        assert flag.rule is not None
        if flag.name in OF_LAYERS:
            return there is not None and layers_of(self.t, flag.name, spec.num_layers) == tuple(there)
        if not flag.rule.takes:
            return bool(there)
        if flag.name == "--window-size":
            numbers = numbers_of(_pair(flag))
            if len(numbers) != 2:
                raise Unreadable(f"expected two numbers such as 4095,0, got {flag.text!r}")
            return there is not None and tuple(numbers) == tuple(there)
        if flag.name in WORDS:
            return there is not None and _word(flag) == str(there).lower()
        number = self._number(flag)
        return abs(number - float(there or 0)) <= 1e-9 * abs(number)

    def _family(self, flag: Flag) -> Outcome | None:
        other = tables()["conversion"].more["families"].get(text(flag))
        if other in (None, self.family.model_type):
            return None
        return Outcome(
            "refused", why=f"the model's config.json is of {self.family.model_type}, the script's of {other}: {OTHERWISE}"
        )


class _NotYet(Exception):
    """A value that alone gives no model."""


OF_LAYERS = ("--moe-layer-freq", "--first-k-dense-replace", "--window-attn-skip-freq")
WORDS = (
    *("--position-embedding-type", "--normalization", "--rope-scaling-type", "--rope-type", "--moe-router-score-function"),
    *("--hybrid-override-pattern", "--hybrid-layer-pattern"),
)


def _word(flag: Flag) -> str:
    said = text(flag).lower()
    return "rope" if flag.name == "--position-embedding-type" and said == "yarn" else said


def _pair(flag: Flag) -> str:
    return ",".join(value.text for value in flag.values).replace(" ", ",").replace(",,", ",").strip("()")


def _contradiction(flag: Flag, there: object) -> str:
    assert flag.rule is not None
    if not flag.rule.takes:
        return f"it is not so by the model's config.json: {OTHERWISE}"
    if flag.name in OF_LAYERS and isinstance(there, tuple):
        which = "slide" if flag.name.startswith("--window") else "have no experts"
        return f"by the model's config.json layers {', '.join(map(str, there)) or 'none'} {which}: {OTHERWISE}"
    said = "nothing of it" if there is None else shown(there)
    return f"the model's config.json says {said}, the script {flag.text}: {OTHERWISE}"
