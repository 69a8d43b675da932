"""Geometries against numpy on whole arrays: what a rule makes, how it is cut, padded and stacked, and that nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumar.schema.errors import Exit, ToolError
from jumar.schema.spec import Mla, ModelSpec, Moe, Ssm
from jumar.schema.weights import Geometry, Part, Rule, cut, cut_rows, expand, pad_rows, part_shape, stack_experts

EMPTY = -1
few = st.integers(1, 4)


def sources(rule: Rule, spec: ModelSpec) -> list[np.ndarray]:
    """The rule's HF tensors. Every element of all of them is another number; parts of one name are one tensor."""
    named: dict[str, np.ndarray] = {}
    used = 0
    for part in rule.parts:
        shape = part_shape(part, spec)
        if part.name not in named:
            named[part.name] = np.arange(used, used + int(np.prod(shape))).reshape(shape)
            used += int(np.prod(shape))
    return [named[part.name] for part in rule.parts]


def filled(geometry: Geometry, tensors: list[np.ndarray]) -> np.ndarray:
    """The tensor that the boxes make. No element may be filled twice."""
    made = np.full(geometry.shape, EMPTY)
    for box in geometry.boxes:
        assert all(a >= 0 and n > 0 for a, n in zip(box.start, box.size, strict=True))
        piece = tensors[box.part][tuple(slice(a, a + n) for a, n in zip(box.start, box.size, strict=True))]
        assert piece.shape == box.size, "the box reaches beyond its tensor"
        piece = piece.transpose(np.argsort(box.axes)).reshape(box.extent)
        place = tuple(slice(a, a + n) for a, n in zip(box.at, box.extent, strict=True))
        assert made[place].shape == piece.shape, "the box reaches beyond its target"
        assert (made[place] == EMPTY).all()
        made[place] = piece
    return made


def assert_uses_all(pieces: list[np.ndarray], tensors: list[np.ndarray]) -> None:
    """Every element of every source exactly once."""
    used = np.sort(np.concatenate([p[p != EMPTY].ravel() for p in pieces]))
    assert (used == np.arange(len(used))).all()
    assert len(used) == sum(t.size for t in {id(t): t for t in tensors}.values())


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    kv = draw(few) * 2
    groups = draw(few)
    return ModelSpec(
        model_type="drawn",
        num_layers=1,
        hidden_size=draw(st.integers(1, 7)),
        vocab_size=draw(st.integers(1, 30)),
        num_heads=kv * draw(few),
        num_kv_heads=kv,
        head_dim=draw(few),
        ffn_size=draw(few) * 4,
        moe=Moe(num_experts=4, top_k=1, ffn_size=draw(few) * 2),
        ssm=Ssm(state_size=draw(few), num_heads=groups * draw(few), head_dim=draw(few), num_groups=groups),
    )


WEIGHT = tuple(Part(f"{x}.weight", f"{axis} hidden") for x, axis in (("q", "q"), ("k", "kv"), ("v", "kv")))
PACKED = tuple(Part("c_attn.weight", "hidden q+kv+kv", pick=i, transposed=True) for i in range(3))
PACKED_BIAS = tuple(Part("c_attn.bias", "q+kv+kv", pick=i) for i in range(3))
IN_PROJ = "inner+inner+state+state+ssm_heads hidden"


@given(specs())
def test_q_k_and_v_are_interleaved_by_group(spec: ModelSpec) -> None:
    groups, heads, d = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, spec.head_dim
    rule = Rule("qkv", WEIGHT, interleave=True)
    q, k, v = tensors = sources(rule, spec)
    rows = []
    for g in range(groups):
        for head in range(heads):
            rows += [q[(g * heads + head) * d + i] for i in range(d)]
        rows += [k[g * d + i] for i in range(d)]
        rows += [v[g * d + i] for i in range(d)]
    made = filled(expand(rule, spec), tensors)
    assert (made == np.stack(rows)).all()
    assert_uses_all([made], tensors)


@given(specs())
def test_packed_and_turned_q_k_v_are_interleaved_too(spec: ModelSpec) -> None:
    """GPT-2: one [in, out] matrix with q, k and v side by side; its bias likewise."""
    groups, d = spec.num_kv_heads, spec.head_dim
    for parts, axis in (PACKED, 1), (PACKED_BIAS, 0):
        rule = Rule("qkv", parts, interleave=True)
        tensors = sources(rule, spec)
        q, k, v = np.split(np.moveaxis(tensors[0], axis, 0), [spec.num_heads * d, (spec.num_heads + groups) * d])
        per_group = zip(np.split(q, groups), np.split(k, groups), np.split(v, groups), strict=True)
        made = filled(expand(rule, spec), tensors)
        assert (made == np.concatenate([np.concatenate(three) for three in per_group])).all()
        assert_uses_all([made], tensors)


@given(specs())
def test_a_transposed_part_is_turned(spec: ModelSpec) -> None:
    rule = Rule("fc1", (Part("c_fc.weight", "hidden ffn", transposed=True),), shard=0)
    (source,) = tensors = sources(rule, spec)
    assert source.shape == (spec.hidden_size, spec.ffn_size)
    assert (filled(expand(rule, spec), tensors) == source.T).all()


