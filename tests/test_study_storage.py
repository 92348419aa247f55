"""Storages of a study: journal, SQLite, PostgreSQL and the gRPC proxy; passwords stay private."""

import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import local_postgres
import optuna
import pytest
from helpers.command_line import Command, one_line_error
from helpers.forks import forks
from helpers.ports import free_port
from helpers.toy_studies import TOY_CONFIG, open_fresh_study, run_toy_study, start_toy_study
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import make_url

from march_search.cli import main
from march_search.config import PrunerConfig, SearchConfig, StudyConfig
from march_search.config.study_config import public_storage
from march_search.errors import ConfigError, StorageError
from march_search.planning import candidates
from march_search.storage import study_storage
from march_search.storage.journal import JOURNAL, SealedJournal, open_journal
from march_search.storage.study_folder import StudyFolder
from march_search.study import status
from march_search.study.runner import StudyRun, Summary, open_study


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgresql"])
def test_eight_processes_open_a_fresh_storage_at_the_same_moment(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = None if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres")
    barrier = forks().Barrier(8)
    processes = [forks().Process(target=open_fresh_study, args=(url, tmp_path, barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert len(study_storage.open_study("fresh", tmp_path, url, PrunerConfig(), 0).user_attrs) == 8


def test_a_journal_cut_at_any_of_its_last_bytes_loses_no_acknowledged_record(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    study = optuna.create_study(study_name="s", storage=open_journal(journal))
    for number in range(5):
        study.set_user_attr(f"attribute-{number}", "x" * 40)
    whole = journal.read_bytes()
    for cut in range(1, 401):
        journal.write_bytes(whole[:-cut])
        acknowledged = whole[:-cut].count(b"\n")
        opened = open_journal(journal)
        assert journal.read_bytes().count(b"\n") == acknowledged
        opened.create_new_study([optuna.study.StudyDirection.MINIMIZE], "after")
        names = {study.study_name for study in open_journal(journal).get_all_studies()}
        assert names == ({"s", "after"} if acknowledged else {"after"})
        left = [s for s in open_journal(journal).get_all_studies() if s.study_name == "s"]
        assert not left or len(left[0].user_attrs) == acknowledged - 1


def test_a_torn_line_is_removed_before_another_worker_appends(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    study = optuna.create_study(study_name="s", storage=open_journal(journal))
    with journal.open("ab") as file:
        file.write(b'{"op_code": 2, "torn')
    study.set_user_attr("later", 1)
    assert optuna.load_study(study_name="s", storage=open_journal(journal)).user_attrs == {"later": 1}


def test_looking_at_a_study_does_not_create_it(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, storage=f"sqlite:///{tmp_path}/s.db")
    folder = StudyFolder.of(tmp_path, "toy")
    folder.keep_settings(config, [])
    with pytest.raises(StorageError, match="the study has no trials yet: run march-search study run toy"):
        status.open_started(folder, config)
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/s.db") == []


def test_two_folders_cannot_share_a_study_name_in_postgresql(tmp_path: Path, postgres: str) -> None:
    config = replace(TOY_CONFIG, storage=postgres, search=SearchConfig(trials=2))
    assert run_toy_study(tmp_path / "a", config, "bound").complete == 2
    with pytest.raises(StorageError, match="another folder started"):
        run_toy_study(tmp_path / "b", config, "bound")
    assert open_study(StudyFolder.of(tmp_path / "a", "bound"), config).study_name == "bound"


def test_a_missing_environment_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the environment variable NO_SUCH_URL is not set: export it first"):
        study_storage.open_study("x", tmp_path, "env:NO_SUCH_URL", PrunerConfig(), 0)


@given(st.text(max_size=300) | st.sampled_from(["../../x", "x" * 300, "a\0b", "🦊", "..", "a/../../b", "/etc", "a\n"]))
@settings(max_examples=200, deadline=None)
def test_no_study_name_leaves_the_root(name: str) -> None:
    root = Path("/nowhere/runs")
    try:
        path = StudyFolder.of(root, name).path
    except ConfigError:
        return
    assert path.parent == root
    assert path.resolve().parent == root
    assert len(os.fsencode(path.name)) <= 255


def test_a_password_appears_nowhere(
    tmp_path: Path, postgres: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = local_postgres.PASSWORD
    monkeypatch.setenv("STUDY_URL", postgres)
    monkeypatch.setenv("TOY_FAIL", candidates.choose(TOY_CONFIG, tmp_path).architectures[0].name)
    config = replace(TOY_CONFIG, storage="env:STUDY_URL", search=SearchConfig(trials=3))
    look = "import os; print(os.environ, os.popen('cat /proc/[1-9]*/cmdline 2>/dev/null').read()); raise SystemExit(1)"
    spy = (sys.executable, "-c", look)
    assert run_toy_study(tmp_path, config, "spied").failed == 1
    folder, chosen = StudyFolder.of(tmp_path, "environment"), candidates.choose(config, tmp_path)
    folder.keep_settings(config, chosen.architectures)
    folder.keep_store(tmp_path / "store")
    StudyRun(config, folder, tmp_path / "store", candidates.with_seeds(chosen, config), spy).run()
    for words in (
        ["study", "status"],
        ["study", "status", "--format", "json"],
        ["rank"],
        ["study", "list", "--format", "json"],
    ):
        name = [] if words[1:2] == ["list"] else ["spied"]
        assert main([*words, *name, "--root", str(tmp_path)]) == 0
    assert main(["study", "show", "spied", "0", "--format", "json", "--root", str(tmp_path)]) == 0
    monkeypatch.setenv("STUDY_URL", postgres.replace("searcher", "nobody"))
    assert main(["study", "status", "spied", "--root", str(tmp_path)]) == 4
    with pytest.raises(StorageError) as caught:
        study_storage.open_study("x", tmp_path, postgres.replace("searcher", "nobody"), PrunerConfig(), 0)
    assert canary not in str(caught.value)
    seen = capfd.readouterr()
    assert "STUDY_URL" in seen.out  # the command for the dashboard
    assert canary not in seen.out + seen.err
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path
    assert "TOY_FAIL" in (next(folder.trials.iterdir()) / "trial.log").read_text()  # the spy saw its environment
    assert canary not in public_storage(postgres)  # type: ignore[operator]
    direct = StudyConfig(space="cpu-demo", storage=postgres)
    StudyFolder.of(tmp_path, "direct").keep_settings(direct, [])
    assert canary not in (tmp_path / "direct" / "study.json").read_text()


def test_a_proxy_needs_a_port_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "storage-proxy", "env:BEHIND", "--port", "70000"]) == 2
    assert capsys.readouterr().err == "march-search: --port 70000: use a number from 1 to 65535.\n"


def test_a_proxy_serves_postgresql_alone(
    tmp_path: Path, postgres: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHIND", f"sqlite:///{tmp_path}/s.db")
    assert main(["study", "storage-proxy", "env:BEHIND"]) == 2
    assert "serves PostgreSQL only: with a journal or SQLite it would lose records" in capsys.readouterr().err
    assert main(["study", "storage-proxy", postgres]) == 2
    assert "reads its URL from an environment variable" in capsys.readouterr().err
    port = str(free_port())
    command = [sys.executable, "-W", "ignore", "-m", "march_search", "study", "storage-proxy", "env:BEHIND"]
    proxy = subprocess.Popen(
        [*command, "--port", port], env=os.environ | {"BEHIND": postgres}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert proxy.stderr is not None
        assert proxy.stderr.readline() == f"serving at grpc://localhost:{port}; press Ctrl-C to stop\n"
        config = replace(TOY_CONFIG, storage=f"grpc://localhost:{port}", search=SearchConfig(trials=3))
        out, err = start_toy_study(tmp_path, config, "proxied").communicate(timeout=100)
        assert out == f"{Summary(complete=3, pruned=0, failed=0, left=0, signum=0)}\n", err
        assert "Warning" not in err
    finally:
        proxy.terminate()
        proxy.communicate(timeout=30)
    assert proxy.returncode == 143


def test_sqlite_by_absolute_path_works_in_every_command(tmp_path: Path, command: Command) -> None:
    (tmp_path / "a b").mkdir()
    url = f"sqlite:///{tmp_path}/a b/s.db"  # four slashes
    assert run_toy_study(tmp_path, replace(TOY_CONFIG, storage=url), "lite").complete == 6
    record = json.loads((tmp_path / "lite" / "study.json").read_text())
    assert record["settings"]["storage"] == url
    root = ("lite", "--root", str(tmp_path))
    for words in (["study", "status"], ["rank"], ["study", "worker"], ["study", "resume"], ["report"]):
        ended = command(*words, *root)
        assert ended.returncode == 0, ended.stderr
    assert f"optuna-dashboard {url}\n" in command("study", "status", *root).stdout
    assert command("study", "delete", "--yes", *root).returncode == 0
    assert optuna.get_all_study_names(url) == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [("sqlite://tmp/x.db", "sqlite:////tmp/x.db"), ("sqlite:/x.db", "sqlite:///x.db"), (None, None)]
    + [(url, url) for url in ("sqlite:////tmp/x.db", "sqlite:///x.db", "postgresql://me@host/db", "env:URL")],
)
def test_the_storage_in_an_old_study_folder_gets_its_slashes_back(
    tmp_path: Path, written: str | None, meant: str | None
) -> None:
    folder = StudyFolder.of(tmp_path, "old")
    folder.keep_settings(replace(TOY_CONFIG, storage=None), [])
    record = json.loads((folder.path / "study.json").read_text())
    del record["sha256"]
    record["settings"]["storage"] = written
    (folder.path / "study.json").write_text(json.dumps(record))
    assert folder.config().storage == meant


HOSTILE = ("s3cr/t", "a?b#c", "{x}", "a b", "%2F%40", "[x]", "é🦊", ":", "\\", "'\"")


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.sampled_from(HOSTILE), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_part_of_a_password_is_shown(text: str, is_quoted: bool) -> None:
    password = f"canary{text}canary"
    url = f"postgresql://me:{quote(password, safe='') if is_quoted else password}@host:5432/db?sslmode=require"
    if "@" in text and not is_quoted:  # as SQLAlchemy reads it, the rest of the password would be the host
        with pytest.raises(ConfigError, match=r"^storage ") as caught:
            public_storage(url)
        assert "canary" not in str(caught.value)
        return
    public = public_storage(url)
    assert public == "postgresql://me@host:5432/db?sslmode=require"
    assert make_url(url).password == (password if is_quoted else unquote(password))


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("postgresql://me@host/db?password=canary&sslpassword=canary&port=1", "postgresql://me@host/db?port=1"),
        ("postgresql://:canary@host/db", "postgresql://host/db"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db?host=%2Frun%2Fpostgresql"),
        ("sqlite:///file:x.db?mode=ro&uri=true", "sqlite:///file%3Ax.db?mode=ro&uri=true"),
        ("grpc://me:canary@localhost:13000", "grpc://me@localhost:13000"),
        ("env:STUDY_URL", "env:STUDY_URL"),
    ],
)
def test_the_shown_url_still_opens_the_storage(url: str, public: str) -> None:
    assert public_storage(url) == public
    assert public_storage(public) == public


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:/me:canary@host/db",
        "postgresql://me:canary@host:port/db",
        "postgresql://m/e:canary@h@/d",
        "canary",
        "env:postgresql://me:canary@host/db",
        "sqlite://tmp/canary.db",
        "postgresql://me:ca@nary@host/db",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(tmp_path: Path, command: Command, url: str) -> None:
    (tmp_path / "bad.toml").write_text(f"storage = '{url}'\nspace = 'cpu-demo'\n")
    error = one_line_error(command("study", "run", str(tmp_path / "bad.toml"), "--root", str(tmp_path)))
    assert "bad.toml: storage" in error
    assert "canary" not in error
    assert "nary" not in error


def _all(journal: Path) -> str:
    """Return everything that Optuna reads from a journal, or the error."""
    try:
        opened = open_journal(journal)
    except StorageError as error:
        return str(error)
    studies = opened.get_all_studies()
    return repr([(s.study_name, s.user_attrs, opened.get_all_trials(s._study_id)) for s in studies])


def test_every_damaged_byte_of_a_journal_is_noticed_and_named_by_its_line(tmp_path: Path) -> None:
    run_toy_study(tmp_path, replace(TOY_CONFIG, search=SearchConfig(trials=2)))
    journal = tmp_path / "toy" / JOURNAL
    whole, read, rng = journal.read_bytes(), _all(journal), random.Random(0)
    assert whole.count(b"crc32") == whole.count(b"\n")
    detected = 0
    for at in rng.sample(range(len(whole) - 1), 400):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        journal.write_bytes(damaged)
        seen = _all(journal)
        if seen != read:  # else only the name of a checksum was hit
            line = whole[:at].count(b"\n") + 1
            assert seen.startswith(f"{journal} is damaged in line {line}: "), at
            assert "\n" not in seen
            detected += 1
    assert detected > 380


def test_a_record_that_is_written_to_its_end_while_it_is_read_is_applied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(study_name="s", storage=open_journal(tmp_path / "all"))
    for number in range(4):
        study.set_user_attr(f"attribute-{number}", "x" * 40)
    records = (tmp_path / "all").read_bytes().splitlines(keepends=True)
    journal, settled = SealedJournal(tmp_path / JOURNAL), SealedJournal._settled
    (tmp_path / JOURNAL).write_bytes(b"".join(records[:3])[:-20])

    def written_meanwhile(journal: SealedJournal, number: int) -> bytes:
        (tmp_path / JOURNAL).write_bytes(b"".join(records))
        return settled(journal, number)

    monkeypatch.setattr(SealedJournal, "_settled", written_meanwhile)
    whole = list(SealedJournal(tmp_path / "all").read_logs(0))
    assert list(journal.read_logs(0)) == whole
    assert list(journal.read_logs(4)) == whole[4:]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1, 2]", "it is not a record"),
        (b"[" * 100_000, "it is not a record"),
        (b'{"op_code": ' + b"9" * 5000 + b"}", "it is not a record"),
        (b"\xff\xfe\x00", "it is not a record"),
        (b"", "it is not a record"),
        (b'{"op_code": 99, "worker_id": "x"}', "the record cannot be applied (AssertionError)"),
        (b'{"worker_id": "x"}', "the record cannot be applied (KeyError)"),
        (b'{"op_code": 4, "worker_id": "x", "study_id": [0]}', "the record cannot be applied (TypeError)"),
    ],
)
def test_a_journal_with_a_foreign_line_is_named_in_one_line(
    tmp_path: Path, command: Command, line: bytes, reason: str
) -> None:
    run_toy_study(tmp_path, replace(TOY_CONFIG, search=SearchConfig(trials=1)))
    journal = tmp_path / "toy" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], line + b"\n", *lines[3:]]))
    for words in (["study", "status"], ["study", "worker"], ["study", "resume"], ["study", "stop"]):
        ended = command(*words, "toy", "--root", str(tmp_path))
        assert ended.returncode == 4
        assert f"{journal} is damaged in line 4: {reason}. Restore a copy of it" in one_line_error(ended)


