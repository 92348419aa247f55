"""Findings: which architectures a statement compares, with which uncertainty, and the page that reports them."""

import importlib.util
import math
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import findings as page
import numpy as np
import pytest
from helpers.reference import march_architecture, march_curves, march_runs
from scipy.special import stdtrit

from march_search.analysis.contrasts import contrasts
from march_search.analysis.findings import Answer, family, findings
from march_search.analysis.measurement import Trials
from march_search.analysis.noise import DataNoise, SeedNoise
from march_search.analysis.rate_noise import RECORDED, rate_noise
from march_search.analysis.statements import SAME, STATEMENTS
from march_search.architecture.architecture import Architecture
from march_search.config.shipped import shipped_folder

WIDER = "a wider model with fewer layers is better"
NOTHING = "dropping cross-attention key/value weights costs nothing"


def of(answers: tuple[Answer, ...], statement: str) -> Answer:
    """Return the answer to one statement."""
    [answer] = [answer for answer in answers if answer.statement == statement]
    return answer


def trials(names: list[str], means: list[float], deviation: float | None = 0.001, degrees: float = 100) -> Trials:
    """Return trials of two seeds with equal seed noise; None leaves it out."""
    many = len(names)
    noise = SeedNoise(
        deviations=(deviation or 0.0,) * many, degrees=(degrees,) * many, is_measured=(True,) * many, source="the test"
    )
    return Trials(
        architectures=[Architecture.parse(name) for name in names],
        means=means,
        counts=[2] * many,
        seeds=noise if deviation else None,
        data=None,
    )


LAYERS = ["L4-D96-H3x32-F376-rope-V512", "L2-D128-H4x32-F600-rope-V512", "L1-D192-H6x32-F696-rope-V512"]


def test_a_statement_about_an_ordered_quantity_is_tested_step_by_step() -> None:
    answer = of(findings(trials(LAYERS, [3.34, 3.00, 3.41])), WIDER)
    assert [step.step for step in answer.steps] == ["layers 4 → 2", "layers 2 → 1"]
    assert [step.at_rate.difference for step in answer.steps] == pytest.approx([-0.34, 0.41])
    assert [step.verdict for step in answer.steps] == ["yes", "no"]
    assert (answer.verdict, answer.answer) == ("turns", "turns")
    reversed_order = of(findings(trials(LAYERS[::-1], [3.41, 3.00, 3.34])), WIDER)
    assert [step.step for step in reversed_order.steps] == ["layers 4 → 2", "layers 2 → 1"]


@pytest.mark.parametrize(
    ("means", "summary"),
    [
        ([3.9, 3.5, 3.0], "yes"),
        ([3.0, 3.5, 3.9], "no"),
        ([3.5, 3.0, 3.5], "turns"),
        ([3.5, 3.0, 3.0], "yes in part"),
        ([3.0, 3.0, 3.5], "no in part"),
        ([3.0, 3.0, 3.0], "not separable"),
    ],
)
def test_the_steps_are_summarised(means: list[float], summary: str) -> None:
    assert of(findings(trials(LAYERS, means)), WIDER).answer == summary


def test_the_middle_arm_counts() -> None:
    [statement] = [s for s in STATEMENTS if s.text == WIDER]
    found = contrasts(statement, [Architecture.parse(name) for name in LAYERS])
    assert [one.weights_A.tolist() for one in found] == [[-1, 1, 0], [0, -1, 1]]


def test_every_field_is_equal_in_both_arms_or_named_by_a_statement() -> None:
    named = {field for s in STATEMENTS for field in (*s.equal, *s.varies, s.along)}
    assert {field.name for field in fields(Architecture)} <= {*SAME, *named}
    for statement in STATEMENTS:
        assert ("num_decoder_layers" in statement.varies) == ("layers" in statement.moves)


