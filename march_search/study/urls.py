"""Storage settings: where the URL is, and what of it may be written down."""

import os
from urllib.parse import urlsplit

from march_search.errors import ConfigError


def resolve(url: str | None) -> str | None:
    """The storage's URL: as it is, or what the environment variable of `env:NAME` holds.

    Raises:
        ConfigError: the variable is not set.
    """
    if url is None or not url.startswith("env:"):
        return url
    name = url.removeprefix("env:")
    if not os.environ.get(name):
        raise ConfigError(f"storage is {url!r}, and the environment variable {name} is not set: export it first.")
    return os.environ[name]


def public(url: str | None) -> str | None:
    """What may be written down of a storage's setting: all of it but a password; `env:NAME` stays a name."""
    if url is None or url.startswith("env:"):
        return url
    parts = urlsplit(url)
    if parts.query:  # a password may stand there, too
        parts = parts._replace(query="")
    if parts.password is None:
        return parts.geturl()
    name = f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=name + parts.netloc.rpartition("@")[2]).geturl()
