"""Start processes in milliseconds: fork them from one that has loaded torch, DeepSpeed and Optuna already."""

import multiprocessing
import os
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from unittest import mock

LIBRARIES = ["march_search.training.loop", "deepspeed", "march_search.study.runner", "sqlalchemy"]


@cache
def forks() -> ForkServerContext:
    """Return a multiprocessing context whose processes have `LIBRARIES` loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    with mock.patch.dict(os.environ, DS_ACCELERATOR="cpu"):  # otherwise DeepSpeed looks for a GPU
        forkserver.ensure_running()
    return context
