"""Ranks started by other programs: by DeepSpeed's launcher here, and the commands for several hosts and srun."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import command_in_process, one_line_error
from helpers.trials import (
    MakeTrial,
    alive,
    change_config,
    child_processes,
    lines,
    result,
    run_trial,
    start_trial,
    wait_for_step,
    wait_until,
)

from march_search.config import DevicesConfig
from march_search.config.hostfile import addresses
from march_search.config.shipped import shipped_folder
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
    hosts.write_text("me@gpu-1 slots=8\nme@gpu-2 slots=8\n")
    assert "--master_addr gpu-1 " in " ".join(launch.command(devices, tmp_path, 29501, []))


HOSTS = DevicesConfig(ranks=4, nodes=2, launcher="deepspeed", hostfile="hosts")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("h1 slots=2\nh2 slots=2\n", ["h1", "h2"]),
        ("# ours\n\n  h1 \t slots=2   # first\r\nh2.a-b.org slots=9 max=9\nh3 slots=2", ["h1", "h2.a-b.org", "h3"]),
        ("me@10.0.0.1 slots=2\nme@10.0.0.2 slots=2\n", ["10.0.0.1", "10.0.0.2"]),
        ("fe80::1 slots=2\n::1 slots=2\n", ["fe80::1", "::1"]),
    ],
)  # fmt: skip
def test_host_files_are_read_as_deepspeed_reads_them(text: str, found: list[str], tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    (tmp_path / "hosts").write_text(text, newline="")
    assert addresses(replace(HOSTS, hostfile=str(tmp_path / "hosts"))) == found
    assert [host.rpartition("@")[2] for host in fetch_hostfile(str(tmp_path / "hosts"))] == found


@pytest.mark.parametrize(
    ("text", "faults", "refused_by_deepspeed"),
    [
        ("h1 lots=8\nh2 slots=2", ['line 1: "h1 lots=8" must be "name slots=8".'], True),
        ("h1:8\nh2 slots=2", ['line 1: "h1:8" must be "name slots=8".'], True),
        ("h1:8 slots=8\nh2 slots=2", ['line 1: invalid host "h1:8"; write "name slots=8".'], False),
        ("h1\nh2 slots=two\nh3 slots=2", ['line 1: "h1" must', 'line 2: "h2 slots=two" must'], True),
        ("h1 slots=2\nh2 slots=2\nh1 slots=2", ['line 3: "h1" has more than one line.'], True),
        ("h1 slots=2x\nh2 slots=2", ['line 1: "h1 slots=2x" must'], False),
        ("\ufeffh1 slots=2\nh2 slots=2", [r'line 1: invalid host "\ufeffh1"'], False),
        ("me@ slots=2\nh2 slots=2", ['line 1: invalid host "me@"'], False),
        ("# nothing", ["has 0 hosts, but [devices] nodes is 2."], True),
        ("h1 slots=8", ["has 1 hosts, but [devices] nodes is 2."], False),
        ("h1 slots=2\nh2 slots=1\nh3 slots=0", ["h2 has 1 slots, but [devices] ranks (4) and nodes (2) need 2"], False),
    ],
)
def test_host_files_that_deepspeed_or_the_ranks_cannot_use_are_refused(
    text: str, faults: list[str], refused_by_deepspeed: bool, tmp_path: Path
) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    path = tmp_path / "hosts"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        addresses(replace(HOSTS, hostfile=str(path)))
    for found, expected in zip(caught.value.faults, faults, strict=True):
        assert found.startswith(f"{path}: {expected}")
    if refused_by_deepspeed:
        with pytest.raises(ValueError, match=r"[Hh]ostfile"):
            fetch_hostfile(str(path))


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read: No such file"), (b"h\xff slots=2", "not UTF-8")]
)
def test_a_host_file_that_cannot_be_read_is_named_in_the_dry_run(
    content: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hosts"
    if content is not None:
        path.write_bytes(content)
    study = (shipped_folder("studies") / "cpu-demo.toml").read_text().replace("parallel_trials = 2", "")
    devices = f'[devices]\nlauncher = "deepspeed"\nhostfile = "{path}"'
    (tmp_path / "mine.toml").write_text(study.replace("[devices]", devices))
    ended = command_in_process(capsys)("study", "run", str(tmp_path / "mine.toml"), "--dry-run")
    assert f"{path}: {reason}" in one_line_error(ended)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu-[03-05,9]", "gpu-03"),
        ("a[7,9],b2", "a7"),
        ("n[1-3]-ib", "n1-ib"),
        ("rack[1-2]-node[03,07-09].hpc,login", "rack1-node03.hpc"),
        ("r[10-11]c[0-3]b[2]", "r10c0b2"),
        ("[a,b]-x", "a-x"),
    ],
)
def test_the_variables_of_srun_become_those_of_torch(nodes: str, first: str) -> None:
    slurm = {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": nodes}
    assert launch.rank_environment(slurm | {launch.SRUN: "29501"}) == {
        "RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": first, "MASTER_PORT": "29501",
    }  # fmt: skip


@pytest.mark.parametrize("nodes", ["", ",n1", "n[1-3", "n1]", "n[]", "n[1[2]]"])
def test_a_node_list_that_slurm_would_not_write_is_a_one_line_error(nodes: str) -> None:
    with pytest.raises(TrialError, match=r"^SLURM_STEP_NODELIST: invalid node list \".*\"\.$"):
        launch.first_host(nodes)


@pytest.mark.parametrize("nodes", ["m[01,04-05]", "rack[1-2]-node[03,07-09],login", "gpu-[03-05,9]"])
def test_the_first_host_is_that_of_scontrol(nodes: str, tmp_path: Path) -> None:
    if shutil.which("scontrol") is None:
        assert os.environ.get("CI") != "true", "scontrol is missing: install slurm-client"
        pytest.skip("needs scontrol of Slurm (Debian's package slurm-client)")
    (tmp_path / "slurm.conf").write_text("ClusterName=test\nSlurmctldHost=localhost\n")
    environment = os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
    command = ["scontrol", "show", "hostnames", nodes]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert launch.first_host(nodes) == shown.splitlines()[0]


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
    assert all(fault.startswith("[devices]: ") for fault in caught.value.faults)
    assert any(fault.endswith(message) for fault in caught.value.faults)


EXPANDABLE = "expandable_segments:True"


@pytest.mark.parametrize(
    ("kind", "given", "version", "expected"),
    [
        ("cuda", {}, "2.11.0+cu130", {"PYTORCH_ALLOC_CONF": EXPANDABLE}),
        ("auto", {}, "2.13.0", {"PYTORCH_ALLOC_CONF": EXPANDABLE}),
        ("cuda", {}, "2.9.1", {"PYTORCH_CUDA_ALLOC_CONF": EXPANDABLE}),
        ("cuda", {}, "2.5.1", {"PYTORCH_CUDA_ALLOC_CONF": EXPANDABLE}),
        ("cpu", {}, "2.13.0", {}),
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "2.13.0", {}),
        ("cuda", {"PYTORCH_ALLOC_CONF": ""}, "2.9.1", {}),
    ],
)
def test_the_allocator_grows_its_segments_unless_the_user_configures_it(kind, given, version, expected) -> None:
    assert launch.allocator_environment(kind, given, version) == expected


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the environment of a process from /proc")
@pytest.mark.parametrize(("kind", "count"), [("auto", 1), ("cpu", 0)])
def test_the_process_of_a_rank_has_the_setting_of_the_allocator(
    make_trial: MakeTrial, monkeypatch, kind, count
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    process = start_trial(change_config(make_trial("one"), "devices", kind=kind))
    assert wait_until(lambda: child_processes(process))
    environments = [Path(f"/proc/{pid}/environ").read_text() for pid in child_processes(process)]
    process.terminate()
    process.wait()
    assert [text.count(EXPANDABLE) for text in environments] == [count]
