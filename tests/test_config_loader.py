"""Settings files: every fault at once, numbers as people write them, and values that no file should have."""

import re
from pathlib import Path

import pytest

from march_search.config import DevicesConfig, SearchConfig, StudyConfig, TrialConfig
from march_search.config.familiar_keys import FAMILIAR
from march_search.config.key_reference import TABLES, keys_of
from march_search.config.loader import build, read_file
from march_search.config.overrides import with_overrides
from march_search.errors import ConfigError, UsageError

DEEP = "[" * 3000 + "]" * 3000
"""A list that is nested 3,000 levels deep."""


def study(tmp_path: Path, text: str) -> StudyConfig:
    """Return the settings in a study file with this text."""
    path = tmp_path / "s.toml"
    path.write_text('space = "cpu-demo"\n' + text)
    return build(StudyConfig, read_file(path), "s.toml")


def faults(tmp_path: Path, text: str) -> list[str]:
    """Return the lines of the error for a study file with this text."""
    with pytest.raises(ConfigError) as caught:
        study(tmp_path, text)
    return str(caught.value).splitlines()


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    lines = faults(
        tmp_path,
        """
        heartbeat_seconds = 0
        budget = "0,22B"
        qustion = "?"
        [search]
        strategy = "desing"
        seeds = [1, 1]
        architectures = ["L12", "L12-D768-H12x64-F3072", "wide"]
        [data]
        vocab_sise = 3
        validation_fraction = 0.7
        [training]
        learning_rate = "fast"
        weight_decay = -1
        betas = [2, 3]
        [devices]
        ranks = 0
        hang_seconds = -1
        """,
    )
    assert lines[0] == "s.toml: 15 faults:"
    words = (
        "heartbeat_seconds must be between",
        'invalid parameter budget "0,22B"',
        'unknown key "qustion". Did you mean "question"?',
        '"search.strategy" cannot be "desing". Did you mean "design"?',
        "seeds must be distinct",
        "[search]: architectures: 'L12' is not",
        "[search]: architectures: 'wide' is not",
        'unknown key "data.vocab_sise". Did you mean "vocab_size"?',
        "vocab_size must be at least 384",
        "validation_fraction must be in (0, 0.5), not 0.7",
        '"training.learning_rate" must be a number, not "fast"',
        "betas must be two numbers",
        "weight_decay must not be negative, got -1.0",
        "ranks, threads and parallel_trials must be at least 1",
        "hang_seconds must not be negative",
    )
    for word in words:
        assert sum(word in line for line in lines) == 1, word


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_does_not_exist_is_refused(tmp_path: Path, port: int) -> None:
    [line] = faults(tmp_path, f"[devices]\nport = {port}\n")
    assert line.endswith(f"[devices]: port must be from 1 to 65535, not {port}.")


def test_faults_of_the_file_itself_and_of_its_tables_are_told_together(tmp_path: Path) -> None:
    lines = faults(tmp_path, 'heartbeat_seconds = 0\nbudget = "0,22B"\ntolerance = "x"\n[pruner]\nkeep = 2\n')
    assert [line.split(":")[0].strip() for line in lines] == [
        "s.toml",
        "[pruner]",
        "heartbeat_seconds must be between 0.05 and 3600, not 0.0.",
        'invalid parameter budget "0,22B"',
        'invalid tolerance "x"',
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[training]\ntoknes = 8192\nglobal_batch_tokens = 4096",
        '[training]\ntokens = "much"\nglobal_batch_tokens = 1000',
        "[training]\ntokens = [3]\nwarmup_tokens = 2_000_000_000",
        "[data]\nsequence_length = true\n[training]\nglobal_batch_tokens = 1000\ntokens = 3000",
    ],
)
def test_a_default_that_stands_in_for_a_wrong_value_adds_no_fault(tmp_path: Path, text: str) -> None:
    assert len(faults(tmp_path, text)) == 1


