"""Reports of several runs: intervals, the same numbers with any number of processes, and the page."""

import json
import stat
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from mycelia.bench.report.intervals import measured, paired_ratio
from mycelia.bench.report.plots import Bar, bars, curves
from mycelia.node.cli import cli
from mycelia.proto.wire.errors import LocalError
from tests.bench.simulate.test_simulate import SMALL, run

LINE = '{{"timestamp": {}, "input_length": 600, "output_length": 3, "hash_ids": [0, {}]}}\n'
"""A line of a trace."""


class _Page(HTMLParser):
    """The page's SVGs as they are written, and everything that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.svgs = ["<svg" + part.partition("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_has_every_policy_in_every_plot_and_fetches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "swarm & <b>co.html"
    rows = json.loads(run(*SMALL, "--seeds", "1", "--policy", "all", "--json", "--report", str(path)))["rows"]
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert page.fetched == [] and page.open == [] and "url(" not in text.replace("url(#", "") and "@import" not in text
    plots = [svg for svg in page.svgs if 'viewBox="0 0 460' in svg]
    assert len(plots) == 9
    for svg in plots:
        names = " ".join(ET.fromstring(svg).itertext())
        assert all(row["policy"] in names for row in rows)
    assert "mycelia" in page.text and "one cache without limits" in page.text
    assert "<b>co" not in text
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_what_others_wrote_is_escaped(tmp_path: Path) -> None:
    trace = tmp_path / "<script>alert(1)&.jsonl"
    trace.write_text("".join(LINE.format(900 * n, n) for n in range(40)))
    report = tmp_path / "page.html"
    run(*SMALL, "--workload", f"mooncake:{trace}", "--report", str(report))
    text = report.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)&amp;.jsonl" in text


def test_what_cannot_be_written_is_told_before_anything_is_simulated(tmp_path: Path) -> None:
    endless = ("simulate", "--peers", "2000", "--seconds", "1000000")
    for path in (tmp_path / "none" / "page.html", tmp_path):
        ran = CliRunner().invoke(cli, [*endless, "--report", str(path)])
        assert ran.exit_code != 0 and "[0/" not in ran.output
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_the_old_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    ran = CliRunner().invoke(
        cli, ["simulate", "--peers", "2", "--rate", "0.001", "--seconds", "1", "--report", str(page)]
    )
    assert ran.exit_code != 0
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]


def test_two_processes_find_what_one_does() -> None:
    arguments = (*SMALL, "--policy", "lmetric", "--policy", "mycelia", "--json")
    assert run(*arguments, "--jobs", "2") == run(*arguments, "--jobs", "1")


def test_measured_data_needs_its_directory(tmp_path: Path) -> None:
    for arguments in (["--workload", "hotspot"], ["--workload", "hotspot", "--data", str(tmp_path)]):
        ran = CliRunner().invoke(cli, ["simulate", *arguments])
        assert ran.exit_code != 0
    trace = tmp_path / "mooncake_conversation_trace.jsonl.gz"
    trace.write_text("".join(LINE.format(900 * n, n) for n in range(40)))
    (tmp_path / "internet_rtt_242_cities.json.gz").write_bytes(b"")
    told = json.loads(run(*SMALL, "--data", str(tmp_path), "--workload", "conversation", "--json"))
    assert told["scenario"]["workload"] == "conversation" and told["rows"][0]["hit_bound"]["value"] > 0.5


def test_seeds_are_compared_one_by_one() -> None:
    assert measured([1.0, 2.0, 6.0]).value == 3.0
    # Twice as fast on each seed, although the seeds differ.
    ratio = paired_ratio([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])
    assert ratio.value == ratio.low == ratio.high == 0.5 and ratio.is_better and not ratio.is_worse
    # t = 4.303 for two degrees of freedom: logarithms 0, 1, 2 have mean 1 and deviation 1.
    noisy = paired_ratio([1.0, 2.71828183, 7.3890561], [1.0, 1.0, 1.0])
    assert (noisy.min, noisy.max) == pytest.approx((1.0, 7.389), abs=1e-3)
    assert noisy.low == pytest.approx(0.2268, abs=1e-3) and not noisy.is_worse
    assert paired_ratio([2.0], [1.0]).low == 2.0
    for wrong in (([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])):
        with pytest.raises(ValueError, match="paired"):
            paired_ratio(*wrong)


def test_colours_of_a_plot_are_those_of_its_page_and_names_are_escaped() -> None:
    one = Bar("<a>", 11, 1.0, 0.5, 2.0, mark=0.0)
    svg = bars([one, one], "<title>", is_log=True)
    assert "var(--s11)" in svg and "var(--ink)" in svg and "#ab" not in svg
    assert "&lt;a&gt;" in svg and "&lt;title&gt;" in svg and ET.fromstring(svg) is not None
    with pytest.raises(ValueError, match="without a row"):
        bars([], "title")
    with pytest.raises(ValueError, match="without a point"):
        curves([], "x", "y")


def test_what_is_missing_is_told_with_its_fix_before_anything_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mycelia.bench.report.extra.find_spec", lambda name: None)
    compared = (*SMALL, "--policy", "mycelia", "--policy", "lmetric")
    for arguments, package in (
        ((*SMALL, "--report", str(tmp_path / "page.html")), "matplotlib"),
        ((*compared, "--json"), "scipy"),
    ):
        ran = CliRunner().invoke(cli, arguments)
        assert isinstance(ran.exception, LocalError) and f"needs the package {package}" in str(ran.exception)
        assert "pip install 'mycelia[bench]'" in str(ran.exception) and "[0/" not in ran.output
    assert list(tmp_path.iterdir()) == [] and "lmetric" in run(*compared), "the table needs nothing more"
