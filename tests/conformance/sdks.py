"""The three official SDKs, each driven in its own words; what each understood comes back in no vendor's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import anthropic
import boto3
import openai
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from tests.conformance.credentials import REGION

Body = dict[str, Any]


@dataclass(slots=True)
class Got:
    """What an SDK made of an answer. `calls` are (id, name, arguments); `stop` is the vendor's own word."""

    text: str = ""
    thought: str = ""
    signature: str | None = None
    sealed: Any = None
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    stop: str | None = None
    stop_sequence: str | None = None
    prompt: int = 0
    read: int = 0
    written: int = 0
    out: int = 0
    model: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    sent: bytes = b""
    """The very bytes that the SDK sent."""
    turn: Any = None
    """The answer as the caller would send it back, in the SDK's own form."""

    @property
    def dropped(self) -> set[str]:
        return set(filter(None, self.headers.get("x-orqen-dropped", "").split(", ")))


@dataclass(slots=True)
class Failed:
    """The exception that an SDK raised."""

    name: str
    status: int | None
    message: str
    headers: dict[str, str] = field(default_factory=dict)


class Sdk(Protocol):
    name: str
    client: Any

    def ask(self, body: Body) -> Got: ...

    def stream(self, body: Body) -> Got: ...

    def leave(self, body: Body, having_read: Callable[[], None]) -> None:
        """Begin a stream, read its first part, call `having_read`, and hang up."""
        ...

    def fail(self, ask: Callable[[], Any]) -> Failed:
        """The error that `ask` raises."""
        ...


def _multi(headers: Any) -> dict[str, str]:
    pairs = headers.multi_items() if hasattr(headers, "multi_items") else headers.items()
    seen: dict[str, str] = {}
    for name, value in pairs:
        seen[name.lower()] = f"{seen[name.lower()]}, {value}" if name.lower() in seen else value
    return seen


class _Wire:
    """What went over an HTTP client that SDKs of the Stainless kind use."""

    def __init__(self) -> None:
        self.sent = b""
        self.headers: dict[str, str] = {}

    def hooks(self) -> dict[str, list[Callable[..., None]]]:
        return {"request": [self._request], "response": [self._response]}

    def _request(self, request: Any) -> None:
        self.sent = request.read()

    def _response(self, response: Any) -> None:
        self.headers = _multi(response.headers)


class OpenAi:
    name = "openai"

    def __init__(self, url: str, key: str) -> None:
        self._wire = _Wire()
        http = openai.DefaultHttpxClient(event_hooks=self._wire.hooks())
        self.client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20, http_client=http)

    def ask(self, body: Body) -> Got:
        reply = self.client.chat.completions.create(**body)
        message = reply.choices[0].message
        functions: list[Any] = list(message.tool_calls or ())
        calls = [_openai_call(call.id, call.function.name, call.function.arguments) for call in functions]
        got = Got(
            text=message.content or "",
            thought=getattr(message, "reasoning_content", "") or "",
            calls=calls,
            stop=reply.choices[0].finish_reason,
            turn=message.model_dump(exclude_none=True),
            model=reply.model,
        )
        return self._counted(got, reply.usage)

    def stream(self, body: Body) -> Got:
        got = Got()
        calls: dict[int, list[str]] = {}
        usage = None
        with self.client.chat.completions.create(**body, stream=True) as chunks:
            for chunk in chunks:
                usage, got.model = chunk.usage or usage, chunk.model
                for choice in chunk.choices:
                    got.stop = choice.finish_reason or got.stop
                    got.text += choice.delta.content or ""
                    got.thought += getattr(choice.delta, "reasoning_content", "") or ""
                    deltas: list[Any] = list(choice.delta.tool_calls or ())
                    for delta in deltas:
                        call = calls.setdefault(delta.index, ["", "", ""])
                        call[0] += delta.id or ""
                        call[1] += delta.function.name or ""
                        call[2] += delta.function.arguments or ""
        got.calls = [_openai_call(*calls[index]) for index in sorted(calls)]
        got.turn = {"role": "assistant", "content": got.text or None}
        if calls:
            made = [(id_, {"name": name, "arguments": arguments}) for id_, name, arguments in calls.values()]
            got.turn["tool_calls"] = [{"id": id_, "type": "function", "function": made_of} for id_, made_of in made]
        return self._counted(got, usage)

    def _counted(self, got: Got, usage: Any) -> Got:
        got.sent, got.headers = self._wire.sent, self._wire.headers
        if usage is not None:
            details = usage.prompt_tokens_details
            got.prompt, got.out = usage.prompt_tokens, usage.completion_tokens
            got.read = getattr(details, "cached_tokens", None) or 0
            got.written = getattr(details, "cache_write_tokens", None) or 0
        return got

    def leave(self, body: Body, having_read: Callable[[], None]) -> None:
        with self.client.chat.completions.create(**body, stream=True) as stream:
            next(iter(stream))
            having_read()

    def fail(self, ask: Callable[[], Any]) -> Failed:
        try:
            ask()
        except openai.APIStatusError as error:
            return Failed(type(error).__name__, error.status_code, str(error), _multi(error.response.headers))
        except openai.APIError as error:
            return Failed(type(error).__name__, None, str(error))
        except Exception as error:  # noqa: BLE001  # what a broken connection raises is the SDK's own business
            return Failed(type(error).__name__, None, str(error))
        raise AssertionError("no error was raised")