@pytest.mark.parametrize("change", [{"norm_epsilon": 1e-5}, {"num_decoder_layers": 1}])
def test_arms_that_differ_in_another_field_are_not_compared(change: dict[str, float]) -> None:
    [statement] = [s for s in STATEMENTS if s.text == "gated feed-forward is better"]
    plain, gated = (Architecture.parse(f"L2-D128-H4x32-F400-{kind}-rope-V512") for kind in ("gelu", "geglu"))
    assert len(contrasts(statement, [plain, gated])) == 1
    assert contrasts(statement, [plain, replace(gated, **change)]) == ()


def test_two_groups_have_one_contrast_of_means() -> None:
    names = ["L2-D128-H4x32-F600-rope-V512", "L2-D128-H4x32-F600-gelu-rope-V512"]
    names += [f"L2-D128-H4x32-F400-{gate}-rope-V512" for gate in ("reglu", "geglu", "swiglu")]
    answer = of(findings(trials(names, [3.4, 3.2, 3.1, 3.0, 2.9])), "gated feed-forward is better")
    [step] = answer.steps
    assert (step.step, step.pairs, step.agreeing, answer.answer) == ("", 6, 6, "yes")
    assert step.at_rate.difference == pytest.approx(3.0 - 3.3)


def test_steps_with_the_same_values_are_averaged() -> None:
    names = [name for kind in ("xlayer", "xshared") for name in (f"L4-D96-H3x32-F376-rope-{kind}-V512",)]
    names += [f"L2-D128-H4x32-F600-rope-{kind}-V512" for kind in ("xlayer", "xshared")]
    [step] = of(findings(trials(names, [3.4, 3.3, 3.2, 3.2])), WIDER).steps
    assert (step.step, step.pairs, step.agreeing) == ("layers 4 → 2", 2, 2)
    assert step.at_rate.difference == pytest.approx(-0.15)


def test_the_learning_rate_is_among_the_uncertainties() -> None:
    answer = of(findings(trials(LAYERS, [3.34, 3.29, 3.41])), WIDER)
    assert (answer.verdict, answer.verdict_at_rate) == ("not separable", "turns")
    assert answer.answer == "turns at this rate"
    step = answer.steps[1]
    assert step.at_rate.interval is not None
    assert step.over_rates.interval is not None
    parts = [(0.001**2, 100), ((RECORDED.per_doubling * math.log2(192 / 128)) ** 2, 2), (2 * RECORDED.deviation**2, 4)]
    variance = sum(part for part, _ in parts)
    degrees = variance / sum(part / own for part, own in parts)
    half = float(stdtrit(degrees, 0.975)) * variance**0.5
    assert step.over_rates.interval.high - step.over_rates.difference == pytest.approx(half)
    assert step.at_rate.interval.high - step.at_rate.difference == pytest.approx(1.984 * 0.001, rel=1e-3)


def test_with_several_rates_a_verdict_holds_at_each_of_them() -> None:
    rates = [{1e-3: [3.4], 2e-3: [3.34, 3.34]}, {1e-3: [3.3], 2e-3: [3.0, 3.0]}, {1e-3: [3.2], 2e-3: [3.41, 3.41]}]
    down, up = of(findings(replace(trials(LAYERS, [3.34, 3.0, 3.41]), rates=rates)), WIDER).steps
    assert down.by_rate == pytest.approx({1e-3: -0.1, 2e-3: -0.34})
    assert (down.verdict, down.at_rate.difference) == ("yes", pytest.approx(-0.34))
    assert up.by_rate == pytest.approx({1e-3: -0.1, 2e-3: 0.41})
    assert (up.verdict, up.verdict_at_rate, up.over_rates.p) == ("not separable", "no", 1.0)
    assert up.over_rates.interval is not None
    assert up.over_rates.interval.low < -0.1 < 0.41 < up.over_rates.interval.high


def test_the_noise_of_the_learning_rate_is_that_of_the_recorded_ladder() -> None:
    ladder = page.losses(page.LADDER_STUDY)
    grid_AR = np.array([[by_rate[rate][0] for rate in sorted(by_rate)] for by_rate in ladder.values()])
    found = rate_noise([Architecture.parse(name) for name in ladder], grid_AR, RECORDED.source)
    assert found.per_doubling == pytest.approx(RECORDED.per_doubling, abs=5e-5)
    assert found.deviation == pytest.approx(RECORDED.deviation, abs=5e-5)
    assert (found.per_doubling_degrees, found.degrees) == (RECORDED.per_doubling_degrees, RECORDED.degrees)