RULES = {
    "plain": (Rule("w", (Part("w", "hidden ffn"),)), 1),
    "rows": (Rule("w", (Part("w", "ffn hidden"),)), 0),
    "turned": (Rule("w", (Part("w", "hidden ffn", transposed=True),)), 0),
    "gate and up": (Rule("w", (Part("gate", "ffn hidden"), Part("up", "ffn hidden"))), 0),
    "gate and up, one tensor": (Rule("w", (Part("gate_up", "ffn+ffn hidden"),)), 0),
    "q k v": (Rule("w", WEIGHT, interleave=True), 0),
    "q k v, one turned tensor": (Rule("w", PACKED, interleave=True), 0),
    "q k v bias": (Rule("w", PACKED_BIAS, interleave=True), 0),
    "mamba in_proj": (Rule("w", (Part("in_proj", IN_PROJ),)), 0),
    "mamba conv1d": (Rule("w", (Part("conv1d", "inner+state+state 1 conv"),)), 0),
}


@pytest.mark.parametrize("name", RULES)
@given(spec=specs(), data=st.data())
def test_slices_together_are_the_whole(name: str, spec: ModelSpec, data: st.DataObject) -> None:
    """Cut over any number of ranks that fits: each segment by itself, and every element on exactly one rank."""
    rule, axis = RULES[name]
    geometry, tensors = expand(rule, spec), sources(rule, spec)
    whole = filled(geometry, tensors)
    assert_uses_all([whole], tensors)
    things = [s.size // s.unit for s in geometry.segments[axis]]
    count = data.draw(st.sampled_from([n for n in range(1, 9) if all(t % n == 0 for t in things)]))
    slices = [filled(cut(geometry, axis, i, count), tensors) for i in range(count)]
    assert_uses_all(slices, tensors)
    ends = np.cumsum([s.size for s in geometry.segments[axis]])[:-1]
    segments = np.split(whole, ends, axis=axis)
    for i, piece in enumerate(slices):
        expected = np.concatenate([np.split(segment, count, axis=axis)[i] for segment in segments], axis=axis)
        assert (piece == expected).all()
        assert cut(geometry, axis, i, count).stored == expected.shape


@given(spec=specs(), data=st.data())
def test_a_slice_can_be_cut_again(spec: ModelSpec, data: st.DataObject) -> None:
    """Along another axis, as when experts are cut over ETP and stacked; and along the same."""
    rule = RULES["gate and up"][0]
    spec = replace(spec, hidden_size=data.draw(few) * 3)
    geometry, tensors = expand(rule, spec), sources(rule, spec)
    crossed = [cut(cut(geometry, 0, i, 2), 1, j, 3) for i in range(2) for j in range(3)]
    assert_uses_all([filled(g, tensors) for g in crossed], tensors)
    for i in range(4):
        once, twice = cut(geometry, 0, i, 4), cut(cut(geometry, 0, i // 2, 2), 0, i % 2, 2)
        assert (filled(once, tensors) == filled(twice, tensors)).all()


@given(spec=specs(), multiple=st.integers(1, 20), tp=few)
def test_padding_lies_at_the_end_and_is_counted(spec: ModelSpec, multiple: int, tp: int) -> None:
    rule = Rule("w", (Part("embed", "vocab hidden"),), shard=0)
    assert rule.padded
    rows = -(-spec.vocab_size // (multiple * tp)) * multiple * tp
    geometry, tensors = pad_rows(expand(rule, spec), rows), sources(rule, spec)
    expected = np.full((rows, spec.hidden_size), EMPTY)
    expected[: spec.vocab_size] = tensors[0]
    slices = [cut(geometry, 0, t, tp) for t in range(tp)]
    for slice_, part in zip(slices, np.split(expected, tp), strict=True):
        made = filled(slice_, tensors)
        assert (made == part).all()
        assert slice_.padding == (part[:, 0] == EMPTY).sum()
    assert sum(s.padding for s in slices) == geometry.padding == rows - spec.vocab_size


@given(spec=specs(), data=st.data())
def test_rows_can_be_cut_unevenly(spec: ModelSpec, data: st.DataObject) -> None:
    """The vocabularies of other tools: any rows on each rank, padding or none."""
    rule = Rule("w", (Part("embed", "vocab hidden"),), shard=0)
    rows = spec.vocab_size + data.draw(st.integers(0, 5))
    ends = sorted(data.draw(st.lists(st.integers(1, rows), max_size=3)))
    geometry, tensors = pad_rows(expand(rule, spec), rows), sources(rule, spec)
    bounds = list(zip([0, *ends], [*ends, rows], strict=True))
    slices = [cut_rows(geometry, start, stop - start) for start, stop in bounds]
    made = [filled(s, tensors) for s in slices]
    assert [len(m) for m in made] == [stop - start for start, stop in bounds]
    assert (np.concatenate(made)[: spec.vocab_size] == tensors[0]).all()
    assert sum(s.padding for s in slices) == rows - spec.vocab_size
    assert all(s.padding == (m[:, 0] == EMPTY).sum() for s, m in zip(slices, made, strict=True))


@given(spec=specs(), experts=few, etp=st.sampled_from([1, 2]), rank=st.integers(0, 1))
def test_grouped_experts_are_transposed_in_memory(spec: ModelSpec, experts: int, etp: int, rank: int) -> None:
    """weight1: [experts, hidden, 2 ffn / ETP] in memory, called (hidden, ...). weight2: [experts, ffn / ETP, hidden]."""
    h, f = spec.hidden_size, 2 * (spec.moe.ffn_size if spec.moe else 0)
    fc1 = Rule("fc1", (Part("gate", "expert_ffn hidden"), Part("up", "expert_ffn hidden")), shard=0)
    fc2 = Rule("fc2", (Part("down", "hidden expert_ffn"),), shard=1)
    for rule, axis, rows_last, stored in (fc1, 0, True, (h, experts * f // etp)), (fc2, 1, False, (experts * f // 2 // etp, h)):
        one = cut(expand(rule, spec), axis, rank % etp, etp)
        own = sources(rule, spec)
        size = sum(t.size for t in own)
        tensors = [t + e * size for e in range(experts) for t in own]
        each = [filled(one, tensors[e * len(own) : (e + 1) * len(own)]) for e in range(experts)]
        stacked = stack_experts(one, experts, len(rule.parts), rows_last)
        made = filled(stacked, tensors)
        assert (made == np.stack([w.T for w in each])).all()
        assert stacked.stored == stored
        assert np.prod(stacked.stored) == np.prod(stacked.shape)


@pytest.mark.parametrize(
    "name, count, what, message",
    [
        ("q k v", 3, "tp", "tp=3 does not divide the model's 4 KV groups"),
        ("gate and up", 5, "tp", "tp=5 does not divide the model's 8 FFN columns"),
        ("mamba in_proj", 3, "tp", "tp=3 does not divide the model's 2 SSM groups"),
        ("plain", 16, "etp", "etp=16 does not divide the model's 8 FFN columns"),
    ],
)
def test_a_cut_that_does_not_fit_names_the_flag(name: str, count: int, what: str, message: str) -> None:
    spec = ModelSpec(
        model_type="tiny",
        num_layers=1,
        hidden_size=4,
        vocab_size=5,
        num_heads=8,
        num_kv_heads=4,
        head_dim=2,
        ffn_size=8,
        ssm=Ssm(state_size=2, num_heads=4, head_dim=2, num_groups=2),
    )
    rule, axis = RULES[name]
    with pytest.raises(ToolError, match=message) as caught:
        cut(expand(rule, spec), axis, 0, count, what)
    assert caught.value.code == Exit.INPUT
    assert f"--{what}" in (caught.value.hint or "")


@given(heads=few, sizes=st.tuples(few, few, few), tp=few)
def test_a_segment_of_every_head_is_picked(heads: int, sizes: tuple[int, int, int], tp: int) -> None:
    """MindSpeed's --mla-mm-split: the two parts hold each head's rows, and a rank the rows of its heads."""
    nope, rope, rank = sizes
    spec = ModelSpec(
        model_type="drawn",
        num_layers=1,
        hidden_size=1,
        vocab_size=1,
        num_heads=heads * tp,
        mla=Mla(kv_lora_rank=1, nope_dim=nope, rope_dim=rope, v_dim=1, q_lora_rank=rank),
    )
    rules = [Rule("w", (Part("q_b", "nope+rope q_lora", pick=i, each=True),), shard=0) for i in (0, 1)]
    (q_b,) = sources(rules[0], spec)
    by_head = q_b.reshape(heads * tp, nope + rope, rank)
    expected = by_head[:, :nope].reshape(-1, rank), by_head[:, nope:].reshape(-1, rank)
    pieces = []
    for rule, whole in zip(rules, expected, strict=True):
        geometry = expand(rule, spec)
        assert (filled(geometry, [q_b]) == whole).all()
        cuts = [filled(cut(geometry, 0, t, tp), [q_b]) for t in range(tp)]
        assert all((a == b).all() for a, b in zip(cuts, np.split(whole, tp), strict=True))
        pieces += cuts
    assert_uses_all(pieces, [q_b])


def test_groups_are_not_torn_apart() -> None:
    """8 query heads in 2 groups: TP 4 would divide the rows, and give each rank half a group."""
    spec = ModelSpec(model_type="tiny", num_layers=1, hidden_size=4, vocab_size=5, num_heads=8, num_kv_heads=2, head_dim=2)
    for rule in Rule("qkv", WEIGHT, shard=0, interleave=True), Rule("o", (Part("o", "q hidden"),), shard=0):
        with pytest.raises(ToolError, match="tp=4 does not divide the model's 2 KV groups"):
            cut(expand(rule, spec), 0, 0, 4)


@pytest.mark.parametrize("dialect, name", [("mcore", "a.weight"), ("te", "b.weight"), ("mindspeed", "a.weight")])
def test_a_rule_is_named_by_dialect(dialect: str, name: str) -> None:
    assert Rule("a.weight", (), te="b.weight").name_in(dialect) == name
