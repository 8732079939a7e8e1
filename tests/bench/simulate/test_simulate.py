"""``mycelia simulate`` at the command line: rows, equal results of equal seeds, and wrong command lines."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mycelia.node.cli import cli

SMALL = (
    *("simulate", "--peers", "4", "--rate", "2", "--seconds", "8", "--warmup", "2", "--rtt", "20"),
    *("--seeds", "2", "--jobs", "1"),
)


def run(*arguments: str) -> str:
    ran = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_a_row_a_policy_each_with_its_interval() -> None:
    text = run(*SMALL, "--policy", "all", "--json")
    report = json.loads(text)
    assert report["seeds"] == [1, 2] and report["scenario"]["rtt"] == "20"
    assert {row["policy"] for row in report["rows"]} >= {"mycelia", "random", "chwbl", "oracle", "gorgo"}
    for row in report["rows"]:
        quantities = {
            **{name: value for name, value in row.items() if name not in ("policy", "ttft_s")},
            **row["ttft_s"],
        }
        assert quantities.keys() >= {"hit_ratio", "hit_bound", "p50", "p90", "p99", "load_imbalance", "stale_share"}
        quantiles = quantities.pop("ttft_quantiles_s")
        assert len(quantiles) == 50 and quantiles == sorted(quantiles)
        assert quantities.keys() >= {"digest_bytes_per_s", "goodput_2s", "goodput_5s", "failed", "refused"}
        for measured in quantities.values():
            assert measured["min"] <= measured["value"] <= measured["max"]
    assert {one["policy"] for one in report["paired"]} == {row["policy"] for row in report["rows"]} - {"mycelia"}
    for one in report["paired"]:
        assert one["ttft_p99"]["low"] <= one["ttft_p99"]["value"] <= one["ttft_p99"]["high"]


def test_equal_seeds_print_equal_bytes() -> None:
    assert run(*SMALL, "--json") == run(*SMALL, "--json")


def test_a_table_has_a_line_a_policy(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = ({"timestamp": 900 * n, "input_length": 600, "output_length": 3, "hash_ids": [0, n]} for n in range(40))
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = run(*SMALL, "--workload", f"mooncake:{trace}", "--policy", "lmetric", "--policy", "mycelia")
    assert table.index("lmetric") < table.index("mycelia ") and "TTFT p50" in table


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workload", "words"], "no workload words"),
        (["--workload", "mmlu:file"], "no workload mmlu:file"),
        (["--workload", "mooncake"], "needs a file"),
        (["--policy", "best"], "no policy best"),
        (["--rtt", "far"], "--rtt far"),
        (["--rtt", "nan"], "--rtt must be"),
        (["--rate", "nan"], "finite"),
        (["--rate", "2", "--load", "0.5"], "twice"),
        (["--liars", "1"], "--liars"),
        (["--peers", "4", "--entries", "4", "--liars", "0.25"], "no liars"),
        (["--workload", "hotspot"], "needs --data"),
        (["--seconds", "inf"], "finite"),
        (["--peers", "4", "--entries", "5"], "--entries 5"),
    ],
)
def test_a_wrong_command_line_is_told(arguments: list[str], reason: str) -> None:
    ran = CliRunner().invoke(cli, ["simulate", *arguments])
    assert ran.exit_code == 2 and reason in ran.output


def test_help_is_quick_and_has_examples() -> None:
    text = run("simulate", "--help")
    assert "Examples:" in text and "--digest-age" in text
