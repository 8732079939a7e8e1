"""Copies chat templates and vocabularies from llama.cpp's sources to ``.venv/llama.cpp``, for tests of models that are
not here. Run by make: ``python scripts/test_models.py``. They are a part of llama-cpp-python's source archive, which
pip fetches in the version that ``setup.cfg`` names (77 MB; pip keeps a copy). Without them those tests are skipped, so
a failure here is no error.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv" / "llama.cpp" / "models"
_WANTED = re.compile(r"[^/]+/vendor/llama\.cpp/models/(templates/[^/]+\.jinja|ggml-vocab-[a-z0-9-]+\.gguf)")


def main() -> None:
    if (FOLDER / "templates").is_dir():
        return
    found = re.search(r"^ *(llama-cpp-python==\S+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert found is not None, "setup.cfg names the version"
    sys.stdout.write("Fetching chat templates and vocabularies for the tests (77 MB to download) ...\n")
    with tempfile.TemporaryDirectory(dir=ROOT / ".venv") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        fetched = subprocess.run([*pip, "--no-binary", "llama-cpp-python", "--dest", folder, found[1]], check=False)
        if fetched.returncode:
            sys.stdout.write("That failed; the tests that need them are skipped.\n")
            return
        (archive,) = Path(folder).glob("*.tar.gz")
        copy = Path(folder) / "models"
        with tarfile.open(archive) as members:
            for member in members:
                name = _WANTED.fullmatch(member.name)
                content = members.extractfile(member) if name else None
                if name and content:
                    (copy / name[1]).parent.mkdir(parents=True, exist_ok=True)
                    (copy / name[1]).write_bytes(content.read())
        FOLDER.parent.mkdir(exist_ok=True)
        copy.rename(FOLDER)


if __name__ == "__main__":
    main()
