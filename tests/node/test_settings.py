"""What the command line of a node is checked for before anything starts."""

from pathlib import Path

import pytest

from node.settings import MAX_LIST_BYTES, UsageError, check_cors, read_api_keys, read_bootstrap


def test_origins_are_those_that_browsers_send() -> None:
    good = ("*", "null", "https://chat.example", "http://localhost:3000", "http://[::1]:3000", "app://obsidian.md")
    assert check_cors(good) == good
    for wrong in ("chat.example", "https://a.example/", "https://A.example", "https://a https://b", "https://", ""):
        with pytest.raises(UsageError, match="no origin of web pages"):
            check_cors((wrong,))


def test_lists_have_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text("#" * MAX_LIST_BYTES)
    assert read_bootstrap((str(file),)) == ()
    for endless in (str(file), "/dev/zero"):
        with file.open("a") as more:
            more.write("#")
        with pytest.raises(UsageError, match=f"{endless} is over"):
            read_bootstrap((endless,))
        with pytest.raises(UsageError, match=f"{endless} is over"):
            read_api_keys("127.0.0.1", Path(endless), "")