def _openai_call(id_: str, name: str, arguments: str) -> tuple[str, str, Any]:
    return id_, name, json.loads(arguments)


class Anthropic:
    name = "anthropic"

    def __init__(self, url: str, key: str) -> None:
        self._wire = _Wire()
        http = anthropic.DefaultHttpxClient(event_hooks=self._wire.hooks())
        self.client: Any = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=20, http_client=http)

    def ask(self, body: Body) -> Got:
        return self._read(self.client.messages.create(**body))

    def stream(self, body: Body) -> Got:
        with self.client.messages.stream(**body) as stream:
            return self._read(stream.get_final_message())

    def _read(self, reply: Any) -> Got:
        got = Got(stop=reply.stop_reason, stop_sequence=reply.stop_sequence, model=reply.model)
        for block in reply.content:
            match block.type:
                case "text":
                    got.text += block.text
                case "thinking":
                    got.thought, got.signature = got.thought + block.thinking, block.signature
                case "redacted_thinking":
                    got.sealed = block.data
                case "tool_use":
                    got.calls.append((block.id, block.name, block.input))
        usage = reply.usage
        got.read, got.written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        got.prompt, got.out = usage.input_tokens + got.read + got.written, usage.output_tokens
        got.turn = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in reply.content]}
        got.sent, got.headers = self._wire.sent, self._wire.headers
        return got

    def leave(self, body: Body, having_read: Callable[[], None]) -> None:
        with self.client.messages.stream(**body) as stream:
            next(iter(stream))
            having_read()

    def fail(self, ask: Callable[[], Any]) -> Failed:
        try:
            ask()
        except anthropic.APIStatusError as error:
            return Failed(type(error).__name__, error.status_code, str(error), _multi(error.response.headers))
        except Exception as error:  # noqa: BLE001  # what a broken connection raises is the SDK's own business
            return Failed(type(error).__name__, None, str(error))
        raise AssertionError("no error was raised")


