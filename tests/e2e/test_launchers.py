"""examples/slurm, examples/ssh and examples/kubernetes do what their heads say.

By default the ssh script runs with stand-ins for ssh and jumar-train, and the pod's command really trains. The slow tests start
sshd on two addresses of this machine and a Slurm of two nodes; they are skipped where those are not installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from forked import free_port
from training import DONE, STOPPED, Going, Run, environment, make_run

EXAMPLES = Path(__file__).parents[2] / "examples"
SSH, SLURM, JOB = EXAMPLES / "ssh/train.sh", EXAMPLES / "slurm/train.sbatch", EXAMPLES / "kubernetes/pytorchjob.yaml"
BIN = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
ENDLESS = {"train.steps": 4000, "save.every": 4000, "schedule.decay_steps": 40}


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- the scripts


@pytest.mark.parametrize("script", [SSH, SLURM], ids=["ssh", "slurm"])
def test_a_script_is_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    command = [*(container()["command"][:2]), container()["command"][2]]
    subprocess.run(["shellcheck", "-s", "bash", str(SSH), str(SLURM)], check=True)
    subprocess.run(["shellcheck", "-s", "bash", "-"], input=command[2], text=True, check=True)


# --- ssh


STAND_IN_SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift 2; done
echo "$1" >>"$SEEN/seen"
shift
exec setsid --wait env --default-signal sh -c "$*"  # as on another machine
"""
STAND_IN_TRAIN = """#!/bin/bash
[ -n "$AGAIN" ] || AGAIN=1 exec env --default-signal "$0" "$@"  # as Python does: bash cannot hear a signal that was ignored
echo "$PWD" "$PET_NNODES" "$PET_NODE_RANK" "$PET_MASTER_ADDR" "$PET_MASTER_PORT" "$NCCL_X" "$FROM_SETUP" "$@" \\
  >"$SEEN/$PET_NODE_RANK"
heard() { echo "$1" >>"$SEEN/heard-$PET_NODE_RANK"; exit 75; }
for name in TERM INT USR1; do trap "heard $name" "$name"; done
echo "node $PET_NODE_RANK speaks"
while [ ! -e "$SEEN/end-$PET_NODE_RANK" ]; do sleep 0.1; done
exit "$(cat "$SEEN/end-$PET_NODE_RANK")"
"""


