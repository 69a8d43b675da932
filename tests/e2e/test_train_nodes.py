"""save.storage: per_node: two torchruns, each with a disk of its own, train, stop and go on as one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import PER_NODE, Cluster
from training import TWO, Settings, make_run

pytestmark = pytest.mark.timeout(1200)  # processes on a machine that others use as well
PP2: Settings = {"parallel.pp": 2, "model.hidden_dropout": 0.1}
DP2: Settings = {**TWO, "model.hidden_dropout": 0.1, "save.background": True}
LAYOUTS = [pytest.param(DP2, id="dp2"), pytest.param(PP2, id="pp2", marks=pytest.mark.slow)]


@pytest.mark.parametrize("settings", LAYOUTS)
def test_nodes_that_have_changed_places_go_on_bit_for_bit(tmp_path: Path, settings: Settings) -> None:
    run = make_run(tmp_path, {**PER_NODE, **settings})
    cluster = Cluster.made(tmp_path).finish(run)
    assert cluster.steps() == [[3, 6], [3, 6]]
    assert cluster.trackers() == ["6", "6"]
    for node, root in enumerate(cluster.paths):
        assert {path.name[:4] for path in (root / "iter_0000006").glob("*.distcp")} == {f"__{node}_"}
        assert (root / "hf/config.json").is_file()
        assert (root / "metrics.jsonl").exists() == (node == 0)
        assert len(list((root.parent / "cache").iterdir())) == 1
    again = cluster.copied("again", until=3).swapped.finish(run)
    learned = cluster.learned()
    assert again.learned() == {step: learned[step] for step in (4, 5, 6)}
    one, other = cluster.tensors(6), again.tensors(6)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
