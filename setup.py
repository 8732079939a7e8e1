"""The two things that setup.cfg cannot say.

The folders at the top are packages of ``mycelia``, with all their subfolders. (Other distributions install packages
called ``proto`` and ``node``.) And the README's links are relative: on an index page they lead to the repository, or
are plain words while setup.cfg names none.
"""

import re
from configparser import RawConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("bench", "node", "proto", "sim")
HERE = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def for_index_page(readme: str, repository: str, version: str) -> str:
    """The README as it reads where none of the repository's files is beside it."""

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if "://" in target:
            return found[0]
        if not repository:
            return "" if picture else words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/v{version}/{target})"

    return LINK.sub(link, readme)


if __name__ == "__main__":
    config = RawConfigParser()
    config.read(HERE / "setup.cfg", "utf-8")
    repository, version = config["mycelia"]["repository"], config["metadata"]["version"]
    urls = {
        "Source": repository,
        "Documentation": f"{repository}/tree/v{version}/docs",
        "Changelog": f"{repository}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    setup(
        packages=[f"mycelia.{name}" for room in ROOMS for name in find_packages(include=[room, f"{room}.*"])],
        long_description=for_index_page((HERE / "README.md").read_text("utf-8"), repository, version),
        long_description_content_type="text/markdown",
        project_urls={"Paper": "https://arxiv.org/abs/2606.17059"} | (urls if repository else {}),
    )
