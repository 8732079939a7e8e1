"""A chat template together with a vocabulary: conversations become texts in which it is known who wrote each control
token (``controls.py``)."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mycelia.node.engine.child.abilities import Abilities, find_abilities
from mycelia.node.engine.child.controls import NONCHARACTERS, Controls, Rendered
from mycelia.node.engine.child.template import Template

_KNOWN = frozenset(("role", role) for role in ("system", "developer", "user", "assistant", "tool", "function"))

Context = dict[str, Any]


class Renderer:
    """Immutable once made: any thread may use it."""

    def __init__(self, source: str, controls: Controls, special_texts: Mapping[str, str]) -> None:
        """special_texts: the variables that name control tokens, such as bos_token. Raises LocalError when the source
        does not compile."""
        self._controls = controls
        self._template = Template(source, controls.mark)
        self._specials = dict(special_texts)
        self._marked_specials = {name: controls.mark(text) for name, text in special_texts.items()}
        self._marks_work = True
        self.abilities = Abilities()
        self.abilities = find_abilities(self._try)

    def render(self, context: Context) -> Rendered:
        """context: messages, tools and options. Raises LocalError, as RefusedError if the template refuses them."""
        now = datetime.now(UTC)
        context = self._complete(context, now)
        if self._marks_work:
            plain = self._template.render(context | self._specials, now)
            marked = self._template.render_marked(context | self._marked_specials, now)
            rendered = self._controls.compare(plain, marked)
            if rendered is not None:
                return rendered
        return self._render_with_breaks(context, now)

    def _try(self, context: Context) -> str:
        """Renders a conversation without spelled control tokens, as a trial also of the marks."""
        now = datetime.now(UTC)
        context = self._complete(context, now)
        plain = self._template.render(context | self._specials, now)
        if self._marks_work:
            marked = self._template.render_marked(context | self._marked_specials, now)
            rendered = self._controls.compare(plain, marked)
            self._marks_work = rendered is not None and not rendered.foreign
        return plain

    def _complete(self, context: Context, now: datetime) -> Context:
        """``context`` with what transformers passes besides, and what single families of templates want."""
        given: Context = {"add_generation_prompt": True, "tools": None, "documents": None} | context
        if given["tools"] is None and self.abilities.tools_are_list:
            given["tools"] = []
        wanted = self._template.variables - given.keys()
        if "functions" in wanted:
            given["functions"] = json.dumps(given["tools"] or [], indent=4, ensure_ascii=False)
        if "xml_tools" in wanted:
            given["xml_tools"] = given["tools"]
        if "datetime" in wanted:
            given["datetime"] = now.strftime("%b %d %Y")
        return given

    def _render_with_breaks(self, context: Context, now: datetime) -> Rendered:
        written = json.dumps(context, ensure_ascii=False, default=str)
        noncharacter = next((one for one in NONCHARACTERS if one not in written), None)
        replaced = str.maketrans(dict.fromkeys(NONCHARACTERS, "\ufffd") if noncharacter is None else {})
        noncharacter = noncharacter or NONCHARACTERS[0]

        def with_breaks(value: Any) -> Any:
            if isinstance(value, str):
                return self._controls.break_in(value.translate(replaced), noncharacter)
            if isinstance(value, list):
                return [with_breaks(item) for item in value]
            if isinstance(value, dict):
                return {with_breaks(key): with_breaks(item) for key, item in value.items()}
            return value

        broken = with_breaks(context)
        for message in broken["messages"]:
            for field in ("role", "name"):  # (a template may put it into brackets)
                if isinstance(word := message.get(field), str) and (field, word) not in _KNOWN:
                    message[field] = noncharacter.join(["", *word, ""])
        return self._controls.without_breaks(self._template.render(broken | self._specials, now), noncharacter)
