"""save.storage: per_node: two torchruns, each with a disk of its own, train, stop and go on as one run."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from cluster import PER_NODE, Cluster
from test_train_damage import flip
from training import DONE, ENVIRONMENT, INPUT, STOPPED, TWO, Going, Run, Settings, finish, make_run, tensors

pytestmark = pytest.mark.timeout(1200)  # processes on a machine that others use as well
PP2: Settings = {"parallel.pp": 2, "model.hidden_dropout": 0.1}
DP2: Settings = {**TWO, "model.hidden_dropout": 0.1, "save.background": True}
PLACES = [
    pytest.param(DP2, False, id="dp2"),
    pytest.param(DP2, True, id="dp2 under torchrun", marks=pytest.mark.slow),
    pytest.param(PP2, True, id="pp2 under torchrun", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("settings, agents", PLACES)
def test_nodes_that_have_changed_places_go_on_bit_for_bit(tmp_path: Path, settings: Settings, agents: bool) -> None:
    run = make_run(tmp_path, {**PER_NODE, **settings})
    cluster = Cluster.made(tmp_path, agents=agents).finish(run)
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
    same(cluster, again)


def same(cluster: Cluster, other: Cluster, step: int = 6) -> None:
    one, two = cluster.tensors(step), other.tensors(step)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def processes(run: Run, folder: Path) -> list[psutil.Process]:
    """The run's processes of one node."""
    watch = Going.__new__(Going)
    watch.run = run
    return [each for each in watch.everyone() if each.cwd() == str(folder)]


def codes(cluster: Cluster) -> list[int]:
    return [json.loads((root / "exit.json").read_text())["code"] for root in cluster.paths]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [DP2, PP2], ids=["dp2", "pp2"])
def test_each_damage_of_one_node(tmp_path: Path, settings: Settings) -> None:
    """The newest that is whole over both is taken, and what comes after it is told and written again."""
    run = make_run(tmp_path, {**PER_NODE, **settings, "save.every": 2})
    whole = Cluster.made(tmp_path).finish(run)

    def goes_back(name: str, said: str) -> None:
        ended = hurt.train(run)
        assert [each.code for each in ended] == [DONE, DONE], ended
        assert said in ended[0].err, name
        assert (hurt.steps(), hurt.trackers(), hurt.left_over()) == ([[2, 4, 6]] * 2, ["6", "6"], [])
        assert hurt.learned() == whole.learned()
        same(hurt, whole)

    hurt = whole.copied("changed", until=4)
    flip(hurt.paths[1] / "iter_0000004/__1_0.distcp", 0.5)
    goes_back("changed", "iter_0000004 is damaged (__1_0.distcp has other bytes than were written on ")
    hurt = whole.copied("behind", until=4)
    shutil.rmtree(hurt.paths[1] / "iter_0000004")
    (hurt.paths[1] / "latest_checkpointed_iteration.txt").write_text("2")
    goes_back("behind", "(node 1) has nothing of it); going back to the one before")
    hurt = whole.copied("named on one node alone", until=4)
    (hurt.paths[0] / "iter_0000004").rename(hurt.paths[0] / "iter_0000004.partial")
    goes_back("named", "(node 0) has nothing of it); going back to the one before")


@pytest.mark.slow
def test_an_empty_disk(tmp_path: Path) -> None:
    """A machine that was replaced: what only it had is nowhere."""
    run = make_run(tmp_path, {**PER_NODE, **PP2, "train.steps": 3, "schedule.decay_steps": 6})
    cluster = Cluster.made(tmp_path).finish(run)
    shutil.rmtree(cluster.paths[1])
    ended = cluster.train(run.having({"train.steps": 6}))
    assert codes(cluster) == [INPUT, INPUT]
    assert "iter_0000003 is damaged (__1_0.distcp is missing on all nodes, and " in ended[0].err
    assert "error: no checkpoint under run can be read" in ended[0].err
    assert cluster.steps() == [[3], []]


@pytest.mark.slow
def test_from_one_disk_to_many_and_back(tmp_path: Path) -> None:
    settings = {**PP2, "data.cache": str(tmp_path / "cache"), "save.path": "run"}
    longer = make_run(tmp_path, settings)
    never = finish(longer.having({"save.path": str(tmp_path / "never")}), 2)
    learned = never.learned()
    cluster = Cluster.made(tmp_path)
    shutil.copytree(never.path, cluster.paths[0])
    shutil.rmtree(cluster.paths[0] / "iter_0000006")
    apart = longer.having({"save.storage": "per_node"})
    cluster.finish(apart.having({"train.steps": 5, "schedule.decay_steps": 6}))
    assert cluster.steps() == [[3, 5], [5]]
    assert cluster.learned() == {step: learned[step] for step in range(1, 6)}
    ended = cluster.train(longer)  # the nodes' directories are not one
    assert codes(cluster) == [ENVIRONMENT, ENVIRONMENT]
    assert "save.path run is not the same directory on " in ended[0].err
    shutil.copytree(cluster.paths[1], cluster.paths[0], dirs_exist_ok=True)
    together = longer.having({"save.path": str(cluster.paths[0])})
    finish(together, 2)
    assert together.learned() == learned
    assert tensors(together.path / "iter_0000006") == tensors(never.path / "iter_0000006")
    one = Cluster((cluster.folders[0], cluster.folders[0]))
    one.train(apart.having({"save.path": str(cluster.paths[0]), "train.steps": 7}))
    assert "is the same directory on " in (cluster.folders[0] / "err").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"parallel.tp": 2}, {"parallel.pp": 2}, {"features.distributed_optimizer": False}])
