"""Versions of installed Python packages."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name."""
    result = {}
    for name in names:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result
