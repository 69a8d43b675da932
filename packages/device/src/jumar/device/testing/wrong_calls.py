"""Calls of kernels made wrong on purpose: a test that stays green with one of these does not test the call.

with npu_operations(Meddling("npu_fusion_attention", replace(atten_mask=lambda mask: ~mask))): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jumar.device.testing.npu_stand_in import stand_in

Change = Callable[[list[Any], dict[str, Any]], str | None]
"""Changes a call's arguments in place; may return the name of another operator to call."""


class Meddling:
    """The stand-in with one change to every call of one operator."""

    def __init__(self, name: str, change: Change) -> None:
        self.name, self.change = name, change

    def __getattr__(self, name: str) -> Any:
        if name != self.name:
            return getattr(stand_in(), name)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = list(args)
            return getattr(stand_in(), self.change(given, kwargs) or name)(*given, **kwargs)

        return call


def _new(value: Any, old: Any) -> Any:
    return value(old) if callable(value) else value


def rename(old: str, new: str) -> Change:
    """A keyword by another name, where it is given."""

    def change(args: list[Any], kwargs: dict[str, Any]) -> None:
        if old in kwargs:
            kwargs[new] = kwargs.pop(old)

    return change


def replace(**new: Any) -> Change:
    """Keywords with other values; a function is applied to what was given."""

    def change(args: list[Any], kwargs: dict[str, Any]) -> None:
        kwargs.update({key: _new(value, kwargs.get(key)) for key, value in new.items()})

    return change


def at(position: int, value: Any) -> Change:
    """A positional argument with another value; a function is applied to what was given."""

    def change(args: list[Any], kwargs: dict[str, Any]) -> None:
        args[position] = _new(value, args[position])

    return change


def without(key: str) -> Change:
    """A keyword left out."""

    def change(args: list[Any], kwargs: dict[str, Any]) -> None:
        del kwargs[key]

    return change


def called(name: str) -> Change:
    """Another operator's name."""
    return lambda args, kwargs: name
