"""Where layers and experts go: properties over drawn layouts, examples, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jumar.schema.errors import Exit, ToolError
from jumar.schema.parallel import ParallelLayout

small = st.integers(1, 4)


@st.composite
def cases(draw: st.DrawFn) -> tuple[ParallelLayout, int]:
    """A layout of any kind, and a number of layers that it can hold."""
    pp, kind = draw(small), draw(st.sampled_from(["even", "uneven", "dualpipev"]))
    if kind == "uneven":
        stages = tuple(draw(st.lists(st.integers(1, 5), min_size=pp, max_size=pp)))
        return ParallelLayout(pp=pp, layers_per_stage=stages), sum(stages)
    vpp = 2 if kind == "dualpipev" else draw(small) if pp > 1 else 1
    slots = pp * vpp * draw(small)
    noop = draw(st.lists(st.integers(0, slots - 1), unique=True, max_size=slots - 1))
    schedule = "dualpipev" if kind == "dualpipev" else "1f1b"
    return ParallelLayout(pp=pp, vpp=vpp, noop_layers=tuple(noop), schedule=schedule), slots - len(noop)


@given(cases())
def test_every_layer_has_one_place(case: tuple[ParallelLayout, int]) -> None:
    layout, num_layers = case
    chunks = layout.chunks(num_layers)
    assert [(c.pp, c.vpp) for c in chunks] == [(p, v) for p in range(layout.pp) for v in range(layout.vpp)]
    layers = [layer for chunk in chunks for layer in chunk.slots if layer is not None]
    assert sorted(layers) == list(range(num_layers))
    assert sum(chunk.slots.count(None) for chunk in chunks) == len(layout.noop_layers)
    assert [c.first for c in chunks].count(True) == [c.last for c in chunks].count(True) == 1
    for layer in range(num_layers):
        p, v, local = layout.place(layer, num_layers)
        assert next(c for c in chunks if (c.pp, c.vpp) == (p, v)).slots[local] == layer


@given(cases())
def test_layers_are_in_order_from_the_embedding_to_the_output(case: tuple[ParallelLayout, int]) -> None:
    """Chunks in the order in which a token passes them: stages from first to last, once for each chunk; DualPipeV turns round."""
    layout, num_layers = case
    order = {(c.pp, c.vpp): c for c in layout.chunks(num_layers)}
    passed = [(p, v) for v in range(layout.vpp) for p in range(layout.pp)]
    if layout.schedule == "dualpipev":
        passed = [(p, 0) for p in range(layout.pp)] + [(p, 1) for p in reversed(range(layout.pp))]
    layers = [layer for place in passed for layer in order[place].slots if layer is not None]
    assert layers == list(range(num_layers))
    assert order[passed[0]].first
    assert order[passed[-1]].last


@given(pp=st.integers(2, 4), vpp=small, per_chunk=small)
def test_virtual_stages_follow_the_formula(pp: int, vpp: int, per_chunk: int) -> None:
    """Layer g: chunk g // (Lv PP), stage g % (Lv PP) // Lv, local number g % Lv."""
    num_layers = pp * vpp * per_chunk
    layout = ParallelLayout(pp=pp, vpp=vpp)
    for g in range(num_layers):
        turn = per_chunk * pp
        assert layout.place(g, num_layers) == (g % turn // per_chunk, g // turn, g % per_chunk)


@given(pp=small, per_chunk=small)
def test_dualpipev_takes_from_the_front_and_from_the_back(pp: int, per_chunk: int) -> None:
    num_layers = 2 * pp * per_chunk
    layout = ParallelLayout(pp=pp, vpp=2, schedule="dualpipev")
    chunks = {(c.pp, c.vpp): c.slots for c in layout.chunks(num_layers)}
    for p in range(pp):
        assert chunks[p, 0] == tuple(range(p * per_chunk, (p + 1) * per_chunk))
        assert chunks[p, 1] == tuple(range(num_layers - (p + 1) * per_chunk, num_layers - p * per_chunk))


@pytest.mark.parametrize(
    "pp, num_layers, expected",
    [
        (2, 8, [[0, 1], [6, 7], [2, 3], [4, 5]]),
        (4, 8, [[0], [7], [1], [6], [2], [5], [3], [4]]),
        (1, 4, [[0, 1], [2, 3]]),
    ],
)
def test_dualpipev_examples(pp: int, num_layers: int, expected: list[list[int]]) -> None:
    chunks = ParallelLayout(pp=pp, vpp=2, schedule="dualpipev").chunks(num_layers)
    assert [list(c.slots) for c in chunks] == expected
    assert [(c.pp, c.vpp) for c in chunks if c.first] == [(0, 0)]
    assert [(c.pp, c.vpp) for c in chunks if c.last] == [(0, 1)]


@pytest.mark.parametrize(
    "layout, num_layers, expected",
    [
        (ParallelLayout(pp=2, noop_layers=(2, 3)), 4, [(0, 1, None), (None, 2, 3)]),
        (ParallelLayout(pp=2, noop_layers=(0, 7)), 6, [(None, 0, 1, 2), (3, 4, 5, None)]),
        (ParallelLayout(pp=3, noop_layers=(4, 5)), 4, [(0, 1), (2, 3), (None, None)]),
        (ParallelLayout(pp=2, vpp=2, noop_layers=(3, 4)), 6, [(0, 1), (None, 3), (2, None), (4, 5)]),
        (ParallelLayout(pp=2, vpp=2, noop_layers=(6, 1), schedule="dualpipev"), 6, [(0, None), (None, 5), (1, 2), (3, 4)]),
        (ParallelLayout(pp=3, layers_per_stage=(2, 3, 1)), 6, [(0, 1), (2, 3, 4), (5,)]),
        (ParallelLayout(pp=1, layers_per_stage=(3,)), 3, [(0, 1, 2)]),
    ],
    ids=["no-ops at a border", "at the ends", "a stage of no-ops", "under vpp", "under dualpipev", "uneven", "one stage"],
)
def test_no_op_slots_and_uneven_stages(layout: ParallelLayout, num_layers: int, expected: list[tuple[int | None, ...]]) -> None:
    assert [c.slots for c in layout.chunks(num_layers)] == expected


# ---- files


@pytest.mark.parametrize(
    "layout, moe, expected",
    [
        (ParallelLayout(), False, ["mp_rank_00"]),
        (ParallelLayout(tp=2), True, ["mp_rank_00", "mp_rank_01"]),
        (ParallelLayout(tp=2, pp=2), False, ["mp_rank_00_000", "mp_rank_01_000", "mp_rank_00_001", "mp_rank_01_001"]),
        (ParallelLayout(ep=2), True, ["mp_rank_00_000", "mp_rank_00_001"]),
        (
            ParallelLayout(pp=2, ep=2),
            True,
            ["mp_rank_00_000_000", "mp_rank_00_000_001", "mp_rank_00_001_000", "mp_rank_00_001_001"],
        ),
        (ParallelLayout(tp=2, ep=2), True, ["mp_rank_00_000", "mp_rank_01_000", "mp_rank_00_001", "mp_rank_01_001"]),
        (ParallelLayout(tp=2, ep=2, etp=1), True, ["mp_rank_00_000", "mp_rank_01_001"]),
        (
            ParallelLayout(tp=2, ep=2, tp_extend_ep=True),
            True,
            ["mp_rank_00_000", "mp_rank_01_000", "mp_rank_00_001", "mp_rank_01_001"],
        ),
        (ParallelLayout(tp=2, pp=2, vpp=2), False, ["mp_rank_00_000", "mp_rank_01_000", "mp_rank_00_001", "mp_rank_01_001"]),
    ],
    ids=["one", "tp", "tp pp", "ep", "pp ep", "tp ep", "tp ep etp1", "extend", "vpp"],
)
def test_file_names(layout: ParallelLayout, moe: bool, expected: list[str]) -> None:
    assert [s.name for s in layout.shards(moe=moe)] == expected


def ranks(tp: int, ep: int, etp: int) -> set[tuple[int, int, int]] | None:
    """(tp, ep, etp) of the ranks of a stage, as Megatron numbers them: once with tp running fastest, once with etp, then ep.

    None where the numbers do not go into one another, or one file name would stand for two contents.
    """
    size = max(tp, ep * etp)
    if size % tp or size % (ep * etp):
        return None
    dense = list(range(tp)) * (size // tp)
    sparse = [(e, x) for e in range(ep) for x in range(etp)] * (size // (ep * etp))
    found = {(t, e, x) for t, (e, x) in zip(dense, sparse, strict=True)}
    return found if len({(t, e) for t, e, _ in found}) == len(found) else None


@pytest.mark.parametrize("etp", [None, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("ep", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("tp", [1, 2, 3, 4, 6, 8])
def test_expert_ranks_are_megatrons(tp: int, ep: int, etp: int | None) -> None:
    layout, expected = ParallelLayout(tp=tp, ep=ep, etp=etp), ranks(tp, ep, etp or tp)
    if expected is None:
        with pytest.raises(ToolError, match="Megatron's torch format cannot hold this layout"):
            layout.shards(moe=True)
        return
    shards = layout.shards(moe=True)
    assert {(s.tp, s.ep, s.etp) for s in shards} == expected
    assert len(shards) == len({s.name for s in shards}) == max(tp, ep * (etp or tp))


@given(tp=st.integers(1, 16), ep=st.integers(1, 16))
def test_whole_experts_pair_tp_and_ep(tp: int, ep: int) -> None:
    """--expert-tensor-parallel-size 1: (t, t % EP) if TP % EP = 0, (e % TP, e) if EP % TP = 0, else no such files."""
    layout = ParallelLayout(tp=tp, ep=ep, etp=1)
    if tp % ep == 0:
        expected = {(t, t % ep) for t in range(tp)}
    elif ep % tp == 0:
        expected = {(e % tp, e) for e in range(ep)}
    else:
        with pytest.raises(ToolError):
            layout.shards(moe=True)
        return
    assert {(s.tp, s.ep) for s in layout.shards(moe=True)} == expected


@given(tp=small, ep=small, pp=small, etp=st.sampled_from([None, 1, 2]), extend=st.booleans())
def test_every_expert_is_whole_on_each_stage(tp: int, ep: int, pp: int, etp: int | None, extend: bool) -> None:
    """Each slice of each expert on at least one rank, and each rank of TP there."""
    layout = ParallelLayout(tp=tp, ep=ep, pp=pp, etp=None if extend else etp, tp_extend_ep=extend)
    assume(extend or ranks(tp, ep, etp or tp) is not None)
    shards = layout.shards(moe=True)
    for p in range(pp):
        stage = [s for s in shards if s.pp == p]
        held = Counter((s.ep * tp + s.tp if extend else s.ep, s.etp) for s in stage)
        assert set(held) == {(r, x) for r in range(layout.expert_ranks) for x in range(layout.expert_tp)}
        assert {s.tp for s in stage} == set(range(tp))


# ---- refusals

REFUSED = [
    (dict(tp=0), 4, "tp=0: expected a positive whole number"),
    (dict(pp=-1), 4, "pp=-1: expected a positive whole number"),
    (dict(etp=0), 4, "etp=0: expected a positive whole number"),
    (dict(pp=3), 4, "4 layers cannot be shared out evenly over pp=3"),
    (dict(pp=2, vpp=4), 4, "over pp=2 x vpp=4"),
    (dict(pp=2, noop_layers=(0,)), 4, r"4 layers \+ 1 no-op layers cannot be shared out"),
    (dict(pp=2, layers_per_stage=(4,)), 4, "layers_per_stage has 1 numbers for pp=2"),
    (dict(pp=2, layers_per_stage=(4, 0)), 4, "every stage needs at least one layer"),
    (dict(pp=2, layers_per_stage=(2, 1)), 4, "adds up to 3, the model has 4 layers"),
    (dict(pp=2, vpp=2, layers_per_stage=(2, 2)), 4, "layers_per_stage cannot be combined with vpp"),
    (dict(pp=2, noop_layers=(1,), layers_per_stage=(2, 2)), 4, "layers_per_stage cannot be combined"),
    (dict(vpp=2), 4, "vpp=2 needs more than one pipeline stage"),
    (dict(pp=2, schedule="dualpipev"), 4, "dualpipev holds two chunks a stage, not vpp=1"),
    (dict(pp=2, vpp=3, schedule="dualpipev"), 12, "dualpipev holds two chunks a stage, not vpp=3"),
    (dict(pp=2, noop_layers=(1, 1)), 4, "names a slot twice"),
    (dict(pp=2, noop_layers=(0, 6)), 4, r"noop_layers \[6\]: with 4 layers and 2 no-ops the slots are 0 to 5"),
    (dict(pp=2, noop_layers=(-1, 0)), 4, r"noop_layers \[-1\]"),
    (dict(tp=2, tp_extend_ep=True, etp=2), 4, "tp_extend_ep keeps experts whole; etp=2 would cut them"),
]


@pytest.mark.parametrize("fields, num_layers, message", REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_what_does_not_fit_is_refused(fields: dict[str, object], num_layers: int, message: str) -> None:
    with pytest.raises(ToolError, match=message) as caught:
        ParallelLayout(**fields).chunks(num_layers)
    assert caught.value.code == Exit.INPUT
    assert caught.value.hint


@pytest.mark.parametrize("fields", [{"ep": 2}, {"etp": 2}, {"tp_extend_ep": True}], ids=str)
def test_a_dense_model_has_no_expert_ranks(fields: dict[str, object]) -> None:
    with pytest.raises(ToolError, match="this model has no experts") as caught:
        ParallelLayout(tp=4, **fields).shards(moe=False)
    assert caught.value.hint


def test_a_layer_that_is_not_there_has_no_place() -> None:
    with pytest.raises(ToolError, match="layer 4 is not in a model of 4 layers"):
        ParallelLayout().place(4, 4)
