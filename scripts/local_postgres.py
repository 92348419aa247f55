"""Start a temporary PostgreSQL server on the loopback interface, for tests and benchmarks."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "canary-5b1f0c"
"""Password of the database. Tests check that it appears in no file or message."""


def programs() -> Path | None:
    """Return the folder of the server's programs; None if PostgreSQL is not installed."""
    initdb = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(initdb).parent if initdb else versions[-1].parent if versions else None


def why_not() -> str:
    """Return why no server can be started on this machine; empty if one can."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian: apt install postgresql)"
    if os.getuid() == 0 and not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        return "PostgreSQL does not run as root, and the user postgres does not exist"
    return ""


@contextmanager
def server(fsync: bool = False) -> Iterator[str]:
    """Start a server and yield the URL of its database, with the password; stop and delete it afterwards."""
    binaries, user = programs(), "postgres" if os.getuid() == 0 else None
    assert binaries is not None, why_not()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if user:
        shutil.chown(folder, user)
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    make = [binaries / "initdb", "-D", folder / "data", "-U", "searcher", "--pwfile", folder / "password",
            "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"]  # fmt: skip
    subprocess.run(make, check=True, capture_output=True, user=user, cwd=folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c max_connections=200 -c fsync={'on' if fsync else 'off'}"
    control = [binaries / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, user=user, cwd=folder)
    try:
        yield f"postgresql://searcher:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, user=user, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)
