"""What the soak computes from its samples; the measurements themselves are not for tests."""

from xml.etree import ElementTree as ET

import pytest

from mycelia.bench.chaos.soak import DATA_BYTES, Sample, Soak, _rows, failures_of, growth, plot_of


def sample(at_s: float, node_rss: int, num_tasks: int = 10, num_files: int = 20, num_engines: int = 1) -> Sample:
    return Sample(at_s, node_rss, 2 * node_rss, 1_000, num_files, num_tasks, 0, num_engines)


def soak(sizes: list[int]) -> Soak:
    made = Soak(warm_s=100.0, num_answered=1, num_nodes=2)
    # (samples before the end of the warm-up do not count)
    made.samples = {0: [sample(50.0, 1), *(sample(100.0 + at, size) for at, size in enumerate(sizes))]}
    made.idle, made.after = {0: sample(99.0, sizes[0])}, {0: sample(200.0, sizes[-1])}
    return made


def test_growth_is_that_from_the_first_tenth_to_the_last() -> None:
    assert growth(soak([100] * 20 + [150] * 20), lambda one: one.node_rss) == pytest.approx(0.5)
    assert growth(soak([100] * 39 + [900]), lambda one: one.node_rss) == pytest.approx(0.0), "one outlier"


def test_growth_is_that_of_the_worst_node() -> None:
    two = soak([100] * 10)
    two.samples[1] = soak([100] * 5 + [120] * 5).samples[0]
    assert growth(two, lambda one: one.engine_rss) == pytest.approx(0.2)


def test_what_is_more_than_at_idle_has_leaked() -> None:
    made = soak([100] * 10)
    made.after = {0: sample(200.0, 100, num_tasks=13, num_files=19)}
    rows = {row.name: row.value for row in _rows(made)}
    assert rows["leaked_tasks"] == 3 and rows["leaked_files"] == -1 and rows["leaked_streams"] == 0


def test_a_second_engine_at_the_end_is_no_leak() -> None:
    made = soak([100] * 10)
    made.samples[0] += [
        sample(at, 100, tasks, files, 2) for at, tasks, files in ((60, 12, 24), (61, 14, 22), (150, 9, 9))
    ]
    made.after = {0: sample(200.0, 100, num_tasks=12, num_files=23, num_engines=2)}
    rows = {row.name: row.value for row in _rows(made)}
    assert rows["leaked_tasks"] == 0 and rows["leaked_files"] == 1


def test_each_bar_that_is_missed_is_named() -> None:
    assert failures_of(soak([100] * 10)) == []
    made = soak([100] * 10 + [110] * 10)
    made.after = {0: sample(200.0, 110, num_tasks=13, num_files=19)}
    made.most_data_bytes, made.most_cache_bytes, made.num_engines_lost = DATA_BYTES + 1, 1 << 40, 2
    made.num_unanswered = 1
    said = failures_of(made)
    assert said == [
        "nodes' memory grew by 10.0%",
        "engines' memory grew by 10.0%",
        "2 engines were lost",
        "1 questions to watched nodes got no answer",
        f"a data directory took {DATA_BYTES + 1} bytes",
        f"the prefixes on disk took {1 << 40} bytes",
        "3 tasks leaked",
    ]
    assert {row.name: row.value for row in _rows(made)}["missed_bars"] == len(said)


def test_the_plot_is_a_file_that_stands_alone() -> None:
    root = ET.fromstring(plot_of(soak([1 << 20, 3 << 20])))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"engine 1", "node 1", "minutes", "MiB"} <= set(root.itertext())