def test_records_without_a_checksum_are_read(tmp_path: Path) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    optuna.create_study(study_name="old", storage=optuna.storages.JournalStorage(backend)).set_user_attr("a", 1)
    study = optuna.load_study(study_name="old", storage=open_journal(tmp_path / JOURNAL))
    study.set_user_attr("b", 2)
    assert optuna.load_study(study_name="old", storage=optuna.storages.JournalStorage(backend)).user_attrs == {
        "a": 1, "b": 2,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_study_whose_damaged_storage_is_moved_away_keeps_its_results(tmp_path: Path, kind: str) -> None:
    url = None if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    config = replace(TOY_CONFIG, storage=url, search=SearchConfig(trials=3))
    assert run_toy_study(tmp_path, config).complete == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "toy").glob("trials/*/metrics.jsonl")}
    (tmp_path / "toy" / JOURNAL if url is None else tmp_path / "s.db").rename(tmp_path / "away")
    assert run_toy_study(tmp_path, config).complete == 3
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("header", "s.db is damaged: file is not a database. Restore a copy of it, or move it away"),
        ("pages", "s.db is damaged: database disk image is malformed. Restore a copy of it"),
        ("state", "s.db is damaged: 'COMPLXTE' is not among the defined enum values"),
        ("value", "s.db is damaged: "),
        ("folder", "s.db cannot be opened: unable to open database file: check that it exists and is writable."),
    ],
)
def test_a_damaged_sqlite_file_is_named_as_damaged(tmp_path: Path, command: Command, damage: str, words: str) -> None:
    file = tmp_path / "s.db"
    config = replace(TOY_CONFIG, storage=f"sqlite:///{file}", search=SearchConfig(trials=1))
    assert run_toy_study(tmp_path, config).complete == 1
    content = file.read_bytes()
    if damage == "header":
        file.write_bytes(b"\0" * 16 + content[16:])
    elif damage == "pages":
        file.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        change = "trials SET state = 'COMPLXTE'" if damage == "state" else "trial_user_attributes SET value_json = '{'"
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(f"UPDATE {change}")
    for action in ("status", "worker"):
        ended = command("study", action, "toy", "--root", str(tmp_path))
        assert ended.returncode == 4
        assert words in one_line_error(ended)


