"""The version of this program, read from the installed distribution."""

from importlib import metadata


def _installed() -> str:
    try:
        return metadata.version("mycelia")
    except metadata.PackageNotFoundError:
        return "0+source"


VERSION = _installed()
