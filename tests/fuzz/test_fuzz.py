"""A short run of ``make fuzz``, and proof that the fuzzer finds failures."""

import ast
import os
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

import tests.fuzz.run as fuzz
import tests.fuzz.targets.codec as codec_target
from mycelia.proto.wire.codec import decode
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Message
from tests.fuzz.mutate import spoil_value
from tests.fuzz.run import Report, Target, found_targets, make_input, run, shares
from tests.fuzz.targets.codec import CORPUS, VALUES, Codec

SEED = 20_260_617
NUM_INPUTS = 10_000
TARGETS = found_targets()
SHARES = dict(zip(TARGETS, shares(TARGETS, NUM_INPUTS), strict=True))


def quiet(report: Report) -> None:
    pass


@pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.name)
def test_hostile_inputs(kind: type[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "FAILURES_DIR", tmp_path)
    target, report = kind(), Report(kind.name, SEED)
    try:
        run(target, report, SHARES[kind], quiet)
    finally:
        getattr(target, "close", lambda: None)()
    assert report.failures == []
    assert report.num_inputs == SHARES[kind]
    assert report.num_accepted > 0, "the inputs are near enough to valid ones that some pass"


def test_most_of_the_codecs_inputs_are_wrong_and_some_of_most_kinds_pass() -> None:
    codec = Codec()
    kinds: Counter[type[Message]] = Counter()
    for number in range(4_000):
        with suppress(RemoteError):
            kinds[type(decode(make_input(codec, SEED, number)[0]))] += 1
    assert len(kinds) >= 12
    assert kinds.total() < 2_000


def test_an_input_is_made_again_from_its_target_and_its_two_numbers() -> None:
    assert [make_input(Codec(), 5, i) for i in range(50)] == [make_input(Codec(), 5, i) for i in range(50)]
    assert make_input(Codec(), 5, 1) != make_input(Codec(), 6, 1)


def test_a_value_written_without_a_mistake_is_the_message() -> None:
    assert [spoil_value(value, random.Random(1), 0.0) for value in VALUES] == CORPUS


def fail(data: bytes, *_: object) -> Message:
    raise RecursionError("deep")


def waste(data: bytes, *_: object) -> Message:
    held = bytearray(len(data) * 8 + (2 << 20))
    raise RemoteError(f"{len(held)} bytes")


def end(data: bytes, *_: object) -> Message:
    raise SystemExit(1)


def hang(data: bytes, *_: object) -> Message:
    while True:
        try:
            while True:
                pass
        except Exception:  # noqa: BLE001 the checked code may do so
            pass


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (fail, "RecursionError: deep"),
        (waste, "bytes of memory"),
        (end, "SystemExit: 1"),
        (hang, "HangError: more than 0.1 s"),
    ],
)
def test_a_codec_that_fails_is_found_out(
    broken: object, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(codec_target, "decode", broken)
    monkeypatch.setattr(fuzz, "FAILURES_DIR", tmp_path)
    monkeypatch.setattr(fuzz, "HANG_S", 0.1)
    monkeypatch.setattr(fuzz, "BATCH", 64)
    report = Report("codec", SEED)
    run(Codec(), report, 12 if broken is hang else 1_000, quiet)
    assert len(report.failures) >= fuzz.MAX_FAILURES and all(said in failure for failure in report.failures)
    kept = sorted(tmp_path.iterdir())
    data, _ = ast.literal_eval(kept[0].read_text())
    with pytest.raises(RemoteError):
        decode(b"\xff" + data)


class Ends:
    name = "ends"

    def make(self, rng: random.Random) -> int:
        return rng.randrange(4)

    def check(self, item: int) -> bool:
        if item == 3:
            os._exit(0)
        return True


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_input_that_ends_the_process_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "FAILURES_DIR", tmp_path)
    assert fuzz.run_in_child([Ends], 1, 100) == 1
    number = next(number for number in range(100) if make_input(Ends(), 1, number) == 3)
    assert f"--target ends --only {number}'" in capfd.readouterr().out
    assert fuzz.run_in_child([Codec], 1, 20) == 0