def test_on_another_layout_each_rank_gets_what_it_reads(tmp_path: Path, layout: Settings) -> None:
    """The same numbers as where all is on one disk."""
    base = make_run(tmp_path, {"save.path": "run"})
    shared = finish(base.having({"save.path": str(tmp_path / "shared"), **TWO}), 2)
    cluster = Cluster.made(tmp_path).finish(base.having({**PER_NODE, **TWO}))
    again = cluster.copied("again", until=3).finish(base.having({**PER_NODE, **layout}))
    killed = shared.copied("killed", until=3)
    other = finish(base.having({"save.path": str(killed.path), **layout}), 2)
    assert cluster.learned() == shared.learned()
    assert again.learned() == other.learned()


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_a_full_disk_of_one_node(tmp_path: Path, node: int) -> None:
    run = make_run(tmp_path, {**PER_NODE, **PP2, "train.steps": 3, "schedule.decay_steps": 6})
    cluster = Cluster.made(tmp_path).finish(run)
    limits = [None, None]
    limits[node] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # type: ignore[call-overload]
    ended = cluster.train(run.having({"train.steps": 6}), limits=limits)
    assert codes(cluster) == [ENVIRONMENT, ENVIRONMENT]
    assert "iter_0000006 cannot be written: " in ended[0].err
    assert (cluster.steps(), cluster.trackers(), cluster.left_over()) == ([[3], [3]], ["3", "3"], [])


@pytest.mark.slow
def test_no_room_for_what_other_nodes_have(tmp_path: Path) -> None:
    run = make_run(tmp_path, {**PER_NODE, **PP2, "train.steps": 3, "schedule.decay_steps": 6})
    swapped = Cluster.made(tmp_path).finish(run).swapped
    limits = [lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)), None]
    ended = swapped.train(run.having({"train.steps": 6}), limits=limits)
    assert codes(swapped) == [ENVIRONMENT, ENVIRONMENT]
    assert "iter_0000003.gathered cannot be filled from other nodes: " in ended[0].err
    assert swapped.left_over() == []


@pytest.mark.slow
def test_what_one_node_lacks(tmp_path: Path) -> None:
    """Both end at once, and say where what is missing."""
    run = make_run(tmp_path, PER_NODE)
    cluster = Cluster.made(tmp_path)
    shutil.copytree(run.values["model"]["path"], cluster.folders[0] / "model")
    ended = cluster.train(run.having({"model.path": "model"}), within=120)
    assert codes(cluster) == [ENVIRONMENT, INPUT]
    assert "error: another machine cannot begin: model.path: model does not exist" in ended[0].err
    assert "error: rank 1 on " in ended[1].err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_at_any_moment(tmp_path: Path, number: signal.Signals) -> None:
    """One node of two. It goes on as if nothing had been, and no tracker names what is not whole."""
    settings = {**PER_NODE, **PP2, "save.every": 1, "save.keep": 2, "train.steps": 40}
    run = make_run(tmp_path, settings)
    never = finish(run.having({"save.path": str(tmp_path / "never"), "save.storage": "shared", "save.every": 40}), 2)
    cluster = Cluster.made(tmp_path)
    for turn in range(4):
        started = cluster.start(run)
        end = time.monotonic() + 200
        while not any(f"saved: run/iter_{8 * turn + 4:07d}" in each for each in cluster.err()) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.037 * turn)
        started[turn % 2].send_signal(number)
        if number == signal.SIGKILL:  # its ranks save and end by themselves; here they are killed as well
            for each in processes(run, cluster.folders[turn % 2]):
                each.kill()
        cluster.end(run, started, 200)
        found = cluster.steps()
        for tracker in {int(each) for each in cluster.trackers()}:
            assert all(tracker in each for each in found), (tracker, found)
        if number == signal.SIGTERM:
            assert codes(cluster) == [STOPPED, STOPPED]
        cluster = cluster.swapped if turn == 1 else cluster
    cluster.finish(run)
    assert cluster.learned() == {step: value for step, value in never.learned().items() if step in cluster.learned()}
    here, there = cluster.tensors(40), tensors(never.path / "iter_0000040")
    assert [name for name in there if here[name] != there[name]] == []


@pytest.mark.slow
def test_hugging_face_directories(tmp_path: Path) -> None:
    """Of all nodes' weights, on that of rank 0."""
    from safetensors.torch import load_file

    run = make_run(tmp_path, {**PER_NODE, **PP2, "save.hf": True})
    cluster = Cluster.made(tmp_path).finish(run)
    one = finish(run.having({"save.path": str(tmp_path / "one"), "save.storage": "shared"}), 2)
    assert not list(cluster.paths[1].glob("hf_iter_*"))
    for step in (3, 6):
        made, other = (load_file(root / f"hf_iter_{step:07d}/model.safetensors") for root in (cluster.paths[0], one.path))
        assert made.keys() == other.keys()
        assert all(bool((made[name] == other[name]).all()) for name in made)
    shutil.rmtree(cluster.paths[0] / "hf_iter_0000006")
    ended = cluster.train(run)
    assert "what is left to do is run/hf_iter_0000006" in ended[0].err
    assert (cluster.paths[0] / "hf_iter_0000006/model.safetensors").is_file()
    assert cluster.left_over() == []
    assert "nothing is left to do" in cluster.swapped.train(run)[0].err, "it is on the other node"
