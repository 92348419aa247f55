"""Ranks started by other programs: by DeepSpeed's launcher here, and the commands for several hosts and srun."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.trials import (
    MakeTrial,
    alive,
    change_config,
    lines,
    result,
    run_trial,
    start_trial,
    wait_for_step,
    wait_until,
)

from march_search.config import DevicesConfig
from march_search.errors import ConfigError, TrialError
from march_search.training import launch


def launched(folder: Path, **devices: object) -> Path:
    """Let DeepSpeed's launcher start the two ranks of a trial."""
    hostfile = folder / "hosts"
    hostfile.write_text("localhost slots=2\n")
    settings = {"ranks": 2, "launcher": "deepspeed", "hostfile": str(hostfile)}
    return change_config(folder, "devices", **(settings | devices))


def test_ranks_of_deepspeeds_launcher_stop_and_resume_to_the_same_bits(
    make_trial: MakeTrial, undisturbed_on_two: Path
) -> None:
    folder = launched(make_trial("launched"))
    process = start_trial(folder)
    assert wait_until((folder / "launch.json").exists)  # at once: ranks read it once a second, and this trial is short
    process.terminate()
    assert process.wait(timeout=60) == 143, (folder / "trial.log").read_text()
    assert alive(str(folder)) == []
    announced = json.loads((folder / "launch.json").read_text())
    assert (
        f"deepspeed is starting 2 ranks, which meet on port {announced['port']}.\n"
        in (folder / "trial.log").read_text()
    )
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    assert result(folder)["ranks"] == 2
    for kind in ("train", "evaluation"):
        assert lines(folder, kind) == lines(undisturbed_on_two, kind)
    weights = [(one / "weights.safetensors").read_bytes() for one in (folder, undisturbed_on_two)]
    assert weights[0] == weights[1]


@pytest.mark.torture
def test_launched_ranks_save_and_exit_when_their_supervisor_is_killed(make_trial: MakeTrial) -> None:
    folder = launched(make_trial("killed", tokens=9000 * 256))
    process = start_trial(folder)
    wait_for_step(folder, 2, process)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(str(folder)))
    assert alive(str(folder)) == []
    assert list((folder / "checkpoints").glob("step-*/manifest.json"))


@pytest.mark.torture
def test_ranks_started_by_hand_on_two_hosts_meet_at_the_launchers_address(
    make_trial: MakeTrial, undisturbed_on_two: Path
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
    assert lines(folder, "train") == lines(undisturbed_on_two, "train")[:2]


def test_the_commands_for_several_hosts(tmp_path: Path) -> None:
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
def test_the_variables_of_srun_become_those_of_torch(nodes: str, first: str) -> None:
    slurm = {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": nodes}
    assert launch.rank_environment(slurm | {launch.SRUN: "29501"}) == {
        "RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": first, "MASTER_PORT": "29501",
    }  # fmt: skip


def test_a_missing_launcher_and_a_taken_port_are_one_line_errors(make_trial: MakeTrial) -> None:
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


def test_a_rank_of_an_earlier_launch_exits_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from march_search.training import launch; folder = pathlib.Path(sys.argv[1]);"
        "launch.announce(folder, {'id': 'a'}); orders = launch.StopOrders(folder);"
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
def test_invalid_launch_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DevicesConfig(**settings)
    assert str(caught.value).startswith("[devices]: ")
    assert str(caught.value).endswith(message)