class Bedrock:
    """boto3, with the gateway's key as the access key id."""

    name = "boto3"

    def __init__(self, url: str, key: str) -> None:
        session = boto3.Session(aws_access_key_id=key, aws_secret_access_key="anything will do", region_name=REGION)
        config = Config(retries={"total_max_attempts": 1, "mode": "standard"}, read_timeout=20)
        self.client: Any = session.client("bedrock-runtime", endpoint_url=url, config=config)
        self._sent = b""
        self.client.meta.events.register("before-send.bedrock-runtime", self._before_send)

    def _before_send(self, request: Any, **_: Any) -> None:
        self._sent = request.body

    def ask(self, body: Body) -> Got:
        reply = self.client.converse(**body)
        got = self._start(reply)
        got.stop, got.turn = reply["stopReason"], reply["output"]["message"]
        for block in got.turn["content"]:
            self._block(block, got)
        return self._end(got, reply)

    def stream(self, body: Body) -> Got:
        reply = self.client.converse_stream(**body)
        got = self._start(reply)
        blocks: dict[int, Body] = {}
        with closing(reply["stream"]) as events:
            self._follow(events, blocks, got)
        for index in sorted(blocks):
            block = blocks[index]
            if "toolUse" in block:
                block["toolUse"]["input"] = json.loads(block["toolUse"]["input"] or "{}")
            self._block(block, got)
        got.turn = {"role": "assistant", "content": [blocks[index] for index in sorted(blocks)]}
        return got

    def _follow(self, events: Any, blocks: dict[int, Body], got: Got) -> None:
        for event in events:
            if "contentBlockStart" in event:
                start = event["contentBlockStart"]
                call = start["start"]["toolUse"]
                blocks[start["contentBlockIndex"]] = {"toolUse": {**call, "input": ""}}
            elif "contentBlockDelta" in event:
                delta = event["contentBlockDelta"]
                _add(blocks.setdefault(delta["contentBlockIndex"], {}), delta["delta"])
            elif "messageStop" in event:
                end = event["messageStop"]
                got.stop = end["stopReason"]
                self._end(got, {**end, "usage": {"inputTokens": 0, "outputTokens": 0}})
            elif "metadata" in event:
                self._usage(got, event["metadata"]["usage"])

    def _start(self, reply: Any) -> Got:
        return Got(sent=self._sent, headers=_multi(reply["ResponseMetadata"]["HTTPHeaders"]))

    def _block(self, block: Body, got: Got) -> None:
        match next(iter(block.items())):
            case ("text", text):
                got.text += text
            case ("toolUse", call):
                got.calls.append((call["toolUseId"], call["name"], call["input"]))
            case ("reasoningContent", {"reasoningText": thought}):
                got.thought, got.signature = got.thought + thought["text"], thought.get("signature")
            case ("reasoningContent", {"redactedContent": data}):
                got.sealed = data

    def _end(self, got: Got, reply: Any) -> Got:
        got.stop_sequence = reply.get("additionalModelResponseFields", {}).get("stop_sequence")
        self._usage(got, reply["usage"])
        return got

    def _usage(self, got: Got, usage: Any) -> None:
        got.read, got.written = usage.get("cacheReadInputTokens", 0), usage.get("cacheWriteInputTokens", 0)
        got.prompt, got.out = usage["inputTokens"] + got.read + got.written, usage["outputTokens"]

    def leave(self, body: Body, having_read: Callable[[], None]) -> None:
        stream = self.client.converse_stream(**body)["stream"]
        next(iter(stream))
        having_read()
        stream.close()

    def fail(self, ask: Callable[[], Any]) -> Failed:
        try:
            ask()
        except EventStreamError as error:
            return Failed(error.response["Error"]["Code"], None, str(error))
        except ClientError as error:
            meta = error.response["ResponseMetadata"]
            code = error.response["Error"]["Code"]
            # the name of the modelled class, or ClientError when the service model does not know the code
            name = code if type(error).__name__ == code else type(error).__name__
            return Failed(name, meta["HTTPStatusCode"], str(error), _multi(meta["HTTPHeaders"]))
        except Exception as error:  # noqa: BLE001  # what a broken connection raises is the SDK's own business
            return Failed(type(error).__name__, None, str(error))
        raise AssertionError("no error was raised")


def _add(block: Body, delta: Mapping[str, Any]) -> None:
    match next(iter(delta.items())):
        case ("text", text):
            block["text"] = block.get("text", "") + text
        case ("toolUse", {"input": piece}):
            block["toolUse"]["input"] += piece
        case ("reasoningContent", {"redactedContent": data}):
            block["reasoningContent"] = {"redactedContent": data}
        case ("reasoningContent", more):
            thought = block.setdefault("reasoningContent", {"reasoningText": {"text": ""}})["reasoningText"]
            for key, value in more.items():
                thought[key] = thought.get(key, "") + value


def all_sdks(url: str, key: str) -> Iterator[Sdk]:
    yield OpenAi(url, key)
    yield Anthropic(url, key)
    yield Bedrock(url, key)