def test_postgresql_refusals_keep_host_port_and_reason(tmp_path: Path, postgres: str) -> None:
    parsed = make_url(postgres)
    for url, words in (
        (parsed.set(username="nobody"), 'password authentication failed for user "nobody"'),
        (parsed.set(database="missing"), 'database "missing" does not exist'),
        (parsed.set(password="canary{/}@?"), "password authentication failed"),
        (parsed.set(host="127.0.0.1", port=1), "Connection refused"),
    ):
        with pytest.raises(StorageError) as caught:
            study_storage.open_study("x", tmp_path, url.render_as_string(hide_password=False), PrunerConfig(), 0)
        message = str(caught.value)
        assert f'server at "127.0.0.1", port {url.port}' in message
        assert words in message
        assert "canary" not in message
        assert "\n" not in message


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_who_may_only_read_a_storage_opens_it(kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        root = Path(name)
        root.chmod(0o755)
        url = None if kind == "journal" else f"sqlite:///{root}/s.db"
        assert run_toy_study(root, replace(TOY_CONFIG, storage=url, search=SearchConfig(trials=2))).complete == 2
        process = forks().Process(target=_read_as_nobody, args=(root, url))
        process.start()
        process.join(60)
        assert process.exitcode == 0


def _read_as_nobody(root: Path, url: str | None) -> None:
    """Open the storage as a user who may read everything in `root`, but write nothing."""
    os.setresuid(65534, 65534, 65534)
    study = study_storage.load_study("toy", root / "toy", url, PrunerConfig())
    assert study is not None
    assert len(study.trials) == 2
    expected = r"readonly database: run the same command|Permission denied"
    with pytest.raises((StorageError, PermissionError), match=expected), study_storage.guarded():
        study.set_user_attr("a", 1)
