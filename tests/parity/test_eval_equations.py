"""Answers of mathematics: what lm-eval takes for the same, and nothing else."""

from __future__ import annotations

import random

from lm_eval.tasks.agieval.utils import is_equiv

from jumar.eval.equations import same_answer

PIECES = r"""
\boxed{ | \boxed | \fbox{ | } | { | $ | = | x= | xyz = | \frac | \dfrac | \tfrac | 12 | 1 | 2 | 3/4 | 03/4 | 0.5
.5 | {.5 | \sqrt | \sqrt3
\sqrt{3} | ^\circ | ^{\circ} | \left( | \right) | \text{ cm} | \text{ m} | \% | \$ | \! | \\ | -1 | 1,000 | a | . | so | / | \n
the answer is
""".replace("\n", " | ")


def answers(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    pieces = [piece for piece in PIECES.split(" | ") if piece]
    gaps = ["", "", " ", "\n"]
    made = ["".join(draw.choice(pieces) + draw.choice(gaps) for _ in range(draw.randint(1, 6))) for _ in range(count)]
    boxed = [f"It is $x = {a}$." if draw.random() < 0.5 else f"\\boxed{{{a}}}" for a in made[: count // 2]]
    return ["", *pieces, *made, *boxed]


def test_the_same_answers_as_lm_eval_takes_for_the_same() -> None:
    """Each beside another one, beside itself, and beside itself written in another way."""
    found = []
    for text, other in zip(answers(4000, 1), reversed(answers(4000, 2)), strict=True):
        respelled = text.replace("\\dfrac", "\\frac").replace(" ", "").replace("0.5", "\\frac12")
        for second in (other, text, respelled, f"\\boxed{{{text}}}", f"${text}$"):
            same = same_answer(text, second)
            assert same == is_equiv(text, second), (text, second)
            found.append(same)
    assert len(found) > 25_000
    assert 0.1 < sum(found) / len(found) < 0.9
