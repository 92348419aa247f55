"""The acceptance run for GPUs: a rehearsal of all parts on a CPU, its settings, and what it installs."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from gpu_acceptance import agreement, bundle, exact, install, survival, throughput  # noqa: E402
from gpu_acceptance.acceptance_run import AcceptanceRun, trial_settings  # noqa: E402
from gpu_acceptance.agreement import SHAPES, SIZE, verdict  # noqa: E402
from gpu_acceptance.scale import FULL, SCALES, Scale  # noqa: E402
from gpu_acceptance.toggles import COMPILED, LEFT_OUT_TINY, SETTINGS  # noqa: E402
from pip._vendor.packaging.specifiers import SpecifierSet  # noqa: E402

from march_search import Architecture  # noqa: E402
from march_search.cost.devices import parse_device  # noqa: E402
from march_search.cost.memory import memory  # noqa: E402
from march_search.cost.setup import study_setup  # noqa: E402
from march_search.errors import TrialError  # noqa: E402


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with this Python."""
    command = ["bash", str(REPOSITORY / "scripts" / "gpu_acceptance.sh"), *arguments]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)


@pytest.mark.torture
def test_a_rehearsal_on_a_cpu_passes_in_all_parts(tmp_path: Path) -> None:
    ended = run_script("all", "--out", str(tmp_path), "--device", "cpu", "--scale", "tiny")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("exact", "speed", "survival")}
    for name, part in parts.items():
        assert f"{name}: {len(part['rows'])} rows, 0 failed" in ended.stdout
        assert all(row["result"] in ("ok", "skipped") for row in part["rows"])
    assert {*SHAPES} <= {row["name"] for row in parts["exact"]["rows"]}
    rows = {row["name"]: row for row in parts["speed"]["rows"]}
    assert {*SETTINGS} - LEFT_OUT_TINY - COMPILED <= {*rows}
    assert rows["attention: math"]["loss_difference"] < 1e-4
    assert rows["Hugging Face T5"]["losses"] == pytest.approx(rows["as trained"]["losses"], abs=1e-3)
    survived = {row["name"]: row for row in parts["survival"]["rows"]}
    assert survived["out of memory"]["halvings"] >= 1
    assert survived["killed and resumed, deterministic"]["is_equal"]
    assert (tmp_path / "report.html").is_file()
    constants = json.loads((tmp_path / "constants.json").read_text())
    assert constants["replace"].keys() == constants["assumed"].keys()
    assert constants["sessions"]


def test_the_full_scale_needs_a_gpu_and_says_how_to_rehearse(tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine may have a GPU")
    ended = run_script("exact", "--out", str(tmp_path))
    assert ended.returncode == TrialError.exit_code
    assert ended.stderr.strip().endswith("rehearse with --device cpu --scale tiny.")


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_settings_of_every_scale_are_valid(scale: Scale) -> None:
    a = Architecture.parse(scale.shape)
    a.to_huggingface()
    for shape in (scale.shape, *scale.other_shapes, scale.survivor, scale.broad, *scale.study_shapes):
        assert Architecture.parse(shape).vocab_size == scale.data.vocab_size or shape == scale.broad
    assert Architecture.parse(scale.broad).vocab_size == scale.data.vocab_size
    assert len(FULL.other_shapes) == len(FULL.study_shapes) == 4
    for micro_batch in scale.micro_batches:
        assert trial_settings(scale, "cpu", Path("x"), scale.shape, scale.batch_sequences, micro_batch, 3).batch
    assert len(SHAPES) == 12
    assert all(Architecture.parse(SIZE + words) for words in SHAPES.values())


def test_the_full_scale_is_what_its_documentation_says_and_fits_80_gb() -> None:
    assert FULL.batch_sequences * FULL.data.sequence_length == 2**20
    assert Architecture.parse(FULL.shape) == Architecture()
    device = parse_device("H100")
    sizes = [(FULL.shape, micro_batch) for micro_batch in FULL.micro_batches]
    for shape, micro_batch in (*sizes, *((shape, FULL.middle) for shape in FULL.other_shapes)):
        config = trial_settings(FULL, "cuda", Path("x"), shape, FULL.batch_sequences, micro_batch, 3)
        assert memory(Architecture.parse(shape), study_setup(config, device)).total < 0.9 * device.memory_bytes
    config = trial_settings(FULL, "cuda", Path("x"), FULL.broad, FULL.broad_sequences, FULL.broad_sequences, 2)
    needed = memory(Architecture.parse(FULL.broad), study_setup(config, device))
    assert needed.activations > 3 * (needed.total - needed.activations)  # a smaller micro batch helps


def place(tmp_path: Path, seconds: float) -> AcceptanceRun:
    """Return a run that has so many seconds."""
    deadline = time.monotonic() + seconds
    return AcceptanceRun(out=tmp_path, scale_name="tiny", kind="cpu", store=tmp_path, deadline=deadline)


def test_a_failed_experiment_is_a_row_and_one_without_time_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> dict[str, Any]:
        raise TrialError("the process was killed by SIGKILL.")

    work = place(tmp_path, 20)
    work.known = parse_device("H100")
    assert work.attempt("one", 5, lambda: {"finding": "good"})
    assert not work.attempt("two", 5, fails)
    assert not work.attempt("three", 60, fails)
    assert work.finish("speed", survival.COLUMNS) == 1
    assert "speed: 3 rows, 1 failed, 1 skipped, on H100" in capsys.readouterr().out
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["result"] for row in rows] == ["ok", "failed", "skipped"]
    assert rows[1]["finding"] == "the process was killed by SIGKILL"
    assert not (tmp_path / "unfinished.json").exists()


