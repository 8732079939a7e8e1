"""Where llama.cpp's sources are, whose chat templates and vocabularies some tests read. Set-up compiles them from the
source distribution of llama-cpp-python; nothing of them is kept in this repository."""

from pathlib import Path

_PLACES = (
    (Path(__file__).parents[1] / ".venv", "llama.cpp"),
    (Path.home() / ".cache/uv/sdists-v11/pypi/llama-cpp-python", "*/*/src/vendor/llama.cpp"),
)


def llama_cpp_sources() -> Path | None:
    """None: they are not on this machine."""
    found = (path for place, pattern in _PLACES for path in sorted(place.glob(pattern)))
    return next((path for path in found if (path / "models/templates").is_dir()), None)
