"""Ranks that other programs start: DeepSpeed's launcher for real on this machine, several hosts and srun by command."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import alive, lines, result, run_trial, start_trial
from test_training import wait_for_step

from march_search.config import DevicesConfig
from march_search.errors import ConfigError, TrialError
from march_search.training import launch

MakeTrial = Callable[..., Path]


def launched(folder: Path, **devices: object) -> Path:
    """The trial, with its two ranks started by DeepSpeed's launcher."""
    hostfile = folder / "hosts"
    hostfile.write_text("localhost slots=2\n")
    config = json.loads((folder / "trial.json").read_text())
    config["devices"] |= {"ranks": 2, "launcher": "deepspeed", "hostfile": str(hostfile)} | devices
    (folder / "trial.json").write_text(json.dumps(config))
    return folder


def wait_for_file(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until the process has written the file."""
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)


def test_deepspeeds_launcher_starts_ranks_that_stop_together_and_end_as_our_own(
    make_trial: MakeTrial, straight_on_two: Path
) -> None:
    folder = launched(make_trial("launched"))
    process = start_trial(folder)
    wait_for_file(folder / "launch.json", process)  # ranks look at it once a second, and this trial is over in one
    process.terminate()
    assert process.wait(timeout=60) == 143, (folder / "trial.log").read_text()
    assert alive(str(folder)) == []
    told = json.loads((folder / "launch.json").read_text())
    assert f"deepspeed is starting 2 ranks, which meet on port {told['port']}.\n" in (folder / "trial.log").read_text()
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    assert result(folder)["ranks"] == 2
    for kind in ("train", "evaluation"):
        assert lines(folder, kind) == lines(straight_on_two, kind)
    weights = [(one / "weights.safetensors").read_bytes() for one in (folder, straight_on_two)]
    assert weights[0] == weights[1]


def test_launched_ranks_save_and_end_when_the_one_that_launched_them_is_killed(make_trial: MakeTrial) -> None:
    folder = launched(make_trial("killed", tokens=9000 * 256))
    process = start_trial(folder)
    wait_for_step(folder, 2, process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while alive(str(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(str(folder)) == []
    assert list((folder / "checkpoints").glob("step-*/manifest.json"))


def test_ranks_started_by_hand_on_two_hosts_meet_where_their_launcher_says(
    make_trial: MakeTrial, straight_on_two: Path
) -> None:
    folder = make_trial("by-hand", ranks=2, tokens=512)
    (folder / "hosts").write_text("one slots=1\ntwo slots=1\n")
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(folder / "hosts"), "--no_ssh"]
    port = str(launch.choose_port(None))
    where = ["--master_addr", "127.0.0.1", "--master_port", port, "--no_local_rank", "--module"]
    nodes = [
        subprocess.Popen([*runner, "--node_rank", str(n), *where, "march_search.training", str(folder)], cwd=folder)
        for n in range(2)
    ]
    assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    assert result(folder)["ranks"] == 2
    assert lines(folder, "train") == lines(straight_on_two, "train")[:2]


def test_what_is_started_on_several_hosts(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# ours\ngpu-1 slots=8\ngpu-2 slots=8\n")
    devices = DevicesConfig(ranks=16, nodes=2, launcher="deepspeed", hostfile=str(hosts))
    command = " ".join(launch.command(devices, tmp_path, 29501, ["--until", "512"]))
    assert command == (
        f"{sys.executable} -m deepspeed.launcher.runner --hostfile {hosts} --no_ssh_check --num_nodes 2 --num_gpus 8 "
        "--master_addr gpu-1 --master_port 29501 --no_local_rank --module march_search.training "
        f"{tmp_path} --until 512"
    )
    srun = launch.command(DevicesConfig(ranks=16, nodes=2, launcher="srun"), tmp_path, 29501, [])
    assert " ".join(srun) == (
        "srun --nodes 2 --ntasks 16 --ntasks-per-node 8 --kill-on-bad-exit=1 "
        f"{sys.executable} -m march_search.training {tmp_path}"
    )
    hosts.write_text("gpu-1 slots=8\n")
    with pytest.raises(TrialError, match=r"hosts: has 1 hosts, but \[devices\] nodes is 2\.$"):
        launch.command(devices, tmp_path, 29501, [])


@pytest.mark.parametrize(
    ("nodes", "first"), [("n1", "n1"), ("n1,n2", "n1"), ("gpu-[03-05,9]", "gpu-03"), ("a[7,9],b2", "a7")]
)
def test_what_srun_tells_becomes_what_torch_reads(nodes: str, first: str) -> None:
    slurm = {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": nodes}
    assert launch.rank_environment(slurm | {launch.SRUN: "29501"}) == {
        "RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": first, "MASTER_PORT": "29501",
    }  # fmt: skip


def test_a_trial_whose_launcher_is_missing_or_whose_port_is_taken_says_so_in_one_line(make_trial: MakeTrial) -> None:
    folder = launched(make_trial("odd"), launcher="srun", hostfile=None)
    ended = run_trial(folder)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "march-search: cannot start srun: No such file or directory."
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            launch.choose_port(port)
    assert str(caught.value) == f"[devices]: port {port}: Address already in use. Omit port to use a free one."


def test_a_rank_in_whose_place_others_were_started_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from march_search.training import launch; folder = pathlib.Path(sys.argv[1]);"
        "launch.announce(folder, {'id': 'a'}); orders = launch.Orders(folder);"
        "launch.announce(folder, {'id': 'b'}); orders.signum(); print('still here')"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "")
    launch.announce(tmp_path, {"id": "c"}, stop=signal.SIGINT)
    assert launch.StopOrders(tmp_path).signum() == signal.SIGINT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 3, "nodes": 2}, "3 ranks cannot be divided evenly between 2 nodes."),
        ({"ranks": 2, "nodes": 2}, '2 nodes need launcher = "deepspeed" and a hostfile, or launcher = "srun".'),
        ({"launcher": "deepspeed"}, 'launcher = "deepspeed" and hostfile must be set together.'),
        ({"hostfile": "hosts"}, 'launcher = "deepspeed" and hostfile must be set together.'),
        ({"launcher": "srun", "parallel_trials": 2}, "parallel_trials must be 1, not 2."),
    ],
)
def test_launches_that_cannot_be_meant_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DevicesConfig(**settings)
    assert str(caught.value).startswith("[devices]: ")
    assert str(caught.value).endswith(message)
