"""The folder in memory: it ends with its process, whatever becomes of that."""

import os
import subprocess
import sys
from pathlib import Path

from mycelia.node.engine.pool.memory import PREFIX, memory_folder, resident_bytes, trim, used_bytes

CRASH = """
import os, sys
from pathlib import Path
from mycelia.node.engine.pool.memory import memory_folder
with memory_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("a prompt")
    os._exit(1)
"""


def test_the_folder_is_the_users_alone_and_gone_after_the_block(tmp_path: Path) -> None:
    with memory_folder(tmp_path) as folder:
        assert folder is not None and folder.stat().st_mode & 0o077 == 0
        (folder / "file").write_text("a prompt")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    other = tmp_path / f"{PREFIX}link"
    other.symlink_to("/etc")
    with memory_folder(tmp_path) as mine:
        assert not left.exists() and other.is_symlink()
        with memory_folder(tmp_path) as another:
            assert mine is not None and mine.exists() and another is not None and another != mine


def test_without_shared_memory_there_is_none(tmp_path: Path) -> None:
    with memory_folder(tmp_path / "missing") as folder:
        assert folder is None


def test_the_files_that_were_not_used_longest_go_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / "inner" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1_000))
        os.utime(path, (1_000 - age, 1_000 - age))
    assert used_bytes(tmp_path) == 3_000
    trim(tmp_path, 2_500)
    assert {path.name for path in (tmp_path / "inner").iterdir()} == {"new", "middle"}
    trim(tmp_path, 0)
    assert used_bytes(tmp_path) == 0


def test_the_memory_of_a_process_that_is_gone_is_unknown() -> None:
    assert resident_bytes(os.getpid()) > 2**20
    assert resident_bytes(2**22 + 1) == 0
