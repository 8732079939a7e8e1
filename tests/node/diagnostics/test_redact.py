"""Secrets and addresses do not leave the machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.node.diagnostics.redact import Redactor

KEY = "c0ffee" * 8
SHA = "ab" * 32
HIDDEN = [
    f"Authorization: Bearer {KEY}",
    f"alice,sha256={SHA},concurrent=2",
    "mycelia join mycelia1qqqsyqcyq5rqwzqfpg9scrgwpugpzysnzs23v9ccrydpk8qarc0",
    "token hf_abcdefghijklmnopqrstuv",
    f'sha256 = "{KEY}"',
    f'  key = ["alice,sha256={KEY}"]',
    f'{{"api_key": "{KEY}", "pid": 3}}',
    "peer 8.8.8.8 and /ip4/203.0.113.7/tcp/7117",
    "2606:4700:4700::1111 and /ip6/2a00:1450:4001:82a::200e/tcp/1",
    "/dns4/node.example.org/tcp/7117 /dnsaddr/other.example.org",
    "/home/alice/models/x.gguf",
    f'[keys]\nalice = {{ sha256 = "{SHA}" }}',
    f'{{"sha256": "{SHA}"}}',
    "cannot fetch https://alice:ab12cd34@example.test/x.gguf",
    "cannot fetch https://example.test/x.gguf?X-Amz-Signature=ab12cd34&v=1",
    "Environment=HF_TOKEN=ab12cd34",
    "[info] asked_to_join name=annas-laptop outcome=accepted peer=12D3KooWA",
    "[info] asked_to_join name='annas-laptop at home' outcome=accepted",
]
WORDS = [
    KEY,
    SHA,
    "mycelia1qqq",
    "hf_abc",
    "8.8.8.8",
    "2606:",
    "2a00:",
    "example.org",
    "alice/models",
    "ab12cd34",
    "annas",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_what_strangers_must_not_see_is_replaced(text: str) -> None:
    shown = Redactor([KEY], [("/home/alice", "~")]).text(text)
    assert not any(word in shown for word in WORDS), shown
    assert "[" in shown or "~" in shown


def test_a_value_has_the_same_word_everywhere_and_what_helps_stays() -> None:
    redact = Redactor()
    assert redact.text("8.8.8.8 1.1.1.1 8.8.8.8") == "[address 1] [address 2] [address 1]"
    assert redact.text("dialled 1.1.1.1") == "dialled [address 2]"
    kept = "127.0.0.1:7118 192.168.1.7 fe80::1 ::1 12:30:45 tokens 35 version 0.2.0 at 1.2.3 key=value"
    assert redact.text(kept) == kept


def test_the_folders_of_users_are_nobodys() -> None:
    text = "/home/bob/.local/bin/mycelia, /Users/carol and /var/lib/mycelia"
    assert Redactor().text(text) == "/home/[user]/.local/bin/mycelia, /Users/[user] and /var/lib/mycelia"


def test_a_name_that_is_an_address_anywhere_is_replaced_everywhere() -> None:
    """Errors have the name without what shows that it is one."""
    texts = ['bootstrap = ["/dns4/node.example.org/tcp/7117"]', "cannot reach node.example.org: no such name"]
    redact = Redactor(texts=texts)
    assert redact.text(texts[1]) == "cannot reach [name 1]: no such name"
    assert redact.text("anode.example.org node.example.orgs") == "anode.example.org node.example.orgs"
    assert redact.text(texts[0]) == 'bootstrap = ["/dns4/[name 1]/tcp/7117"]'
    assert Redactor(texts=["/dns4/node/tcp/1"]).text("node serves") == "node serves", "a word that is also a name"


@given(st.text(max_size=200))
def test_any_text_can_be_redacted_twice(text: str) -> None:
    redact = Redactor(["a secret of mine"])
    once = redact.text(text)
    assert redact.text(once) == once