def test_each_architecture_has_its_own_seed_noise() -> None:
    noise = SeedNoise(
        deviations=(0.001, 0.001, 0.02), degrees=(5.0, 5.0, 5.0), is_measured=(True,) * 3, source="the test"
    )
    down, up = of(findings(replace(trials(LAYERS, [3.34, 3.3, 3.33]), seeds=noise)), WIDER).steps
    assert (down.verdict_at_rate, up.verdict_at_rate) == ("yes", "not separable")
    assert up.at_rate.interval is not None
    half = 2.571 * (0.001**2 / 2 + 0.02**2 / 2) ** 0.5
    assert up.at_rate.interval.high == pytest.approx(0.03 + half, rel=1e-3)


def test_documents_are_paired() -> None:
    together = np.full((3, 3), 0.01)
    paired = replace(trials(LAYERS, [3.34, 3.3, 3.41]), data=DataNoise(together, 123))
    alone = replace(paired, data=DataNoise(np.eye(3) * 0.01, 123))
    assert of(findings(paired), WIDER).steps[0].verdict_at_rate == "yes"
    assert of(findings(alone), WIDER).steps[0].verdict_at_rate == "not separable"


def test_all_contrasts_share_one_correction_and_equal_ones_count_once() -> None:
    one = trials(LAYERS[:2], [3.0, 2.99], deviation=0.004)
    [alone] = of(findings(one), WIDER).steps
    same, _ = family([one, one])
    assert of(same, WIDER).steps[0].adjusted_p_at_rate == pytest.approx(alone.adjusted_p_at_rate)
    names = [name.replace("-rope", "-rope-xlayer") for name in LAYERS]
    both, _ = family([one, trials(names, [3.0, 3.0, 3.0], deviation=0.004)])
    assert of(both, WIDER).steps[0].adjusted_p_at_rate == pytest.approx(3 * alone.at_rate.p)


def test_without_noise_nothing_is_separable() -> None:
    answer = of(findings(trials(LAYERS, [3.34, 3.0, 3.41], deviation=None)), WIDER)
    assert answer.answer == "not separable"
    assert all(step.at_rate.interval is None and step.over_rates.interval is None for step in answer.steps)
    assert all(answer.answer == "not tested" for answer in findings(trials([], [])))


@pytest.mark.parametrize(("loss", "verdict"), [(4.002, "yes"), (4.05, "no"), (4.0101, "not separable")])
def test_costing_nothing_is_tested_with_a_margin(loss: float, verdict: str) -> None:
    pair = [Architecture(cross_attention="layer").name, Architecture(cross_attention="layer-shared").name]
    assert of(findings(trials(pair, [4.0, loss])), NOTHING).verdict_at_rate == verdict


def test_the_findings_of_the_2023_study_and_their_confounds() -> None:
    shapes = [march_architecture(run) for run in march_runs()]
    losses = [curve[-1][1] for curve in march_curves()]
    noise = SeedNoise(deviations=(0.006,) * 25, degrees=(4.0,) * 25, is_measured=(False,) * 25, source="the test")
    found = findings(Trials(architectures=shapes, means=losses, counts=[1] * 25, seeds=noise, data=None))
    heads = of(found, "more heads and fewer layers are better")
    assert (heads.verdict_at_rate, heads.steps[-1].step) == ("turns", "layers 2 → 1")
    wider = of(found, WIDER)
    assert wider.verdict_at_rate == "yes in part"
    assert "d_ff / d_model" in wider.steps[0].confounds  # d_ff is 3072 in every run, whatever d_model is
    gated = of(found, "gated feed-forward is better")
    [step] = gated.steps
    assert (gated.answer, step.pairs, step.agreeing) == ("yes at this rate", 3, 3)
    assert step.at_rate.difference == pytest.approx((5.4175 + 5.416 + 5.4185) / 3 - 5.48025)
    assert of(found, NOTHING).verdict == "not tested"


