"""What a person reads first: the answer to the study's question, the levels of the table, and the notes that matter."""

import re
from pathlib import Path

import pytest
from helpers.command_line import Command, json_of
from helpers.studies import SHAPES, stop_trial, write_study

from march_search.analysis.evidence import study_evidence
from march_search.analysis.study_record import read_study
from march_search.display.answer import StudyAnswer, study_answer
from march_search.display.notes import MOST, Note, shown_notes, study_notes
from march_search.display.wording import listed, p_text
from march_search.report.ranking_figure import ranking_figure
from march_search.report.svg import COLUMN

APART = ([4.1, 4.1001, 4.1002], [4.3, 4.3001, 4.3002], [4.5, 4.5001, 4.5002], [4.7, 4.7001, 4.7002])
SHORT = [name.removesuffix("-rope-V2048") for name in SHAPES]


def answer(root: Path, *losses: list[float], listed_first: str = SHAPES[0]) -> StudyAnswer:
    """Return the answer of a study with these losses."""
    settings = {"search": {"architectures": [listed_first], "seeds": [0, 1, 2]}}
    write_study(root, dict(zip(SHAPES, losses, strict=False)), settings=settings)
    return study_answer(study_evidence(read_study(root / "synthetic")))


def test_a_leader_better_than_every_rival_is_the_best(tmp_path: Path) -> None:
    found = answer(tmp_path, *APART, listed_first=SHAPES[2])
    assert (found.outcome, found.leader, found.rivals, found.tied) == ("best", SHAPES[0], 3, ())
    assert found.text == (
        f"{SHORT[0]} is the best of 4 architectures, 0.2000 nats ahead (p < 0.001 against every rival). "
        f"The baseline, {SHORT[2]}, is 0.4000 nats worse, separated."
    )


def test_a_leader_with_ties_is_not_called_the_best(tmp_path: Path) -> None:
    found = answer(tmp_path, [4.1, 4.101], [4.103, 4.102], [4.8, 4.801], [4.9, 4.901])
    assert (found.outcome, found.tied) == ("tied", (SHAPES[1],))
    assert found.text == (
        f"No single best of 4 architectures: {SHORT[0]} leads by 0.0020 nats, but {SHORT[1]} is not separated from it "
        "(ties a); the other 2 are separated. The leader is the baseline itself."
    )


def test_after_further_seeds_the_elimination_decides(tmp_path: Path) -> None:
    close = ([4.100, 4.101, 4.099], [4.112, 4.113, 4.1115], [4.8, 4.801, 4.802], [4.9, 4.901, 4.899])
    fixed = answer(tmp_path / "fixed", *close)
    assert (fixed.outcome, fixed.tied) == ("best", ())
    write_study(tmp_path, dict(zip(SHAPES, close, strict=True)))  # seeds 1 and 2 were added one by one
    looked = study_answer(study_evidence(read_study(tmp_path / "synthetic")))
    assert (looked.outcome, looked.tied) == ("tied", (SHAPES[1],))
    write_study(tmp_path, dict(zip(SHAPES, APART, strict=True)), name="apart")
    found = study_answer(study_evidence(read_study(tmp_path / "apart")))
    assert "is the best of 4 architectures, 0.2000 nats ahead (separated from all finalists by further" in found.text


def test_an_answer_tells_where_the_elimination_and_the_letters_differ(tmp_path: Path) -> None:
    losses = ([4.10, 4.13, 4.09], [4.10, 4.14, 4.087], [4.16, 4.162, 4.155])
    write_study(tmp_path, dict(zip(SHAPES, losses, strict=False)))
    found = study_answer(study_evidence(read_study(tmp_path / "synthetic")))
    assert (found.outcome, found.tied) == ("tied", SHAPES[1:3])
    stricter = f"by the confirmation, whose test is stricter than the letters: {SHORT[2]} has other letters"
    assert f"none of the other 2 is separated from it {stricter}." in found.text


def test_nothing_is_the_best_of_one(tmp_path: Path, command: Command) -> None:
    found = answer(tmp_path, [4.1])
    assert (found.outcome, found.rivals, found.p) == ("alone", 0, None)
    assert found.text == f"{SHAPES[0]} is the only architecture with a loss, so there is nothing to compare it with."
    text = command("rank", "synthetic", "--root", str(tmp_path), "--format", "markdown").stdout
    assert "best of 1" not in text
    assert "99%" not in text
    assert "P(best)" not in text.split("ranked by")[1].split("\n\n")[1]


def test_a_leader_that_alone_was_trained_to_the_end_is_not_the_best(tmp_path: Path) -> None:
    folder = write_study(tmp_path, dict(zip(SHAPES, APART, strict=True)))
    for number in range(3, 12):
        stop_trial(folder, number, 2)
    found = study_answer(study_evidence(read_study(folder)))
    assert found.outcome == "alone"
    assert found.text.startswith(f"{SHORT[0]} was trained furthest, alone:")


def test_a_study_without_a_finalist_answers_so_far(tmp_path: Path) -> None:
    folder = write_study(tmp_path, dict(zip(SHAPES, APART, strict=True)))
    for number in range(12):
        stop_trial(folder, number, 2)
    text = study_answer(study_evidence(read_study(folder))).text
    assert text.startswith(f"So far, after 210k tokens: {SHORT[0]} is the best of 4 architectures")


