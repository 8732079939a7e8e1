"""A short run of ``make fuzz``, and that the fuzzer would notice."""

import random
from pathlib import Path

import pytest

import tests.fuzz.codec as fuzz
from proto.codec import decode
from proto.errors import RemoteError
from proto.messages import Message
from tests.fuzz.codec import CORPUS, VALUES, Report, make_input, run
from tests.fuzz.mutate import spoil_value

SEED = 20_260_617


def quiet(report: Report) -> None:
    pass


def test_some_thousand_hostile_inputs() -> None:
    report = Report(SEED)
    run(SEED, 6_000, report, quiet)
    assert report.failures == []
    assert report.num_inputs == 6_000
    assert len(report.accepted) >= 12, "the inputs are near enough to valid ones that some of most kinds pass"
    assert sum(report.accepted.values()) < report.num_inputs / 2


def test_an_input_is_made_again_from_its_two_numbers() -> None:
    assert [make_input(5, i) for i in range(50)] == [make_input(5, i) for i in range(50)]
    assert make_input(5, 1) != make_input(6, 1)


def test_a_value_written_without_a_mistake_is_the_message() -> None:
    assert [spoil_value(value, random.Random(1), 0.0) for value in VALUES] == CORPUS


def fail(data: bytes, *_: object) -> Message:
    raise RecursionError("deep")


def waste(data: bytes, *_: object) -> Message:
    held = bytearray(len(data) * 8 + (2 << 20))
    raise RemoteError(f"{len(held)} bytes")


@pytest.mark.parametrize(("broken", "said"), [(fail, "RecursionError: deep"), (waste, "bytes of memory")])
def test_a_codec_that_fails_is_found_out(
    broken: object, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fuzz, "decode", broken)
    monkeypatch.setattr(fuzz, "FAILURES_DIR", tmp_path)
    report = Report(SEED)
    run(SEED, 1_000, report, quiet)
    assert len(report.failures) >= fuzz.MAX_FAILURES and all(said in failure for failure in report.failures)
    kept = sorted(tmp_path.iterdir())
    with pytest.raises(RemoteError):
        decode(b"\xff" + bytes.fromhex(kept[0].read_text()))