@pytest.mark.parametrize(
    ("study", "statement"),
    [
        ("heads-layers", "more heads and fewer layers are better"),
        ("dims-layers", WIDER),
        ("heads-d-kv", "more heads with a smaller d_kv are better"),
        ("glu", "gated feed-forward is better"),
        ("heads-layers-no-kv", NOTHING),
        ("d-ff", "more layers with a smaller d_ff are better"),
        ("d-ff", "a wider model with a smaller d_ff is better"),
        ("heads-layers-no-kv", "more heads in place of cross-attention key/value weights are better"),
        ("dims-heads-layers", "a wider model with fewer layers and relatively wider attention is better"),
        ("head-schedule", "more heads in the first layers of a stack than in the last are better"),
        ("head-schedule", "different numbers of heads per layer are better than equal ones"),
        ("baseline", "rotary positions are better than relative ones"),
        ("baseline", "cross-attention to the encoder output is better than to the encoder layer of the same depth"),
        ("baseline-v2", "rotary positions are better than absolute ones"),
        ("baseline-v2", "the changes of baseline V2 together are better"),
        ("albert", "sharing weights between all layers costs nothing at equal parameters"),
        ("albert", "using the same weights in more layers is better"),
        ("length-reduction", "fewer positions from the middle of the encoder cost nothing"),
        ("length-reduction", "a no-op attention key is better"),
        ("bottlenecks", "a narrower residual stream with a larger d_ff is better"),
        ("decoder-only", WIDER),
        ("decoder-only", "gated feed-forward is better"),
    ],
)
@pytest.mark.parametrize("scale", ["march-2023", "cpu"])
def test_the_2023_studies_can_test_their_statements(study: str, statement: str, scale: str) -> None:
    if (scale, study, statement[:9]) in (
        ("march-2023", "baseline", "rotary po"),
        ("cpu", "heads-layers-no-kv", "dropping "),
    ):
        pytest.skip("only the study of the other scale has the architectures for it")
    file = shipped_folder("studies") / scale / f"{study}.toml"
    names = tomllib.loads(file.read_text())["search"]["architectures"]
    answer = of(findings(trials(names, [4.0 + 0.01 * n for n in range(len(names))])), statement)
    assert answer.steps
    assert answer.verdict != "not tested"
    assert all(step.at_rate.interval and step.over_rates.interval for step in answer.steps)


GROUPS = ["key/value heads 8 → 4", "key/value heads 4 → 2", "key/value heads 2 → 1"]


@pytest.mark.parametrize(
    ("study", "steps"),
    [
        ("gqa", {"fewer key/value heads with a larger d_ff cost nothing": GROUPS}),
        ("qk-norm", {"norms of queries and keys are better": [""]}),
        ("windows", {f"a window of attention in {layers} layers costs nothing": [""] for layers in ("all", "some")}),
    ],
)
def test_the_studies_of_decoders_test_their_statements_and_no_others(study: str, steps: dict[str, list[str]]) -> None:
    file = shipped_folder("studies") / "cpu" / f"{study}.toml"
    names = tomllib.loads(file.read_text())["search"]["architectures"]
    for change, verdict in ((-0.1, "yes"), (0.1, "no")):
        answers = findings(trials(names, [4.0 + change * n for n in range(len(names))]))
        tested = {answer.statement: answer for answer in answers if answer.steps}
        assert {text: [step.step for step in answer.steps] for text, answer in tested.items()} == steps
        assert all(answer.verdict_at_rate == verdict for answer in tested.values())
        assert not any(step.confounds for answer in tested.values() for step in answer.steps)


