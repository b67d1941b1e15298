"""The version, said once in pyproject.toml."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pathfm")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"
