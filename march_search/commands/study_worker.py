"""`march-search study worker | storage-proxy`: add worker processes on any host to a started study."""

import argparse
import sys
from pathlib import Path

from march_search.commands import Verbs
from march_search.commands.options import add_action, add_examples, add_study
from march_search.commands.output import report_summary

SBATCH = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-8              # eight workers
#SBATCH --gpus={ranks}
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300      # five minutes before the limit: the trial saves, another worker resumes it
#SBATCH --requeue
#SBATCH --open-mode=append
# The study needs a file system with locks that all nodes share, and PostgreSQL storage, directly or through grpc://.
march-search study worker {name} --root {root} &
worker=$!
trap 'kill -TERM $worker' TERM
wait $worker; code=$?
while kill -0 $worker 2>/dev/null; do wait $worker; code=$?; done
if [ $code -eq 143 ]; then scontrol requeue "$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"; fi
exit $code
"""


def add_actions(actions: Verbs) -> None:
    """Add the actions to `march-search study`."""
    worker = add_action(actions, "worker", "train trials of a started study, in parallel with other workers")
    add_study(worker)
    worker.add_argument("--sbatch", action="store_true", help="print a Slurm job script for workers instead")
    add_examples(worker, "march-search study worker my-study", "march-search study worker my-study --sbatch | sbatch")
    worker.set_defaults(run=run_worker)
    proxy = add_action(actions, "storage-proxy", "serve a PostgreSQL storage to many workers over gRPC")
    proxy.add_argument("storage", metavar="STORAGE", help="env:NAME, an environment variable with a PostgreSQL URL")
    proxy.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    proxy.add_argument("--port", type=int, default=13000, help="port to listen on (default: 13000)")
    add_examples(proxy, "march-search study storage-proxy env:STORAGE_URL --host 0.0.0.0")
    proxy.set_defaults(run=run_proxy)


def run_worker(options: argparse.Namespace) -> int:
    """Train trials of a study until it ends, or print a Slurm job script."""
    from march_search.commands.prepare import verified_store
    from march_search.commands.studies import named_study
    from march_search.study import gpus, storage
    from march_search.study.runner import StudyRun

    folder, config = named_study(options.study, options.root).to_continue()
    root = folder.path.parent
    if options.sbatch:
        sys.stdout.write(SBATCH.format(name=folder.path.name, ranks=config.devices.ranks, root=root.resolve()))
        return 0
    storage.check(config.storage, folder.path)
    gpus.claim(config.devices)
    return report_summary(StudyRun(config, folder, verified_store(folder)).run(), folder)


def run_proxy(options: argparse.Namespace) -> int:
    """Serve a storage until interrupted."""
    from concurrent.futures import ThreadPoolExecutor

    from optuna.storages._grpc.server import make_server

    from march_search.config.study_config import parse_storage, resolve_storage
    from march_search.errors import UsageError
    from march_search.study import storage
    from march_search.study.job import Signals

    url = resolve_storage(options.storage) or ""
    if not options.storage.startswith("env:"):
        raise UsageError("storage-proxy reads its URL from an environment variable, to keep it private: use env:NAME.")
    if not parse_storage(url).get_backend_name().startswith("postgres"):
        raise UsageError("storage-proxy serves PostgreSQL only: with a journal or SQLite it would lose records.")
    with storage.guarded(), ThreadPoolExecutor(max_workers=10) as pool, Signals() as signals:
        server = make_server(storage.opened(url, Path()), options.host, options.port, pool)
        server.start()
        print(f"serving at grpc://{options.host}:{options.port}; press Ctrl-C to stop", file=sys.stderr, flush=True)
        while server.wait_for_termination(timeout=0.5) and not signals.signum:
            pass
        server.stop(5).wait()
        return 128 + signals.signum
