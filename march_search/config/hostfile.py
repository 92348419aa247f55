"""Read the host file of DeepSpeed's launcher, as strictly as the launcher reads it."""

import re
from collections.abc import Iterator
from pathlib import Path

from march_search.config.devices_config import DevicesConfig
from march_search.config.loader import refuse
from march_search.errors import ConfigError, shown

_LINE = re.compile(r"(\S+)\s+slots=(\d+)(?:\s.*)?", re.ASCII)
_HOST = re.compile(r"(?:[\w.-]+@)?([\w.-]+|[\da-f]*:[\da-f]*:[\da-f:.]*)", re.ASCII | re.IGNORECASE)
"""A name or an address, with or without the user that ssh logs in as."""


def addresses(devices: DevicesConfig) -> list[str]:
    """Return the addresses of all hosts in the file, in order; a trial uses the first `nodes`.

    Empty if DeepSpeed's launcher does not start the ranks.

    The host file has one line `name slots=8` per host. `user@name` is reached as that user, at the address `name`.

    Raises:
        ConfigError: If the file cannot be read, a line is invalid, or there are too few hosts or slots. The error lists
            all faults.
    """
    if devices.launcher != "deepspeed" or devices.hostfile is None:
        return []
    path = Path(devices.hostfile)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    found: dict[str, int] = {}
    faults = list(_faults(lines, found))
    hosts, share = list(found), devices.ranks // devices.nodes
    if not faults and len(hosts) < devices.nodes:
        faults.append(f"has {len(hosts)} hosts, but [devices] nodes is {devices.nodes}.")
    for host in hosts[: devices.nodes]:
        if found[host] < share:
            faults.append(
                f"{host} has {found[host]} slots, but [devices] ranks ({devices.ranks}) and nodes ({devices.nodes}) "
                f"need {share} on each host."
            )
    refuse(f"{path}: {fault}" for fault in faults)
    return [host.rpartition("@")[2] for host in hosts]


def _faults(lines: list[str], found: dict[str, int]) -> Iterator[str]:
    """Add the slots of each host to `found`, and yield one sentence for each line that is invalid."""
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            yield f'line {number}: {shown(line)} must be "name slots=8".'
        elif not _HOST.fullmatch(match[1]):
            yield f'line {number}: invalid host {shown(match[1])}; write "name slots=8".'
        elif match[1] in found:
            yield f"line {number}: {shown(match[1])} has more than one line."
        else:
            found[match[1]] = int(match[2])