def test_one_fault_is_one_line_and_many_are_cut(tmp_path: Path) -> None:
    assert faults(tmp_path, "x = 1")[0].startswith('s.toml: unknown key "x". Known: ')
    lines = faults(tmp_path, "\n".join(f"zz{number} = 1" for number in range(50)))
    assert (lines[0], len(lines), lines[-1].strip()) == ("s.toml: 50 faults:", 22, "and 30 more.")


def test_settings_of_several_tables_that_contradict_are_refused_by_the_file(tmp_path: Path) -> None:
    [line] = faults(tmp_path, "[training]\nglobal_batch_tokens = 5120\ntokens = 5120\nmicro_batch_sequences = 7")
    assert "micro_batch_sequences (7) must divide the 10 sequences per rank; the nearest divisor is 5" in line
    [line] = faults(tmp_path, '[training]\nlearning_rate_scaling = "width"\nbase_shape = "T5"')
    assert "[training]: base_shape: 'T5' is not an architecture name" in line


@pytest.mark.parametrize(
    "text", ["1e9", '"1B"', '"1 B"', '"1.0e9"', '"1,000,000,000"', '"1_000_000_000"', "1000000000.0"]
)
def test_whole_numbers_may_be_written_as_people_write_them(tmp_path: Path, text: str) -> None:
    training = f"[training]\ntokens = {text}\nglobal_batch_tokens = 5e5\nevaluate_at = [{text}]"
    config = study(tmp_path, f"[data]\nsequence_length = 500\n{training}")
    assert (config.training.tokens, type(config.training.tokens)) == (10**9, int)
    assert config.training.evaluate_at == (10**9,)


@pytest.mark.parametrize(
    ("text", "budget"), [("2.2e8", "220000000.0"), ("220_000_000", "220000000"), ('"220 M"', "220 M")]
)
def test_a_budget_is_text_or_a_number(tmp_path: Path, text: str, budget: str) -> None:
    config = study(tmp_path, f"budget = {text}\ntolerance = 0.02\n[pruner]\nrungs = [0.1, '1M']")
    assert (config.budget, config.tolerance, config.pruner.rungs) == (budget, "0.02", (0.1, 1e6))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('tokens = "0,22B"', '"training.tokens" is refused: invalid number "0,22B": a comma may only stand between'),
        ("tokens = 1.5", '"training.tokens" must be a whole number, not 1.5'),
        ("tokens = inf", '"training.tokens" must be a whole number, not inf'),
        ("tokens = 1e300", '"training.tokens" must be a whole number'),
        (f"tokens = {10**400}", '"training.tokens" must be below 10^15, not 1000000000'),
        (f"tokens = 0x{'f' * 5000}", '"training.tokens" must be below 10^15, not a number of thousands of digits'),
        (f"learning_rate = {10**400}", '"training.learning_rate" must be below 10^15'),
        ("learning_rate = 2020-01-01", '"training.learning_rate" must be a number, not datetime.date(2020, 1, 1)'),
        ("evaluations = 1_000_000_000_000", "evaluations and checkpoints must be at most 100,000"),
        (f"deepspeed = {{ a = {DEEP} }}", "invalid TOML"),
        (f"deepspeed = {{ a = {'[' * 50 + ']' * 50} }}", "is nested more than 20 levels deep"),
        ("deepspeed = { timers = inf }", '"training.deepspeed.timers" must be a finite number of 64 bits, not inf'),
        ("deepspeed = { timers = 2020-01-01 }", '"training.deepspeed.timers" must be text, a number, true or false'),
        ("betas = 3", '"training.betas" must be a list in which each item is a number, not 3'),
        (f'precision = "{"x" * 5000}"', '"training.precision" cannot be "xxxxx'),
        ('precision = "\\u001b[31m\\n"', r'"training.precision" cannot be "\x1b[31m\n"'),
    ],
    ids=range(16),
)
def test_a_value_that_no_setting_can_have_is_one_short_line(tmp_path: Path, text: str, words: str) -> None:
    [line] = faults(tmp_path, f"[training]\n{text}")
    assert words in line
    assert len(line) < 400


