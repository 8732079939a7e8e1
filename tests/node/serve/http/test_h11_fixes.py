"""The expressions that replace two of h11's match the same lines, and take no longer for a wrong byte behind blanks."""

import random
import re

import pytest
from h11 import _abnf, _readers

from mycelia.node.serve.http import h11_fixes
from mycelia.node.serve.http.http1 import MAX_HEAD_BYTES
from tests.node.serve.http.serving import connected, dial, rest_of
from tests.node.serve.http.test_http1 import echo

BLANKS = b" \t" * (MAX_HEAD_BYTES // 2 - 1_000)
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BYTES = (b"a", b"-", b":", b" ", b"\t", b"\x00", b"\r", b"\n", b"\xff", b"\x0b", b";", b"1")


def test_the_same_lines_are_matched() -> None:
    h11_fixes.apply()
    header, chunk_header = (re.compile(text.encode()) for text in (_abnf.header_field, _abnf.chunk_header))
    assert header.pattern != _readers.header_field_re.pattern
    rng = random.Random(1)
    for _ in range(20_000):
        line = b"".join(rng.choices(BYTES, k=rng.randrange(10)))
        for old, new, data in (
            (header, _readers.header_field_re, b"a:" * rng.randrange(2) + line),
            (chunk_header, _readers.chunk_header_re, b"1" + line + b"\r\n"),
        ):
            wanted, found = old.fullmatch(data), new.fullmatch(data)
            assert (wanted and wanted.groupdict()) == (found and found.groupdict()), data


HEADER = b"a:" + BLANKS + b"\x00\r\n\r\n"


@pytest.mark.parametrize("data", [HEAD + HEADER, CHUNKED + b"0\r\n" + HEADER, CHUNKED + b"1;" + BLANKS + b"\n\r\n"])
async def test_a_wrong_byte_behind_blanks_takes_no_time(data: bytes) -> None:
    async with connected(echo) as stream:
        for _ in range(10):  # (each took 4 to 11 s)
            async with await dial(stream) as other:
                await other.send_all(data)
                assert not (await rest_of(other)).startswith(b"HTTP/1.1 200")