@pytest.mark.parametrize(
    "word", ["-qknorm", "-ln", "-qknorm-postnorm", "-bqkv", "-par", "-W16", "-W16-G2", "-KV1", "-C30", "-RB500000"]
)
def test_a_statement_about_the_shape_compares_decoders_that_are_equal_otherwise(word: str) -> None:
    shallow, deep = "L2-D192-H6x32-F888-rope-dec-V512", "L5-D128-H4x32-F528-rope-dec-V512"
    other = Architecture.parse(shallow + word).name
    assert of(findings(trials([deep, shallow], [3.4, 3.0])), WIDER).steps
    assert not of(findings(trials([deep, other], [3.4, 3.0])), WIDER).steps


def test_the_page_of_findings_has_the_tables_that_the_script_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--check"]) == 0, "run python scripts/findings.py --write"
    assert capsys.readouterr().err == ""


def here_cells() -> dict[str, str]:
    """Return the text of the `here` column by study; a study with two rows has both."""
    cells: dict[str, str] = {}
    for line in page.PAGE.read_text().split("## ")[0].splitlines():
        if line.startswith("| ") and (found := re.search(r"\| ([^|]*) \| `([a-z0-9-]+)` \|$", line)):
            cells[found[2]] = cells.get(found[2], "") + found[1]
    return cells


def test_every_figure_in_the_here_column_is_one_that_the_script_makes() -> None:
    figures, cells = page.figures(), here_cells()
    assert set(cells) == set(page.studies())
    for study, cell in cells.items():
        quoted = set(re.findall(r"[+-]?\d\.\d{3,4}(?!\d)", cell))
        assert quoted <= figures, (study, quoted - figures)


def test_every_contrast_in_the_here_column_is_one_of_its_study() -> None:
    tested = page.answers()
    for study, cell in here_cells().items():
        steps = [step for answer in tested[study] for step in answer.steps]
        known = {("", page.with_interval(step.at_rate)) for step in steps if not step.step}
        known |= {(step.step.split(" ", 1)[1], page.with_interval(step.at_rate)) for step in steps if step.step}
        quoted = set(re.findall(r"(?:(\d+ → \d+) (?:is )?)?([+-]\d\.\d{3} \[[^]]*\])", cell))
        assert quoted
        loose = {interval for _, interval in known}
        assert {(step, interval) for step, interval in quoted if step} <= known, study
        assert {interval for step, interval in quoted if not step} <= loose, study


def test_every_verdict_in_the_here_column_is_that_of_the_script() -> None:
    tested = page.answers()
    for study, cell in here_cells().items():
        verdicts = {page.in_page_words(answer.answer) for answer in tested[study]}
        assert set(re.findall(r"\*\*(.*?)\*\*", cell)) <= verdicts, study


def test_the_steps_that_2023_measured_have_the_same_sign_here() -> None:
    rows = page.march_rows(page.answers())
    assert [row[1] for row in rows] == ["layers 4 → 2", "layers 2 → 1"] * 2
    assert [row[-1] for row in rows] == ["equal"] * 4


def test_the_turn_over_width_holds_at_every_rate_within_its_own_study() -> None:
    answer = of(findings(page.trials("dims-layers")), WIDER)
    assert answer.answer == "turns"
    assert all({difference < 0 for difference in s.by_rate.values()} in ({True}, {False}) for s in answer.steps)
    ladder = page.losses(page.LADDER_STUDY)
    means = [np.mean([ladder[name][rate] for name in LAYERS], axis=1) for rate in (1.4e-3, 2e-3, 2.8e-3)]
    over_all_pairs = [2 / 3 * (one - four) for four, _, one in means]
    assert over_all_pairs == pytest.approx([-0.003, 0.048, 0.091], abs=5e-4)


def test_a_false_claim_among_all_contrasts_is_rare() -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "false_findings.py"
    spec = importlib.util.spec_from_file_location("false_findings", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    noise = "variances as the prior has them"
    alone, corrected, _, _ = benchmark.shares(40, 0, noise, moves=False)
    assert alone > 0.3 > 0.05 >= corrected
    assert benchmark.shares(20, 0, noise, moves=True)[3] <= 0.05


def test_the_page_names_every_study() -> None:
    text = page.PAGE.read_text()
    stems = {path.stem for path in Path(page.RESULTS).glob("*.csv")}
    assert all(f"`{stem}`" in text for stem in stems)
