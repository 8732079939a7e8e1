"""Answers in the shape of the Responses API: whole, or as its typed events."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from mycelia.node.serve.openai.errors import error_body
from mycelia.node.serve.openai.reading import AnswerPart, Call
from mycelia.node.serve.openai.requests import Wanted
from mycelia.node.serve.openai.response_types import Usage
from mycelia.node.serve.openai.shapes import Choice, Shape, event
from mycelia.node.serve.responses.requests import tools_of
from mycelia.node.serve.responses.types import (
    CallItem,
    CustomCallItem,
    Event,
    Failure,
    Incomplete,
    InputDetails,
    MessageItem,
    OutItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseBody,
    ResponsesRequest,
    ResponseUsage,
)
from mycelia.proto.wire.messages import Failed


class ResponseShape(Shape):
    """For one choice. A stream has one open item at a time, the last one of ``_items``."""

    prefix = "resp"

    def __init__(
        self, wanted: Wanted, model: str, request: ResponsesRequest, keep: Callable[[ResponseBody], None]
    ) -> None:
        """keep: gets the response when it is complete."""
        super().__init__(wanted, model)
        self.id = self.id.replace("-", "_")
        self._request = request
        self._tools = {tool.name: (tool.type, namespace) for tool, namespace in tools_of(request)}
        self._keep = keep
        self._items: list[OutItem] = []
        self._is_open = False
        self._num_events = 0

    def whole(self, choices: Sequence[Choice], usage: Usage) -> ResponseBody:
        (choice,) = choices
        reading = choice.reading
        items: list[OutItem] = []
        if reading.thought:
            items.append(ReasoningItem(self._item_id("rs", 0), [ReasoningText(reading.thought)]))
        if reading.content or not (reading.thought or reading.calls):
            items.append(MessageItem(self._item_id("msg", len(items)), [OutputText(reading.content)]))
        for call in reading.calls:
            items.append(self._call_item(call, len(items)))
        return self._complete(items, choice, usage)

    def opening(self, choice: Choice) -> bytes:
        body = self._body("in_progress", [])
        return self._event("response.created", response=body) + self._event("response.in_progress", response=body)

    def piece(self, choice: Choice, said: AnswerPart, is_prompt: bool = False) -> bytes:
        if said.call is not None:
            return self._call_piece(said.call)
        if said.thought:
            return self._text_piece(ReasoningItem, said.thought)
        return self._text_piece(MessageItem, said.content) if said.content else b""

    def ending(self, choice: Choice) -> bytes:
        return self._close("incomplete" if choice.finish_reason == "length" else "completed")

    def closing(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        body = self._complete(self._items, choices[0], usage)
        return self._event(f"response.{body.status}", response=body)

    def failing(self, failed: Failed) -> bytes:
        body = self._body("failed", self._items)
        error = error_body(failed).error
        body.error = Failure(error.code or "server_error", error.message)
        return self._event("response.failed", response=body)

    # --- the parts of a stream --------------------------------------------------------------------------------------

    def _text_piece(self, kind: type[MessageItem | ReasoningItem], text: str) -> bytes:
        begin = b""
        part = OutputText("") if kind is MessageItem else ReasoningText("")
        if not (self._is_open and isinstance(self._items[-1], kind)):
            name = self._item_id("msg" if kind is MessageItem else "rs", len(self._items))
            begin = self._close() + self._open(kind(name, [], status="in_progress"))
            if kind is MessageItem:
                begin += self._event("response.content_part.added", content_index=0, part=part)
            self._items[-1].content.append(part)  # type: ignore[union-attr, arg-type]
        self._items[-1].content[0].text += text  # type: ignore[union-attr]
        kind_of_event = "output_text" if kind is MessageItem else "reasoning_text"
        logprobs: list[Any] | None = [] if kind is MessageItem else None
        return begin + self._event(f"response.{kind_of_event}.delta", content_index=0, delta=text, logprobs=logprobs)

    def _call_piece(self, call: Call) -> bytes:
        begin = b""
        if call.name:
            item = self._call_item(Call(call.index, call.id, call.name), len(self._items))
            item.status = "in_progress"
            begin = self._close() + self._open(item)
        item = self._items[-1]  # type: ignore[assignment]
        if isinstance(item, CustomCallItem):
            item.input += call.arguments  # (its text is known when it is whole)
            return begin
        item.arguments += call.arguments
        if not call.arguments:
            return begin
        return begin + self._event("response.function_call_arguments.delta", delta=call.arguments)

    def _open(self, item: OutItem) -> bytes:
        self._items.append(item)
        self._is_open = True
        return self._event("response.output_item.added", item=item, item_id=None)

    def _close(self, status: Literal["completed", "incomplete"] = "completed") -> bytes:
        """The events at the end of the open item; empty: none is open."""
        if not self._is_open:
            return b""
        item = self._items[-1]
        item.status = status
        match item:
            case MessageItem():
                (text,) = item.content
                done = self._event("response.output_text.done", content_index=0, text=text.text, logprobs=[])
                done += self._event("response.content_part.done", content_index=0, part=text)
            case ReasoningItem():
                done = self._event("response.reasoning_text.done", content_index=0, text=item.content[0].text)
            case CallItem():
                named = {"name": item.name, "arguments": item.arguments}
                done = self._event("response.function_call_arguments.done", **named)
            case CustomCallItem():
                item.input = _custom_input(item.input)
                done = self._event("response.custom_tool_call_input.delta", delta=item.input)
                done += self._event("response.custom_tool_call_input.done", input=item.input)
        done += self._event("response.output_item.done", item=item, item_id=None)
        self._is_open = False
        return done

    def _event(self, kind: str, **fields: Any) -> bytes:
        """fields: besides those that say which item it belongs to."""
        if self._is_open:
            fields = {"output_index": len(self._items) - 1, "item_id": self._items[-1].id} | fields
        self._num_events += 1
        return event(Event(kind, self._num_events - 1, **fields), kind)

    # --- the whole response -----------------------------------------------------------------------------------------

    def _complete(self, items: list[OutItem], choice: Choice, usage: Usage) -> ResponseBody:
        is_cut = choice.finish_reason == "length"
        body = self._body("incomplete" if is_cut else "completed", items)
        if is_cut:
            body.incomplete_details = Incomplete("max_output_tokens")
            if items:
                items[-1].status = "incomplete"
        cached = InputDetails(usage.prompt_tokens_details.cached_tokens)
        body.usage = ResponseUsage(usage.prompt_tokens, cached, usage.completion_tokens, usage.total_tokens)
        self._keep(body)
        return body

    def _body(self, status: Any, items: list[OutItem]) -> ResponseBody:
        request = self._request
        body = ResponseBody(self.id, self.created, self.model, status, items)
        body.instructions, body.max_output_tokens = request.instructions, request.max_output_tokens
        body.previous_response_id, body.metadata = request.previous_response_id, request.metadata or {}
        body.store = request.store is not False
        body.parallel_tool_calls = request.parallel_tool_calls is not False
        body.tool_choice = request.tool_choice or "auto"
        body.tools = [
            {"type": tool.type, "name": tool.name, "description": tool.description, "parameters": tool.parameters or {}}
            | {"strict": False}
            for tool in request.tools or ()
            if tool.type == "function"
        ]
        body.text = {"format": request.text.format if request.text and request.text.format else {"type": "text"}}
        body.reasoning = {"effort": request.reasoning.effort if request.reasoning else None, "summary": None}
        if request.temperature is not None:
            body.temperature = request.temperature
        if request.top_p is not None:
            body.top_p = request.top_p
        return body

    def _item_id(self, prefix: str, place: int) -> str:
        return f"{prefix}_{self.id.removeprefix('resp_')}_{place}"

    def _call_item(self, call: Call, place: int) -> CallItem | CustomCallItem:
        kind, namespace = self._tools.get(call.name, ("function", ""))
        if kind == "custom":
            text = _custom_input(call.arguments) if call.arguments else ""
            return CustomCallItem(self._item_id("ctc", place), call.id, call.name, text)
        item = CallItem(self._item_id("fc", place), call.id, call.name, call.arguments)
        if namespace:
            item.namespace = namespace
        return item


def _custom_input(arguments: str) -> str:
    """The text that a custom tool gets."""
    try:
        return str(msgspec.json.decode(arguments, type=dict[str, Any]).get("input", ""))
    except (msgspec.DecodeError, RecursionError):
        return arguments
