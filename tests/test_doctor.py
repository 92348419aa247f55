"""`march-search doctor` finds what is broken, suggests a fix, and leaves nothing behind."""

import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest
from helpers.trials import alive, wait_until

from march_search.commands import doctor
from march_search.doctor import checks
from march_search.doctor.bench import Bench, Finding, row


def start(folder: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """Start the command with its temporary files in `folder`."""
    command = [sys.executable, "-m", "march_search", "doctor", *arguments]
    environment = os.environ | {"TMPDIR": str(folder), "PATH": "/nonexistent"} | variables
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def first_child() -> Iterator[Callable[["subprocess.Popen[str]"], int]]:
    """A function that waits for a doctor's first child and returns its process ID."""
    started: list[subprocess.Popen[str]] = []

    def wait(process: "subprocess.Popen[str]") -> int:
        started.append(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert wait_until(children.read_text, 60, 0.002)
        return int(children.read_text().split()[0])

    yield wait
    for process in started:
        process.kill()
        process.communicate()


def test_a_healthy_machine_passes_all_checks(tmp_path: Path) -> None:
    names = ["libraries", "compiler", "disk", "devices", "fp32-zero3", "bf16-zero2", "trial", "two-ranks"]
    root = tmp_path / "runs"
    process = start(tmp_path, "--format", "json", "--only", ",".join(names), "--root", str(root))
    out, err = process.communicate(timeout=300)
    printed = json.loads(out)
    checks = {check["check"]: check for check in printed["checks"]}
    assert (process.returncode, printed["schema_version"], printed["passed"]) == (0, 1, True), checks
    assert list(checks) == names
    assert [line.split()[1] for line in err.splitlines()] == names
    assert checks["libraries"]["values"]["torch"] == metadata.version("torch")
    assert checks["compiler"]["state"] == "note"
    assert checks["disk"]["values"]["write_bytes_per_second"] > 0
    assert checks["devices"]["values"]["fp32_flops"] > 1e8
    for name, most in (("fp32-zero3", 1e-5), ("bf16-zero2", 1e-4), ("two-ranks", 1e-5)):
        assert 0 <= checks[name]["values"]["difference"] <= most == checks[name]["values"]["tolerance"]
    assert checks["two-ranks"]["values"]["losses"][-1] < checks["trial"]["values"]["losses"][0] - 0.3
    assert checks["trial"]["values"]["first_step_seconds"] > checks["trial"]["values"]["step_seconds"] > 0
    assert list(tmp_path.glob("march-search-*")) == []
    assert not root.exists()


def test_a_broken_check_is_one_failed_row_with_a_fix(tmp_path: Path, first_child: Callable[..., int]) -> None:
    (tmp_path / "file").touch()
    checks = ("--only", "python,disk,fp32-zero1,compiler", "--root", str(tmp_path / "file" / "runs"))
    process = start(tmp_path, *checks, COLUMNS="80")
    os.kill(first_child(process), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    assert words.startswith("2 checks of 4 failed")
    assert "cannot be written: Not a directory. Fix: choose another folder with --root" in words
    assert "fp32-zero1 failed the process was killed by SIGKILL: " in words
    assert "Fix: rerun with --only fp32-zero1; if it fails again, create a new environment" in words
    assert "python ok " in words
    assert "compiler note no C++ compiler found; needed only for compile" in words


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_doctor_leaves_no_process_behind(
    tmp_path: Path, first_child: Callable[..., int], signum: int, code: int
) -> None:
    process = start(tmp_path, "--only", "fp32-zero1")
    child = Path(f"/proc/{first_child(process)}")
    process.send_signal(signum)
    assert process.wait(timeout=30) == code
    wait_until(lambda: not child.exists() and not alive(str(tmp_path)), 5)  # a new child is not named after it yet
    assert alive(str(tmp_path)) == []
    assert signum == signal.SIGKILL or list(tmp_path.glob("march-search-*")) == []


def test_a_check_that_hangs_is_killed_and_reported(tmp_path: Path) -> None:
    line = row("hung", lambda: _hung(tmp_path))
    assert line["state"] == "failed"
    assert line["text"] == (
        "did not finish within 1 s and was killed (see --timeout); the last line of its log: waiting for nothing"
    )
    assert alive(str(tmp_path)) == []


def _hung(folder: Path) -> Finding:
    """A check whose process waits forever, like a rank in a broken process group."""
    code = "import time; print('waiting for nothing', flush=True); time.sleep(1000)"
    Bench(folder, 1).run((sys.executable, "-c", code), folder / "hung", "found.json")
    raise AssertionError("the process ended")


def test_a_process_without_a_result_has_failed(tmp_path: Path) -> None:
    line = row("silent", lambda: Finding("ok", str(Bench(tmp_path, 60).run((sys.executable, "-c", ""), tmp_path, "a"))))
    assert (line["state"], line["text"]) == ("failed", "the process exited with code 0 without a result")


def test_an_unknown_check_is_a_one_line_error(tmp_path: Path) -> None:
    process = start(tmp_path, "--only", "python,fp32-zero")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == 'march-search: --only: unknown check "fp32-zero". Did you mean "fp32-zero3"?\n'


def test_old_and_missing_libraries_are_named_with_the_command_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy", "torch>=99", "a-library-nobody-has>=1", 'pytest>=99; extra == "test"']
    monkeypatch.setattr(metadata, "requires", lambda _: needs)
    found = checks.libraries()
    assert found.state == "failed"
    assert found.text == (
        f"torch {metadata.version('torch')} (requires >=99); a-library-nobody-has missing (requires >=1)"
    )
    assert found.fix == "pip install 'torch>=99' 'a-library-nobody-has>=1'"


def test_an_old_python_and_a_small_disk_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
    assert checks.python().state == "failed"
    assert checks.python().text == "3.9.1 (requires >=3.11)"
    monkeypatch.setattr(checks, "ROOM_BYTES", 10**18)
    assert checks.disk(tmp_path).state == "note"
    assert "choose a --root with 10 GB" in checks.disk(tmp_path).fix


def test_a_gpu_that_torch_does_not_see_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(checks, "_NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = checks.devices(Bench(tmp_path, 300))
    assert found.state == "failed"
    assert found.text.startswith("an NVIDIA driver is installed, but torch ")
    assert "CUDA_VISIBLE_DEVICES" in found.fix


WRONG_STEPS = [{"gradient_clipping": 0.0}, {"gradient_clipping": 1.0}, {"epsilon": 1e-8}, {"weight_decay": 0.0}]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("wrong", WRONG_STEPS, ids=str)
def test_an_error_in_any_part_of_a_step_shows_in_the_losses(precision: str, wrong: dict) -> None:
    from march_search.training import parity

    config = parity.settings(precision, 1)
    right, norms = parity.plain_losses(config)
    other, _ = parity.plain_losses(replace(config, training=replace(config.training, **wrong)))
    assert min(norms) > 2 * config.training.gradient_clipping
    found = checks.agreement("both", other, right, precision, {})
    assert found.state == "failed"
    assert found.text.startswith("both differ by ")
    assert found.fix.startswith("losses of trials cannot be trusted here: ")


ENGINE = """
import json
from march_search.training import loop, parity
built = []
make = loop._engine
loop._engine = lambda *arguments: built.append(make(*arguments)) or built[-1]
found = parity.compare("bf16", 1)
print(json.dumps(found | {"timer": built[0].tput_timer.config.enabled}))
"""


def test_bf16_gradients_are_accumulated_and_reduced_in_fp32_at_every_zero_stage() -> None:
    ended = subprocess.run([sys.executable, "-c", ENGINE], capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["update_difference"] < 1e-6  # 1e-3 if ZeRO 1 reduces in bf16
    assert found["engine"] == found["torch"]  # to the last bit
    assert found["timer"] is False  # it would wait for the device twice per micro batch


def test_an_update_that_differs_fails_although_the_losses_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"device": "cpu", "engine": [2.0], "torch": [2.0], "gradient_norms": [2.0], "clipping": 0.5}
    for apart, state in ((5e-7, "ok"), (1.2e-3, "failed"), (math.nan, "failed")):
        answer = measured | {"update_difference": apart}
        monkeypatch.setattr(Bench, "work", lambda *_, answer=answer: answer)
        found = checks.parity(Bench(tmp_path, 300), "bf16", 1)
        assert found.state == state
    assert found.text == "DeepSpeed and plain torch on cpu differ by nan of an update (allowed: 1e-05)"


def test_losses_agree_within_the_tolerance_of_the_precision() -> None:
    assert checks.agreement("both", [2.0, 2.0001], [2.0, 2.0], "bf16", {}).state == "ok"
    assert checks.agreement("both", [2.0, 2.001], [2.0, 2.0], "fp32", {}).state == "failed"
    assert checks.agreement("both", [2.0], [2.0], "fp32", {}).text == "both have equal losses (allowed: 1e-05)"
    assert "a loss is not finite" in checks.agreement("both", [math.nan], [2.0], "bf16", {}).text


@pytest.mark.parametrize(("bf16", "state"), [(1e9, "note"), (40e9, "ok")])
def test_a_cpu_without_instructions_for_bf16_is_told_to_use_fp32(bf16: float, state: str) -> None:
    measured = {"gpus": [], "torch": "2", "cores": 2, "threads": 2, "memory_bytes": 8e9, "fp32_flops": 60e9}
    bench = mock.Mock(work=lambda _: measured | {"bf16_flops": bf16})
    finding = checks.devices(bench)
    assert finding.state == state
    assert ("bf16 is 60 times slower than fp32" in finding.text) == (state == "note")
    assert ('precision = "fp32"' in finding.fix) == (state == "note")


def test_the_help_names_the_checks_that_run(tmp_path: Path) -> None:
    assert tuple(doctor._checks(mock.Mock(), tmp_path)) == doctor.CHECKS