def test_assumed_noise_is_marked_in_the_answer_and_after_each_figure(tmp_path: Path, command: Command) -> None:
    found = answer(tmp_path, [4.1], [4.5], [4.9], [4.904])
    assert "against every rival, seed noise assumed" in found.text
    lines = command("rank", "synthetic", "--root", str(tmp_path)).stdout.splitlines()
    assert sum(re.search(r" 0\.\d{3}\? ", line) is not None for line in lines) == 4
    rows = json_of(command("rank", "synthetic", "--root", str(tmp_path), "--format", "json"))["ranked"]
    assert {row["interval_kind"] for row in rows} == {"assumed"}
    figure = ranking_figure(study_evidence(read_study(tmp_path / "synthetic")))
    assert figure is not None
    assert figure.svg().count("interval assumed") == 5  # and one in the legend


def levels(root: Path) -> Path:
    """Write a study of two finalists and two that stopped."""
    folder = write_study(
        root,
        dict(zip(SHAPES, APART, strict=True)),
        settings={"question": "Which shape?", "search": {"seeds": [0, 1, 2]}},
    )
    for number in range(6, 12):
        stop_trial(folder, number, 2)
    return folder


@pytest.mark.parametrize("columns", [80, 160])
def test_levels_are_separated_by_a_rule(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    levels(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = command("rank", "synthetic", "--root", str(tmp_path)).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0] == "Question: Which shape?"
    assert lines[1].startswith(f"Answer: {SHORT[0]} is the best of 2 finalists, 0.2000 nats ahead (p < ")
    [rule] = [number for number, line in enumerate(lines) if line.strip() == "stopped after 210k tokens"]
    assert set(lines[rule - 1].strip()) == {"─"}
    assert lines[rule - 2].split()[:2][0] == "2"
    assert lines[rule + 1].split()[:2][0] == "3"


def test_every_format_shows_the_levels(tmp_path: Path, command: Command) -> None:
    levels(tmp_path)
    value = json_of(command("rank", "synthetic", "--root", str(tmp_path), "--format", "json"))
    assert [(level["tokens"], level["is_final"], level["names"]) for level in value["levels"]] == [
        (1 << 20, True, list(SHAPES[:2])),
        (209_715, False, list(SHAPES[2:])),
    ]
    assert value["answer"]["outcome"] == "best"
    assert value["answer"]["p"] == value["levels"][0]["leader_p"]
    assert value["question"] == "Which shape?"
    assert set(value["phase"]) >= {"name", "detail"}
    text = command("rank", "synthetic", "--root", str(tmp_path), "--format", "markdown").stdout
    assert f"**Answer:** {SHORT[0]} is the best" in text
    assert "| after tokens |" in text
    assert "| 210k |" in text
    evidence = study_evidence(read_study(tmp_path / "synthetic"))
    for figure in (ranking_figure(evidence), ranking_figure(evidence, COLUMN)):
        assert figure is not None
        assert "stopped after 210k tokens" in figure.svg()
        assert "trained to the end: 1.05M tokens" in figure.svg()


def test_at_most_five_lines_of_notes_and_the_rest_with_explain(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {SHAPES[0]: [4.1], SHAPES[1]: [4.3], SHAPES[2]: [4.5], SHAPES[3]: [4.7]}
    folder = write_study(tmp_path, losses, rates=(1e-3, 2e-3), bigram=4.0, gain=0.01)
    (folder / "trials" / "0000-copy").mkdir()
    for number in (5, 7):
        stop_trial(folder, number, 5, "failed")
    notes = study_notes(study_evidence(read_study(folder)))
    assert [note.is_warning for note in notes[:2]] == [True, True]
    assert notes[0].text.startswith("Regime: n-grams.")
    assert len(notes) > MOST - 1
    monkeypatch.setenv("COLUMNS", "80")
    printed = command("rank", "synthetic", "--root", str(tmp_path)).stdout
    marked = [line for line in printed.splitlines() if line.startswith(("! ", "· "))]
    assert len(marked) == MOST
    own = [note.text for note in notes if note.text not in read_study(folder).notes]
    assert max(map(len, own)) <= 78  # no note is folded, except on damaged files
    left = len(notes) - MOST + 1
    assert marked[-1].strip() == f"· {left} more note{'s' * (left > 1)}, the columns and the methods: add --explain."
    explained = command("rank", "synthetic", "--root", str(tmp_path), "--explain").stdout
    assert all(note.full in " ".join(explained.split()) for note in notes)
    assert "ties: architectures that share a letter" in explained
    assert "ties: architectures that share a letter" not in printed


def test_the_last_note_counts_the_others() -> None:
    shown = shown_notes([Note(text=str(number)) for number in range(7)])
    assert [note.text for note in shown] == [
        "0",
        "1",
        "2",
        "3",
        "3 more notes, the columns and the methods: add --explain.",
    ]
    assert shown_notes([])[0].text == "The columns and the methods: add --explain."


def test_speeds_beside_other_trials_are_marked(tmp_path: Path, command: Command) -> None:
    folder = write_study(tmp_path, dict(zip(SHAPES, APART, strict=True)))
    for path in folder.glob("trials/*/trial.json"):
        path.write_text(path.read_text().replace('"parallel_trials": 1', '"parallel_trials": 2'))
    printed = command("rank", "synthetic", "--root", str(tmp_path)).stdout
    assert printed.count("12.3k~") == 4
    assert "tokens/s with ~ are rough: up to 2 trials ran at a time" in printed
    pareto = command("pareto", "synthetic", "--root", str(tmp_path), "--by", "loss,-tokens_per_second").stdout
    assert "12.3k~" in pareto
    assert "trials ran beside others" in pareto


def test_names_and_p_values_are_written_in_words() -> None:
    assert listed(["A"]) == "A"
    assert listed(["A", "B", "C"]) == "A, B and C"
    assert listed(["A", "B", "C", "D", "E"]) == "A, B and 3 others"
    assert (p_text(0.0123), p_text(0.0002)) == ("p = 0.012", "p < 0.001")
