"""Resolve the storage URL of a study, and remove passwords from it."""

import os
from urllib.parse import urlsplit

from march_search.errors import ConfigError


def resolve(url: str | None) -> str | None:
    """Return the storage URL; read it from the environment variable NAME if it is `env:NAME`.

    Raises:
        ConfigError: If the variable is not set.
    """
    if url is None or not url.startswith("env:"):
        return url
    name = url.removeprefix("env:")
    if not os.environ.get(name):
        raise ConfigError(f"storage is {url!r}, but the environment variable {name} is not set: export it first.")
    return os.environ[name]


def public(url: str | None) -> str | None:
    """Return the URL without its password and query; `env:NAME` is returned unchanged."""
    if url is None or url.startswith("env:"):
        return url
    parts = urlsplit(url)
    if parts.query:  # it may contain a password
        parts = parts._replace(query="")
    if parts.password is None:
        return parts.geturl()
    name = f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=name + parts.netloc.rpartition("@")[2]).geturl()
