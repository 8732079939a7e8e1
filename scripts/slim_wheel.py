"""Makes a wheel of llama-cpp-python small, and unpacks its libraries: ``python scripts/slim_wheel.py WHEEL FOLDER``.

A wheel cannot have symbolic links, so the build puts three copies of each library into it; the loader asks for one.
Headers, CMake's files and tools of llama.cpp go, too. The wheel is replaced; FOLDER gets the libraries.
"""

import hashlib
import re
import shutil
import sys
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

LIBRARIES = PurePosixPath("llama_cpp/lib")
_LIBRARY = re.compile(r"(?P<stem>lib[\w.-]+?)\.so(?P<version>(\.\d+)*)")


def wanted_libraries(names: Iterable[str]) -> set[str]:
    """One name for each library: the bindings load ``libllama.so``, the loader then ``libggml.so.0`` by its soname;
    plug-ins have no version."""
    versions: dict[str, set[str]] = {}
    for name in names:
        found = _LIBRARY.fullmatch(name)
        if found:
            versions.setdefault(found["stem"], set()).add(found["version"])
    chosen = set()
    for stem, known in versions.items():
        soname = [version for version in known if version.count(".") == 1]
        chosen.add(f"{stem}.so{'' if stem == 'libllama' or not soname else soname[0]}")
    return chosen


def keeps(name: str, libraries: set[str]) -> bool:
    path = PurePosixPath(name)
    if path.parent == LIBRARIES:
        return path.name in libraries
    return (path.parts[0] == "llama_cpp" and path.suffix in (".py", ".typed")) or ".dist-info" in path.parts[0]


def slim(wheel: Path, folder: Path) -> None:
    """Rewrite ``wheel`` and fill ``folder``, each in one step."""
    smaller, unpacked = wheel.with_suffix(".new"), folder.with_name(f"{folder.name}.new")
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    record = []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
        names = [name for name in old.namelist() if not name.endswith("/")]
        libraries = wanted_libraries(path.name for path in map(PurePosixPath, names) if path.parent == LIBRARIES)
        [record_name] = [name for name in names if name.endswith(".dist-info/RECORD")]
        for name in names:
            if name == record_name or not keeps(name, libraries):
                continue
            data = old.read(name)
            new.writestr(old.getinfo(name), data)
            digest = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
            if PurePosixPath(name).parent == LIBRARIES:
                (unpacked / PurePosixPath(name).name).write_bytes(data)
        new.writestr(record_name, "\n".join([*record, f"{record_name},,", ""]))
    smaller.replace(wheel)
    shutil.rmtree(folder, ignore_errors=True)
    unpacked.rename(folder)


if __name__ == "__main__":
    slim(Path(sys.argv[1]), Path(sys.argv[2]))
