"""Changing single values of a configuration file."""

import tomllib

import click
import pytest

from mycelia.node.commands.config_edit import with_values


def test_values_are_written_and_the_rest_stays() -> None:
    before = '# mine\ndata_dir = "x"\n\n[node]  # the node\nmodel = "old" # small\nthreads = 3 # few\n'
    before += '\n[keys.bob]\nfile = "k"\n'
    made = with_values(before, "node", {"model": "new", "hours": ["22:00-08:00"], "polite": True, "memory": 2.5})
    assert tomllib.loads(made)["node"] == {
        "model": "new",
        "hours": ["22:00-08:00"],
        "polite": True,
        "memory": 2.5,
        "threads": 3,
    }
    assert made.startswith('# mine\ndata_dir = "x"\n\n[node]  # the node\n') and "threads = 3 # few\n" in made
    assert tomllib.loads(made)["keys"] == {"bob": {"file": "k"}}
    again = with_values(made, "node", {"polite": None, "hours": None, "memory": None})
    assert tomllib.loads(again)["node"] == {"model": "new", "threads": 3}


def test_a_missing_section_is_added() -> None:
    assert with_values("", "node", {"model": "m"}) == '[node]\nmodel = "m"\n'
    assert tomllib.loads(with_values('data_dir = "x"\n', "node", {"model": "m"}))["node"] == {"model": "m"}


@pytest.mark.parametrize(
    "before", ['node = { model = "old" }\n', '[node]\nmodel = """\nold"""\n', "node.threads = 3\n"]
)
def test_a_file_of_unusual_form_is_left_to_its_owner(before: str) -> None:
    with pytest.raises(click.ClickException, match=r'unusual form: write there by hand: model = "m"'):
        with_values(before, "node", {"model": "m"})
