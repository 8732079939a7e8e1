"""What an answer must look like: the fields of a request that say so, as one grammar. Raises HttpError for what is not
enforced, with the field's name.

OpenAI's ``response_format`` and forced tool calls, llama-server's ``grammar`` and ``json_schema``, and vLLM's
``guided_*`` and ``structured_outputs``.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from mycelia.node.schemas.document import Schema, SchemaError
from mycelia.node.schemas.enforce import enforceable
from mycelia.node.schemas.places import closed, moved
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.request_types import AnyRequest, ChatRequest, ResponseFormat, StructuredOutputs, Tool
from mycelia.proto.wire.messages import MAX_GRAMMAR_CHARS

ANY_OBJECT: dict[str, Any] = {"type": "object"}
MAX_FORCED_CALLS = 16
"""Calls in an answer that must be a call, where the client allows several."""


class Form(NamedTuple):
    """A grammar, as in ``Sampling``."""

    kind: str
    text: str


def wanted_form(body: AnyRequest) -> Form | None:
    """The form of the answer that the fields of ``body`` ask for, forced calls aside; None: any answer."""
    found: dict[str, Form] = {}
    if isinstance(body, ChatRequest) and body.response_format is not None:
        schema = _schema_of(body.response_format)
        if schema is not None:
            found["response_format"] = schema_form(schema, "response_format")
    if body.json_schema is not None:
        found["json_schema"] = schema_form(body.json_schema, "json_schema")
    if body.grammar:
        found["grammar"] = _grammar_form(body.grammar)
    guided = StructuredOutputs(body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)
    found |= _structured_forms(guided, "guided_{}")
    if body.structured_outputs is not None:
        found |= _structured_forms(body.structured_outputs, "structured_outputs.{}")
    if len(found) > 1:
        raise HttpError(400, f"{' and '.join(found)} exclude each other", param=[*found][-1])
    return next(iter(found.values()), None)


def _schema_of(wanted: ResponseFormat) -> Schema | None:
    if wanted.type == "text":
        return None
    if wanted.json_schema is not None:
        return ANY_OBJECT if wanted.json_schema.schema is None else wanted.json_schema.schema
    if wanted.schema is not None:
        return wanted.schema
    if wanted.type == "json_object":
        return ANY_OBJECT
    raise HttpError(400, "response_format of type json_schema needs a json_schema", param="response_format")


def _structured_forms(wanted: StructuredOutputs, param: str) -> dict[str, Form]:
    """The forms that vLLM's fields ask for, by field. param: a format for the field's name."""
    found: dict[str, Form] = {}
    if wanted.json is not None:
        name = param.format("json")
        found[name] = schema_form(_read_json(wanted.json, name), name)
    if wanted.regex:
        found[param.format("regex")] = Form("regex", wanted.regex)
    if wanted.choice is not None:
        name = param.format("choice")
        if not any(wanted.choice):
            raise HttpError(400, f"{name} needs a text that is not empty", param=name)
        if sum(map(len, wanted.choice)) > MAX_GRAMMAR_CHARS:
            raise HttpError(400, f"{name} has over {MAX_GRAMMAR_CHARS} characters", param=name)
        found[name] = Form("regex", "|".join(map(_literal, wanted.choice)))
    if wanted.grammar:
        found[param.format("grammar")] = _grammar_form(wanted.grammar)
    if wanted.json_object:
        found[param.format("json_object")] = schema_form(ANY_OBJECT, param.format("json_object"))
    return found


def _read_json(value: Schema | str, param: str) -> Schema:
    if not isinstance(value, str):
        return value
    try:
        read: Schema = json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise HttpError(400, f"{param} is no JSON", param=param) from exc
    return read


def _literal(text: str) -> str:
    """A regular expression of ``text`` alone."""
    return "".join(one if one.isascii() and one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)


def _grammar_form(text: str) -> Form:
    """GBNF has rules with ``::=``, Lark with a colon."""
    # (blank lines before a rule are no part of the match: it would take the square of their number)
    return Form("gbnf" if re.search(r"^[ \t]*[\w-]+\s*::=", text, re.MULTILINE) else "lark", text)


def schema_form(schema: Schema, param: str) -> Form:
    """The form of an answer that fits ``schema``, the value of the field ``param``."""
    try:
        _check_size(schema, param)
        text = json.dumps(closed(schema), ensure_ascii=False)
        if len(text) > MAX_GRAMMAR_CHARS:
            raise _too_long(param)
        enforceable(text)
    except RecursionError:
        raise HttpError(400, "the JSON schema is nested too deep", param=param) from None
    except SchemaError as exc:
        raise HttpError(400, str(exc), param=param) from exc
    return Form("json_schema", text)


def _check_size(schema: object, param: str) -> None:
    """Raises HttpError for a schema that is too long in any case, before more work on it; also RecursionError."""
    try:
        num_bytes = len(msgspec.json.encode(schema))
    except UnicodeEncodeError:
        raise HttpError(400, "the JSON schema has lone surrogates", param=param) from None
    if num_bytes > 4 * MAX_GRAMMAR_CHARS:  # (a character takes at most 4 bytes)
        raise _too_long(param)


def _too_long(param: str) -> HttpError:
    return HttpError(400, f"the JSON schema has over {MAX_GRAMMAR_CHARS} characters", param=param)


def call_form(tools: Sequence[Tool], name: str | None, allows_several: bool) -> Form:
    """The form of an answer that is a call: of any function, or of the named one; or several, if that is allowed."""
    wanted = [tool.function for tool in tools if name is None or tool.function.name == name]
    if not wanted:
        words = f"names {name!r}, which is not among the tools" if name else "needs tools"
        raise HttpError(400, f"tool_choice {words}", param="tool_choice")
    calls = []
    for place, function in enumerate(wanted):
        try:
            if not place:
                _check_size([one.parameters for one in wanted], "tools")
            parameters = closed(_of_object(function.parameters or {}, function.name))
            parameters = moved(parameters, f"#/$defs/call{place}/properties/arguments")
        except RecursionError:
            raise HttpError(400, "a tool is nested too deep", param="tools") from None
        properties: dict[str, Any] = {"name": {"const": function.name}, "arguments": parameters}
        calls.append({"type": "object", "properties": properties, "required": [*properties], **_ALONE})
    references = [{"$ref": f"#/$defs/call{place}"} for place in range(len(calls))]
    one: Schema = references[0] if len(references) == 1 else {"anyOf": references}
    several = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_FORCED_CALLS}]}
    root: dict[str, Any] = several if allows_several else one  # type: ignore[assignment]
    return schema_form({**root, "$defs": {f"call{place}": call for place, call in enumerate(calls)}}, "tools")


def _of_object(parameters: dict[str, Any], name: str) -> dict[str, Any]:
    """The objects that fit ``parameters``: the arguments of a call are an object, whatever else the schema allows."""
    kinds = parameters.get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        raise HttpError(400, f"the parameters of {name!r} allow no object, which arguments have to be", param="tools")
    return {name: value for name, value in parameters.items() if name != "nullable"} | ANY_OBJECT


_ALONE = {"additionalProperties": False}
