"""Options made from dataclasses: ranges, defaults, units, and the help of the real ones."""

from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mycelia.bench.cli import bench
from mycelia.bench.options import options_of
from mycelia.bench.simulate.command import simulate
from mycelia.sim.setting import setting


@dataclass(frozen=True)
class Plan:
    count: int = setting(4, "How many.", "--number", least=2, most=8)
    length_s: float = setting(120.0, "Length in minutes.", "--minutes", above=0, scale=60.0)
    kinds: tuple[str, ...] = setting(("a", "b"), "Kinds.", "--kind", choices=["a", "b", "c"], shows_default=False)
    is_exact: bool = setting(True, "Exact or fast.", "--exact/--fast")
    file: Path | None = setting(None, "A file.", path="file")
    limit: float | None = setting(None, "A limit.", least=0)
    internal: int = 7


def made(*arguments: str) -> Plan | str:
    found: list[Plan] = []

    @click.command()
    @options_of(Plan)
    @click.option("--more", is_flag=True)
    def command(plan: Plan, more: bool) -> None:
        found.append(plan)

    ran = CliRunner().invoke(command, arguments)
    return found[0] if found else ran.output


def test_what_is_not_given_is_as_the_dataclass_has_it() -> None:
    assert made("--more") == Plan()


def test_what_is_given_is_in_the_units_and_types_of_the_field(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    given = ("--number", "8", "--minutes", "0.5", "--kind", "c", "--fast", "--file", str(file), "--limit", "0")
    assert made(*given) == Plan(8, 30.0, ("c",), False, file, 0.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--number", "9"),
        ("--minutes", "0"),
        ("--minutes", "nan"),
        ("--limit", "inf"),
        ("--kind", "d"),
        ("--file", "/-"),
    ],
)
def test_what_is_out_of_range_is_told(option: str, value: str) -> None:
    told = made(option, value)
    assert isinstance(told, str) and option in told


def test_help_shows_defaults_and_ranges_in_the_units_of_the_option() -> None:
    told = " ".join(str(made("--help")).split())
    assert "How many. [default: 4; 2<=x<=8]" in told and "Length in minutes. [default: 2.0; x>0]" in told
    assert "internal" not in told and "[default: a" not in told


def test_every_help_text_stands_alone() -> None:
    for command in [*bench.commands.values(), simulate]:
        for option in command.params:
            if isinstance(option, click.Argument):
                continue  # (the command's own help tells what it is)
            assert isinstance(option, click.Option) and option.help
            words = option.help.split()
            assert words[0] not in ("Of", "That", "To", "At") and (len(words) > 2 or words[-1].endswith(".")), (
                option.help
            )