class Hosts:
    """train.sh on two hosts that are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        executable(folder / "bin/ssh", STAND_IN_SSH)
        executable(folder / "bin/jumar-train", STAND_IN_TRAIN)
        (folder / "hosts").write_text("# two\none\n\nme@two  # the second\n")
        (folder / "it's").mkdir()
        more = {
            "SETUP": "export FROM_SETUP='a b'",
            "NCCL_X": "bond 0",
            "SEEN": str(folder),
            "GRACE": "90",
            "DEVICES": "2",
        }
        more["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        line = ["bash", str(SSH), str(folder / "hosts"), "sft", "recipe.yaml", "--set", "a.b=it's"]
        self.process = subprocess.Popen(
            line,
            cwd=folder / "it's",
            env=environment(more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal, wherever the tests run
        )

    def __enter__(self) -> Hosts:
        end = time.monotonic() + 60
        while not all((self.folder / str(rank)).exists() for rank in range(2)):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        for rank in range(2):
            (self.folder / f"end-{rank}").write_text("0")
        self.process.kill()

    def node_ends(self, rank: int, code: int) -> Hosts:
        (self.folder / "half").write_text(str(code))
        (self.folder / "half").replace(self.folder / f"end-{rank}")
        return self

    def said(self, code: int) -> str:
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == code, said
        return said

    def heard(self, rank: int) -> str:
        file = self.folder / f"heard-{rank}"
        return file.read_text().strip() if file.exists() else ""


def test_ssh_tells_each_node_its_place(tmp_path: Path) -> None:
    with Hosts(tmp_path) as hosts:
        said = hosts.node_ends(0, 0).node_ends(1, 0).said(DONE)
    assert said == "node 0 speaks\n"
    for rank in range(2):
        wanted = f"{tmp_path}/it's 2 {rank} one 29500 bond 0 a b sft recipe.yaml --set a.b=it's --nproc 2\n"
        assert (tmp_path / str(rank)).read_text() == wanted
        assert (tmp_path / f"it's/logs/node-{rank}.log").read_text() == f"node {rank} speaks\n"
    assert sorted((tmp_path / "seen").read_text().split()) == ["me@two", "one"]
    assert hosts.heard(0) == hosts.heard(1) == ""


def test_ssh_ends_the_others_when_a_node_fails(tmp_path: Path) -> None:
    with Hosts(tmp_path) as hosts:
        said = hosts.node_ends(1, 4).said(4)
    assert hosts.heard(0) == "TERM"
    assert "node 1 (me@two) ended with code 4; logs/node-1.log" in said


@pytest.mark.parametrize("name", ["INT", "USR1"])
def test_ssh_passes_signals_on(tmp_path: Path, name: str) -> None:
    """To the whole process group, as Ctrl-C in a terminal."""
    with Hosts(tmp_path) as hosts:
        os.killpg(hosts.process.pid, getattr(signal, f"SIG{name}"))
        hosts.said(STOPPED)
    assert hosts.heard(0) == hosts.heard(1) == name


def test_nodes_end_when_the_ssh_script_is_killed(tmp_path: Path) -> None:
    with Hosts(tmp_path) as hosts:
        hosts.process.kill()
        end = time.monotonic() + 30
        while not (hosts.heard(0) and hosts.heard(1)):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert hosts.heard(0) == hosts.heard(1) == "TERM"


# --- ssh to sshd


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[dict[str, str]]:
    """sshd on two addresses of this machine; what train.sh needs in its environment."""
    daemon = shutil.which("sshd", path=f"/usr/sbin:{os.environ['PATH']}")
    if daemon is None or shutil.which("ssh") is None:
        pytest.skip("sshd is not installed (apt-get install openssh-server)")
    folder, port, servers = tmp_path / "sshd", free_port(), []
    folder.mkdir()
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for address in ("127.0.0.1", "127.0.0.2"):
        options = [f"ListenAddress={address}", f"AuthorizedKeysFile={folder / 'key.pub'}", "StrictModes=no", "PidFile=none"]
        words = [word for option in [*options, "UsePAM=no"] for word in ("-o", option)]
        line = [daemon, "-D", "-e", "-f", "/dev/null", "-p", port, "-h", str(folder / "host"), *words]
        servers.append(subprocess.Popen(line, stderr=(folder / f"{address}.log").open("w")))
    (folder / "config").write_text(
        f"Host *\n Port {port}\n IdentityFile {folder / 'key'}\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n"
        " LogLevel ERROR\n"
    )
    executable(folder / "bin/ssh", f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "config"} "$@"\n')
    (folder / "hosts").write_text("127.0.0.1\n127.0.0.2\n")
    ours = f"PATH={BIN!r} OMP_NUM_THREADS=1 PYTHONPATH={os.environ.get('PYTHONPATH', '')!r}"
    try:
        yield {
            "PATH": f"{folder / 'bin'}{os.pathsep}{BIN}",
            "SETUP": f"export {ours}",
            "DEVICES": "1",
            "MASTER_PORT": free_port(),
            "LOGS": str(tmp_path / "logs"),
        }
    finally:
        for server in servers:
            server.kill()
            server.wait()


def over_ssh(run: Run, sshd: dict[str, str]) -> Going:
    hosts = run.folder / "sshd/hosts"
    return Going(run, ["bash", str(SSH), str(hosts), "pretrain", str(run.recipe), "--device", "cpu"], sshd)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ssh_trains_stops_and_goes_on(tmp_path: Path, sshd: dict[str, str]) -> None:
    """On two hosts: Ctrl-C saves; a rank that is killed ends both; a killed script ends both, which save; then to the end."""
    run = make_run(tmp_path, ENDLESS)
    with over_ssh(run, sshd) as one:
        one.at_step(3)
        os.killpg(one.process.pid, signal.SIGINT)
        assert one.ends(90).code == STOPPED
    first = run.steps()[-1]
    with over_ssh(run, sshd) as one:
        one.at_step(first + 3)
        one.ranks()[1].kill()
        ended = one.ends(90)
    assert ended.code == 4
    assert "rank 1 was killed by signal 9" in (tmp_path / "logs/node-1.log").read_text()
    with over_ssh(run, sshd) as one:
        one.until(lambda: one.err.count(f"step {first + 3}/") == 1)
        one.process.kill()
        end = time.monotonic() + 90
        while one.everyone():
            assert time.monotonic() < end
            time.sleep(0.1)
    assert run.ended()["code"] == STOPPED
    assert run.steps()[-1] > first
    rest = run.having({"train.steps": run.steps()[-1] + 2})
    with over_ssh(rest, sshd) as one:
        assert one.ends(120).code == DONE


# --- Slurm


CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={ports[0]}
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=one,two Default=YES State=UP
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes on this machine; the environment of its commands."""
    if os.getuid() or any(shutil.which(name, path="/usr/sbin:/usr/bin") is None for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip("Slurm is not installed, or this is not root (apt-get install slurm-wlm munge)")
    with ExitStack() as stack:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            Path("/run/munge").mkdir(exist_ok=True)
            shutil.chown("/run/munge", "munge")
            munged = subprocess.Popen(["su", "-s", "/bin/sh", "munge", "-c", "exec /usr/sbin/munged -F"])
            stack.callback(munged.wait)
            stack.callback(munged.terminate)
        folder = tmp_path / "slurm"
        (folder / "state").mkdir(parents=True)
        conf = CONF.format(folder=folder, host=socket.gethostname().split(".")[0], ports=[free_port() for _ in range(3)])
        (folder / "slurm.conf").write_text(conf)
        env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"/usr/sbin:{BIN}"}
        for words in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "one"], ["slurmd", "-D", "-N", "two"]):
            daemon = subprocess.Popen(words, env=environment(env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        until(lambda: asked(env, "sinfo", "-h", "-o", "%T %D") == "idle 2", 60)
        yield env


def until(there: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.2)


def asked(env: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=environment(env), capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_slurm_saves_queues_again_and_goes_on(tmp_path: Path, slurm: dict[str, str]) -> None:
    """The signal ahead of the time limit, sent early; Slurm waits two minutes before it starts the job again."""
    run = make_run(tmp_path, ENDLESS)
    more = {**slurm, "DEVICES": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": free_port(), "LOGS": "logs"}
    options = ["--parsable", "--nodes", "2", "--gpus-per-node", "0", "--time", "60", "--chdir", str(tmp_path)]
    job = asked(more, "sbatch", *options, str(SLURM), "pretrain", str(run.recipe), "--device", "cpu")
    log, state = tmp_path / "logs/node-0.log", lambda: asked(slurm, "squeue", "-h", "-j", job, "-o", "%T %r")
    until(lambda: log.exists() and "step 3/" in log.read_text(), 120)
    asked(slurm, "scancel", "--signal=USR1", job)
    until(lambda: state() == "PENDING BeginTime", 90)
    first = run.steps()[-1]
    assert (run.ended()["code"], (tmp_path / "logs/codes").read_text()) == (STOPPED, "75\n75\n")
    until(lambda: f"note: going on after step {first} of" in log.read_text(), 300)
    until(lambda: f"step {first + 3}/" in log.read_text(), 60)
    asked(slurm, "scancel", job)
    until(lambda: "CANCELLED" in asked(slurm, "scontrol", "show", "job", job) and state() == "", 60)
    until(lambda: log.read_text().count("stopped: after step") == 2, 60)  # it saves then too
    assert (tmp_path / f"train-{job}.log").read_text().count("queued again") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_slurm_tells_the_code_of_a_failure(tmp_path: Path, slurm: dict[str, str]) -> None:
    run = make_run(tmp_path, {"parallel.tp": 3})
    options = ["--wait", "--nodes", "2", "--gpus-per-node", "0", "--time", "60", "--chdir", str(tmp_path)]
    line = ["sbatch", *options, str(SLURM), "pretrain", str(run.recipe), "--device", "cpu"]
    more = {**slurm, "DEVICES": "1", "PET_MASTER_ADDR": "127.0.0.1", "LOGS": "logs"}
    assert subprocess.run(line, env=environment(more), check=False).returncode == 3
    assert "tp=3" in (tmp_path / "logs/node-0.log").read_text()


# --- Kubernetes


def container(replica: str = "Master") -> dict[str, Any]:
    job = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    found: dict[str, Any] = job["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]["containers"][0]
    return found


def test_the_manifest_is_what_the_operator_takes() -> None:
    """Fields and rules of kubeflow.org/v1 PyTorchJob, training-operator 1.9: the CRD and its webhook."""
    job = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert spec.keys() <= {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs", "elasticPolicy"}
    assert spec["runPolicy"].keys() <= {
        *("activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "managedBy"),
        *("schedulingPolicy", "suspend", "ttlSecondsAfterFinished"),
    }
    assert spec["runPolicy"]["cleanPodPolicy"] in ("None", "All", "Running")
    assert isinstance(spec["nprocPerNode"], str)  # a number is refused
    assert spec["pytorchReplicaSpecs"].keys() == {"Master", "Worker"}
    assert spec["pytorchReplicaSpecs"]["Master"]["replicas"] == 1
    for replica in spec["pytorchReplicaSpecs"].values():
        assert replica.keys() == {"replicas", "restartPolicy", "template"}
        assert replica["restartPolicy"] == "ExitCode"
        pod = replica["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= 300
        main = pod["containers"][0]
        assert main["name"] == "pytorch"
        assert main["ports"] == [{"name": "pytorchjob-port", "containerPort": 23456}]
        resources = main["resources"]
        assert (
            resources["limits"]["huawei.com/Ascend910"] == resources["requests"]["huawei.com/Ascend910"] == spec["nprocPerNode"]
        )
        assert {each["name"] for each in main["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        assert "/dev/shm" in [each["mountPath"] for each in main["volumeMounts"]]
        assert all(isinstance(each["value"], str) for each in main["env"])
        assert "$(" not in " ".join(main["command"])  # Kubernetes would put variables there
    assert container("Master") == container("Worker")


def pod(run: Run, rank: int, port: str, *more: str) -> Going:
    """The pod's command, with the variables that the operator sets for a job of two pods."""
    place = {"PET_NNODES": "2", "PET_NODE_RANK": str(rank), "PET_NPROC_PER_NODE": "1", "RANK": str(rank), "WORLD_SIZE": "2"}
    master = {f"{prefix}MASTER_{key}": value for prefix in ("", "PET_") for key, value in (("ADDR", "localhost"), ("PORT", port))}
    own = {each["name"]: each["value"] for each in container()["env"]}
    line = [*container()["command"], "pretrain", str(run.recipe), "--device", "cpu", *more]
    other = Run(run.folder, {**run.values, "save": {"path": f"{run.path}-pod{rank}"}})  # whose name the log has
    return Going(other, line, {**own, **place, **master, "PATH": BIN})


def test_the_pods_train(tmp_path: Path) -> None:
    run, port = make_run(tmp_path, {"train.steps": 1, "save.every": None, "schedule.warmup_steps": 0}), free_port()
    with pod(run, 0, port) as master, pod(run, 1, port) as worker:
        codes = [each.process.wait(timeout=120) for each in (master, worker)]
    assert codes == [DONE, DONE], master.err + worker.err
    assert "step 1/1" in master.err
    assert "step" not in worker.err
    assert run.steps() == [1]


def rank_of(process: psutil.Process) -> str | None:
    environ = process.environ()
    return environ["RANK"] if "LOCAL_RANK" in environ else None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pod_that_is_evicted_is_made_again_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM to one: both save and end with a code that the operator tries again, 128 and above. A killed rank likewise."""
    run, port = make_run(tmp_path, ENDLESS), free_port()
    with pod(run, 0, port) as master, pod(run, 1, port) as worker:
        master.at_step(3)
        worker.process.terminate()
        codes = [each.process.wait(timeout=120) for each in (master, worker)]
    assert codes == [203, 203], master.err + worker.err
    first = run.steps()[-1]
    with pod(run, 0, port) as master, pod(run, 1, port) as worker:
        master.at_step(first + 2)
        assert f"going on after step {first}" in master.err
        for process in psutil.process_iter(["cmdline"]):
            if str(run.recipe) in (process.info["cmdline"] or ()) and rank_of(process) == "1":
                process.kill()
        codes = [each.process.wait(timeout=120) for each in (master, worker)]
    assert codes == [132, 132], master.err + worker.err
