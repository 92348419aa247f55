"""How many GPUs this machine has, asked of torch in a process of its own, which need not be loaded here."""

import subprocess
import sys

from march_search.config import DevicesConfig
from march_search.errors import ConfigError


def count() -> int:
    """GPUs that torch can use; 0 where torch cannot be loaded."""
    code = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(asked.stdout) if asked.returncode == 0 and asked.stdout.strip().isdigit() else 0


def require(devices: DevicesConfig) -> None:
    """Refuses a study for more GPUs than there are, before its text is prepared.

    Raises:
        ConfigError: `kind` is "cuda" and too few GPUs are here.
    """
    wanted = devices.ranks // devices.nodes * devices.parallel_trials
    if devices.kind == "cuda" and (found := count()) < wanted:
        raise ConfigError(
            f"[devices]: the study wants {wanted} GPUs and torch finds {found} here: run it elsewhere, lower ranks, or "
            'say kind = "cpu". --dry-run plans it without them.'
        )