def test_the_math_backend_and_wrong_numbers_are_failures_on_a_gpu() -> None:
    good = {"fp32": {"logits": 1e-6, "gradients": 1e-5}, "bf16": {"logits": 0.01, "gradients": 0.05}}
    row: dict[str, Any] = good | {"bf16_cpu": good["bf16"], "attention": ["flash"]}
    assert verdict(row, "cuda") == ("ok", "agrees")
    assert verdict(row | {"attention": ["math"]}, "cpu")[0] == "ok"
    assert verdict(row | {"attention": ["flash", "math"]}, "cuda") == ("failed", "attention uses the math backend")
    assert verdict(row | {"fp32": {"logits": float("nan"), "gradients": 0.0}}, "cuda")[0] == "failed"
    assert verdict(row | {"bf16": {"logits": 0.03, "gradients": 0.05}}, "cuda") == (
        "failed",
        "logits are worse in bf16",
    )


def test_flex_attention_must_agree_with_fp64() -> None:
    distances = {"logits": 0.003, "queries": 0.004, "keys": 0.005, "values": 0.002, "bias": 0.006}
    good = exact.flex_row("flex, decoder", distances)
    assert (good["finding"], good["logits"], good["gradients"]) == ("agrees", 0.003, 0.006)
    failed = exact.flex_row("flex, heads of 8", {"error": "no kernel"})
    assert (failed["result"], failed["finding"]) == ("failed", "no kernel")
    for wrong in (0.03, float("nan")):
        bad = exact.flex_row("flex, decoder", distances | {"bias": wrong})
        assert (bad["result"], bad["finding"]) == ("failed", "too far from fp64: bias")


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own code
def test_the_comparison_of_flex_attention_runs_on_the_dense_passes_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torch.nn.attention.flex_attention as module

    from march_search.model import flex

    monkeypatch.setattr(module, "_validate_device", lambda *_: None, raising=False)
    eager = torch.compile(flex._biased, backend="eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr(flex, "_compiled", lambda: eager)
    small = {name: (2, n // 8, m // 8, k, c) for name, (_, n, m, k, c) in agreement.FLEX_CASES.items() if n == m}
    monkeypatch.setattr(agreement, "FLEX_CASES", small | {"no-op key": (2, 9, 10, 16, True)})
    rows = agreement.flex_agreement(Path(), "cpu")["rows"]
    assert len(rows) == len(small) + 1
    assert all(exact.flex_row(name, found)["finding"] == "agrees" for name, found in rows.items())


def test_speed_is_compared_only_with_the_same_shape() -> None:
    base = {"name": "as trained", "shape": "A", "tokens_per_second": 100.0, "losses": [3.0, 2.0]}
    assert throughput.compared(base | {"tokens_per_second": 150.0}, base) == {"speedup": 1.5}
    assert throughput.compared(base | {"shape": "B"}, base) == {}
    other = throughput.compared(base | {"name": "Hugging Face T5", "losses": [3.0, 2.5]}, base)
    assert other == {"speedup": 1.0, "finding": "loss differs from ours by 5.0e-01"}
    memory_row = {"peak_memory_bytes": 110, "predicted_memory_bytes": 100, "peak_reserved_memory_bytes": 120}
    assert throughput.compared({"name": "x"} | memory_row, base) == {"memory_error": pytest.approx(0.1)}


def test_a_bundle_leaves_out_files_and_its_wheels_are_installed_where_they_are_missing(tmp_path: Path) -> None:
    wheel, small = tmp_path / "numpy-0.1-py3-none-any.whl", tmp_path / "small.whl"
    record = "numpy/a.py,,\nnumpy/tests/b.py,,\nnumpy-0.1.dist-info/RECORD,,\n"
    needs = "Requires-Dist: Some.Package-Name>=2\nRequires-Dist: other; extra == 'all'\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("numpy/a.py", "x = 1\n")
        archive.writestr("numpy/tests/b.py", "y = 1\n")
        archive.writestr("numpy-0.1.dist-info/METADATA", needs)
        archive.writestr("numpy-0.1.dist-info/RECORD", record)
    bundle.shrink(wheel, small)
    with zipfile.ZipFile(small) as archive:
        names = ["numpy/a.py", "numpy-0.1.dist-info/METADATA", "numpy-0.1.dist-info/RECORD"]
        assert archive.namelist() == names
        assert b"tests" not in archive.read("numpy-0.1.dist-info/RECORD")
    assert install.requirements([small]) == {"some_package_name": SpecifierSet(">=2")}
    assert install.is_met(wheel, {})
    assert not install.is_met(wheel, {"numpy": SpecifierSet("<1.0")})
    assert not install.is_met(tmp_path / "no_such_package-1.0-py3-none-any.whl", {})


def test_packages_of_a_bundle_are_pinned_and_checks_that_are_left_out_exist() -> None:
    from march_search.commands.doctor import _checks

    pins = {line.split("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}
    assert {name.lower() for name in bundle.PACKAGES} <= pins
    names = _checks(None, Path()).keys()
    assert all(left <= {*names} for left in exact.LEFT_OUT.values())


def test_a_distance_that_is_not_finite_counts_as_far_and_can_be_written() -> None:
    wrong = [torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])]
    found = agreement._distances({"gradients": wrong}, {"gradients": [torch.ones(3), torch.ones(3)]})
    assert found["gradients"] >= 1e30
    json.dumps(found, allow_nan=False)


def test_an_interrupted_installation_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    wheel = tmp_path / "wheels" / "no_such_package_here-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "no_such_package_here-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: no\nVersion: 1.0\n"
        )
    assert install.main(tmp_path, tmp_path / "site") != 0  # pip refuses the wheel, which has no RECORD
    assert not (tmp_path / "site").exists()
