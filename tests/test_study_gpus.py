"""Workers on one machine use different GPUs. The list of GPUs is faked; locks and processes are real."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from march_search.config import DevicesConfig
from march_search.errors import ConfigError, StorageError
from march_search.planning import gpus
from march_search.storage import trial_process

UUIDS = ["GPU-a", "GPU-b", "MIG-c/1"]
WORKER = f"""
import os, sys
from march_search.config import DevicesConfig
from march_search.planning import gpus
gpus._found = lambda: ({UUIDS!r}, "", True)
gpus.claim(DevicesConfig(kind="cuda", ranks=int(sys.argv[1])))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine with three free GPUs."""
    monkeypatch.setattr(gpus, "_found", lambda: (UUIDS, "", True))
    monkeypatch.setattr(gpus.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield
    while gpus._HELD:
        gpus._HELD.pop().close()


def worker(ranks: int) -> "subprocess.Popen[str]":
    """Start a process that claims GPUs and prints which."""
    command = [sys.executable, "-c", WORKER, str(ranks)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a worker."""
    process.kill()
    process.communicate()


def test_each_worker_has_gpus_of_its_own_until_it_dies() -> None:
    first = worker(1)
    assert first.stdout is not None
    assert first.stdout.readline() == "0\n"
    gpus.claim(DevicesConfig(kind="cuda", ranks=1, parallel_trials=2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert [trial_process._gpus(1, slot) for slot in (0, 1)] == ["1", "2"]
    while gpus._HELD:
        gpus._HELD.pop().close()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with pytest.raises(
        ConfigError, match="needs 3 GPUs, but only 2 of the 3 here are free; other march-search workers"
    ):
        gpus.claim(DevicesConfig(kind="cuda", ranks=3))
    kill(first)
    gpus.claim(DevicesConfig(kind="cuda", ranks=3))  # the refused claim holds nothing
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"


@pytest.mark.parametrize("planted", ["a symlink", "a folder of another user"])
def test_locks_are_not_written_where_another_user_planted_the_folder(tmp_path: Path, planted: str) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / f"march-search-gpus-{os.getuid()}"
    theirs.mkdir()
    if planted == "a symlink":
        folder.symlink_to(theirs)
    elif os.getuid():
        pytest.skip("only root can give a folder to another user")
    else:
        theirs.rename(folder)
        os.chown(folder, 12345, 12345)
    with pytest.raises(StorageError, match=f"{folder.name}: is not a folder of this user, so its files cannot be"):
        gpus.claim(DevicesConfig(kind="cuda"))
    assert list((theirs if theirs.exists() else folder).iterdir()) == []


def test_cuda_visible_devices_of_the_user_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    first = worker(2)
    assert first.stdout is not None
    assert first.stdout.readline() == "4,6\n"
    gpus.claim(DevicesConfig(kind="cuda"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    kill(first)


def test_mig_instances_of_one_gpu_are_claimed_by_their_own_uuids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpus, "_found", lambda: (["GPU-parent"], "", True)
    )  # some drivers report the GPU, not the instance
    for name in ("MIG-1", "MIG-2"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        gpus.claim(DevicesConfig(kind="cuda"))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == name
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    with pytest.raises(ConfigError, match="only 0 of the 1 here are free"):
        gpus.claim(DevicesConfig(kind="cuda"))


def test_an_abbreviated_uuid_is_the_same_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_found", lambda: (["8932f937-d72c-4106-c12f-20bd9faed9f6"], "", True))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    gpus.claim(DevicesConfig(kind="cuda"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-8932f937"
    for name in ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        with pytest.raises(ConfigError, match="only 0 of the 1 here are free"):
            gpus.claim(DevicesConfig(kind="cuda"))


def test_the_reason_why_torch_finds_no_gpu_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    uuids, reason, _ = gpus._found()
    if uuids:
        pytest.skip("this machine has a GPU")
    assert reason  # such as: Torch not compiled with CUDA enabled
    with pytest.raises(ConfigError) as refused:
        gpus.claim(DevicesConfig(kind="cuda"))
    assert f"torch finds 0 here ({reason}); run it on another machine" in str(refused.value)


def test_the_reason_why_torch_cannot_be_loaded_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    (tmp_path / "torch.py").write_text('raise ImportError("libcudart.so.13: cannot open shared object file")\n')
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    with pytest.raises(ConfigError, match=r"torch finds 0 here \(ImportError: libcudart.so.13: cannot open"):
        gpus.claim(DevicesConfig(kind="cuda"))


@pytest.mark.parametrize(
    "devices",
    [
        DevicesConfig(kind="cpu"),
        DevicesConfig(kind="cuda", ranks=6, nodes=2, launcher="srun"),
        DevicesConfig(kind="auto", ranks=4),
    ],
)
def test_other_devices_are_not_claimed(devices: DevicesConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_DRIVERS", (Path("/"),))
    gpus.claim(devices)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert gpus._HELD == []
