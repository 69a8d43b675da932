"""The picture of the loss: what is on it, read back from the SVG."""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumar.train_core.recipe import Log
from jumar.train_core.run.curve import HEIGHT, POINTS, WIDTH, draw, log_ticks, picture, running_mean, thinned, ticks
from jumar.train_core.run.metrics import Metrics

Records = list[dict[str, Any]]


def records(steps: int, *, start: int = 1) -> Records:
    rng = random.Random(0)
    return [{"step": s, "loss": 2 + 8 * math.exp(-8 * s / steps) + rng.gauss(0, 0.05)} for s in range(start, start + steps)]


def drawn(path: Path, lines: Records) -> ET.Element:
    assert draw(lines, path / "loss.svg")
    return ET.fromstring((path / "loss.svg").read_text(encoding="utf-8"))


def of(svg: ET.Element, kind: str) -> list[ET.Element]:
    return [each for each in svg.iter() if each.get("class") == kind]


def points(line: ET.Element) -> list[list[float]]:
    return [[float(n) for n in pair.split(",")] for pair in (line.get("points") or "").split()]


def said(svg: ET.Element) -> str:
    return "\n".join(each.text or "" for each in svg.iter() if each.tag.endswith("text"))


def test_a_long_run(tmp_path: Path) -> None:
    lines = records(5000)
    lines += [{"step": s, "eval_loss": 2.1 + 8 * math.exp(-8 * s / 5000)} for s in range(500, 5001, 500)]
    svg = drawn(tmp_path, lines)
    (raw,), (train,), (evals,) = of(svg, "raw"), of(svg, "train"), of(svg, "eval")
    assert len(points(evals)) == len(of(svg, "dot")) == 10
    for line in (raw, train, evals):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points(line))
        assert points(line)[-1][1] > points(line)[0][1]  # down on the page: the loss fell
    assert len(points(raw)) <= POINTS + 2
    assert "Loss (logarithmic)" in said(svg)
    assert "eval 2.10" in said(svg)
    assert "5,000" in said(svg)
    assert "training loss" in str(svg.get("aria-label"))
    assert (tmp_path / "loss.svg").stat().st_size < 60_000


def test_a_short_run(tmp_path: Path) -> None:
    svg = drawn(tmp_path, records(5))
    assert not of(svg, "raw")
    assert len(points(of(svg, "train")[0])) == 5
    assert not draw(records(1), tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_steps_without_a_loss(tmp_path: Path) -> None:
    lines = records(200)
    lines[20] = {"step": 21, "loss": None, "nonfinite": {"loss": "nan"}}
    lines[100]["skipped"] = True
    svg = drawn(tmp_path, lines)
    assert len(of(svg, "lost")) == 2
    assert "2 steps skipped or not finite" in said(svg)


def test_a_few_losses_out_of_all_bounds(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": 1e9 if s in (300, 301) else 2.0 + s % 2 / 10} for s in range(1, 1000)]
    svg = drawn(tmp_path, lines)
    ys = [y for _, y in points(of(svg, "raw")[0])]
    assert sum(y < 100 for y in ys) > 100  # what is usual takes up the picture, and is not one line at its foot
    assert min(ys) >= 0


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=30), st.integers(0, 10**6))
def test_any_numbers(losses: list[float], first: int) -> None:
    train = [(float(first + i), loss) for i, loss in enumerate(losses)]
    svg = ET.fromstring(picture(train, train[1:2], [first], "<&>"))
    assert len(points(of(svg, "train")[0])) == len(losses)
    assert len(of(svg, "grid")) < 16


def test_zero_and_negative_losses(tmp_path: Path) -> None:
    """Rewards and differences are drawn too."""
    svg = drawn(tmp_path, [{"step": s, "loss": 1.0 - s} for s in range(1, 9)])
    assert "logarithmic" not in said(svg)


def test_ticks() -> None:
    assert ticks(1.1, 4.9, 5) == [2, 3, 4]
    assert ticks(0, 1000, 7) == [0, 200, 400, 600, 800, 1000]
    assert log_ticks(1.8, 12) == [2, 3, 5, 10]
    assert log_ticks(0.001, 900) == [0.001, 0.01, 0.1, 1, 10, 100]


def test_means_and_extremes() -> None:
    line = [(float(i), float(i % 2)) for i in range(2000)]
    assert all(abs(y - 0.5) < 0.02 for _, y in running_mean(line)[50:-50])
    line[777] = (777.0, 9.0)
    assert (777.0, 9.0) in thinned(line)
    assert len(thinned(line)) <= POINTS + 2
    assert running_mean(line[:99]) == line[:99]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_leaves_a_picture(tmp_path: Path, resumed: bool) -> None:
    for start, stop in ((0, 10), (5, 12)) if resumed else ((0, 12),):
        with Metrics(tmp_path, Log(every=100), steps=12) as metrics:
            metrics.start(start)
            for step in range(start + 1, stop + 1):
                metrics.log(step, {"loss": 10.0 - step})
    svg = ET.fromstring((tmp_path / "loss.svg").read_text(encoding="utf-8"))
    assert len(points(of(svg, "train")[0])) == 12