@pytest.mark.parametrize("table", [None, [], "text", 3, [[[]]], {"training": []}, {"architecture": {}, "store": None}])
def test_json_of_another_kind_is_a_refused_table(table: object) -> None:
    with pytest.raises(ConfigError, match=r"^trial\.json: "):
        build(TrialConfig, table, "trial.json")


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trial.json"
    path.write_text('{"architecture": ' + DEEP * 10 + "}")
    with pytest.raises(ConfigError, match=r"trial\.json: invalid JSON: nested too deeply"):
        read_file(path)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(b"\xef\xbb\xbfspace = 'cpu-demo'\n")
    assert read_file(path) == {"space": "cpu-demo"}


def test_numbers_without_an_end_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="trials must be at most 1,000,000"):
        SearchConfig(strategy="tpe", trials=10**12)
    with pytest.raises(ConfigError, match="must be at most 100,000"):
        DevicesConfig(threads=10**12)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("max_steps", "set training.tokens to max_steps × training.global_batch_tokens."),
        ("batch_size", "set training.global_batch_tokens to batch_size × data.sequence_length, where"),
        ("per_device_train_batch_size", "set training.micro_batch_sequences to per_device_train_batch_size, and"),
        ("lr", "set training.learning_rate to the same number."),
        ("epochs", "set training.tokens to epochs × the tokens of the training text"),
        ("sequence_length", "Did you mean data.sequence_length?"),
    ],
)
@pytest.mark.parametrize("table", ["", "[training]", "[devices]"])
def test_a_key_of_another_program_or_table_names_ours(key: str, words: str, table: str, tmp_path: Path) -> None:
    [line] = faults(tmp_path, f"{table}\n{key} = 3")
    assert f'unknown key "{table[1:-1] + "." * bool(table)}{key}"' in line
    assert words in line


def test_every_setting_that_a_hint_names_exists() -> None:
    known = {key.path for table in TABLES for key in keys_of(table)}
    for key, hint in FAMILIAR.items():
        named = re.findall(r"\b(?:search|data|training|devices)\.\w+", hint)
        assert named, key
        assert set(named) <= known, key
        assert key not in {path.rpartition(".")[2] for path in known}, key


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.tokens=2M", "2M"),
        ("training.tokens = 1e6", None),
        ("training.learning_rate=3e-4", 3e-4),
        ("training.deterministic=true", True),
        ("training.precision=fp32", "fp32"),
        ('training.precision="fp32"', "fp32"),
        ("search.seeds=[0, 1]", [0, 1]),
        ("search.architectures=[L1-D8, L2-D8]", ["L1-D8", "L2-D8"]),
        ("training.deepspeed.zero.stage=2", 2),
        ("data.corpus=hub:a/b#c", "hub:a/b#c"),
        ("training.tokens", None),
        ("=3", None),
        ("training..tokens=3", None),
        ("training.tokens=", None),
        ("space.x=3", None),
    ],
)
def test_an_override_is_a_value_of_toml_or_text_without_quotes(override: str, value: object) -> None:
    table = {"space": "cpu-demo", "training": {"tokens": 3, "epsilon": 1e-8}}
    if value is None:
        with pytest.raises(UsageError, match=r"is not KEY=VALUE|space is not a table"):
            with_overrides(table, [override])
        return
    changed = with_overrides(table, [override])
    *path, last = override.partition("=")[0].split(".")
    for name in path:
        changed = changed[name]
    assert changed[last] == value
    assert table == {"space": "cpu-demo", "training": {"tokens": 3, "epsilon": 1e-8}}


def test_overrides_keep_the_other_keys_and_are_given_once() -> None:
    changed = with_overrides({"training": {"tokens": 3, "epsilon": 1.0}}, ["training.tokens=4", "devices.ranks=2"])
    assert changed == {"training": {"tokens": 4, "epsilon": 1.0}, "devices": {"ranks": 2}}
    with pytest.raises(UsageError, match=r"devices\.ranks is given twice"):
        with_overrides({}, ["devices.ranks=1", "devices.ranks=2"])
