"""`march-search study worker | storage-proxy`: add worker processes on any host to a started study."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from march_search.commands import Verbs
from march_search.commands.options import add_action, add_examples, add_study, positive, refuse_without_effect
from march_search.commands.output import report_summary

if TYPE_CHECKING:
    from march_search.config.study_config import StudyConfig
    from march_search.storage.study_folder import StudyFolder


def add_actions(actions: Verbs) -> None:
    """Add the actions to `march-search study`."""
    worker = add_action(actions, "worker", "train trials of a started study, in parallel with other workers")
    add_study(worker)
    slurm = worker.add_argument_group("Slurm")
    slurm.add_argument("--sbatch", action="store_true", help="print a Slurm job script for workers instead")
    slurm.add_argument(
        "--workers", type=positive, metavar="N", help="jobs in the array (default: one per trial, at most 8)"
    )
    slurm.add_argument("--time", metavar="T", help="time limit of a job, e.g. 8:00:00 or 2-00 (default: 24:00:00)")
    slurm.add_argument("--account", metavar="NAME", help="account that is charged")
    slurm.add_argument("--partition", metavar="NAME", help="partition of the jobs")
    slurm.add_argument("--cpus", type=positive, metavar="N", help="CPUs per task (default: those of the threads)")
    slurm.add_argument(
        "--sbatch-option", metavar="O", action="append", default=[], help="another option of sbatch; may be repeated"
    )
    add_examples(
        worker,
        "march-search study worker my-study",
        "march-search study worker my-study --sbatch --account lab --time 8:00:00 > workers.sh",
        "march-search study worker my-study --sbatch --sbatch-option=--qos=long | sbatch",
    )
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
    from march_search.planning import gpus
    from march_search.storage import study_storage
    from march_search.study.runner import StudyRun

    names = ("workers", "time", "account", "partition", "cpus", "sbatch_option")
    if not options.sbatch:
        refuse_without_effect(options, names, "without --sbatch")
    folder, config = named_study(options.study, options.root).to_continue(first="create")
    if options.sbatch:
        _print_script(folder, config, options)
        return 0
    study_storage.check(config.storage, folder.path)
    gpus.claim(config.devices)
    return report_summary(StudyRun(config, folder, verified_store(folder)).run(), folder)


def _print_script(folder: "StudyFolder", config: "StudyConfig", options: argparse.Namespace) -> None:
    """Print the Slurm job script of the study's workers."""
    from march_search.storage import usage
    from march_search.study import status
    from march_search.study.outlook import trial_counts
    from march_search.study.slurm import SlurmOptions, job_script

    study = status.open_started(folder, config)
    left = trial_counts(study.get_trials(deepcopy=False), usage.planned_trials(folder.path, config)).left
    names = {"workers": options.workers, "time": options.time, "account": options.account,
             "partition": options.partition, "cpus": options.cpus, "others": tuple(options.sbatch_option)}  # fmt: skip
    chosen = SlurmOptions(**{name: value for name, value in names.items() if value is not None})
    sys.stdout.write(job_script(folder.path, config, left, chosen))


def run_proxy(options: argparse.Namespace) -> int:
    """Serve a storage until interrupted."""
    from concurrent.futures import ThreadPoolExecutor

    from optuna.storages._grpc.server import make_server

    from march_search.config.study_config import parse_storage, resolve_storage
    from march_search.errors import UsageError
    from march_search.processes import Signals
    from march_search.storage import study_storage

    if not 1 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}: use a number from 1 to 65535.")
    url = resolve_storage(options.storage) or ""
    if not options.storage.startswith("env:"):
        raise UsageError("storage-proxy reads its URL from an environment variable, to keep it private: use env:NAME.")
    if not parse_storage(url).get_backend_name().startswith("postgres"):
        raise UsageError("storage-proxy serves PostgreSQL only: with a journal or SQLite it would lose records.")
    with study_storage.guarded(), ThreadPoolExecutor(max_workers=10) as pool, Signals() as signals:
        server = make_server(study_storage.opened(url, Path()), options.host, options.port, pool)
        server.start()
        print(f"serving at grpc://{options.host}:{options.port}; press Ctrl-C to stop", file=sys.stderr, flush=True)
        while server.wait_for_termination(timeout=0.5) and not signals.signum:
            pass
        server.stop(5).wait()
        return 128 + signals.signum
