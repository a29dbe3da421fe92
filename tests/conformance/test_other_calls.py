"""What the SDKs can do beside the matrix: other keys, other calls, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.conformance.asks import ASKS
from tests.conformance.credentials import API_KEY
from tests.conformance.families import COUNTED
from tests.conformance.lab import Lab
from tests.conformance.scenarios import TEXT
from tests.conformance.sdks import Anthropic, Bedrock, OpenAi


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "bedrock"])
def test_a_bedrock_caller_may_bring_the_key_as_a_bearer_token(lab: Lab, dialect: str) -> None:
    """By hand: boto3 itself refuses to send a bearer token over plain HTTP."""
    body = ASKS["boto3"]("plain", "")
    del body["modelId"]
    headers = {"authorization": f"Bearer {lab.key}"}
    reply = httpx.post(f"{lab.url}/model/lab-{dialect}%2Fplain/converse", json=body, headers=headers)
    assert reply.json()["output"]["message"]["content"] == [{"text": TEXT}]


def test_a_bedrock_provider_may_have_a_bearer_token(lab: Lab) -> None:
    assert lab.sdks["boto3"].ask(ASKS["boto3"]("plain", "lab-bedrock-bearer/plain")).text == TEXT
    assert lab.upstream.last["authorization"] == f"Bearer {API_KEY}"


def test_tokens_are_counted_by_the_provider_or_estimated(lab: Lab) -> None:
    sdk = lab.sdks["anthropic"]
    assert isinstance(sdk, Anthropic)
    body = ASKS["anthropic"]("tools", "")
    del body["max_tokens"], body["model"]
    assert sdk.client.messages.count_tokens(**body, model="lab-anthropic/plain").input_tokens == COUNTED
    assert lab.upstream.last.path == "/v1/messages/count_tokens"
    assert 20 < sdk.client.messages.count_tokens(**body, model="lab-openai/plain").input_tokens < 400


def test_responses_pass_through(lab: Lab) -> None:
    sdk = lab.sdks["openai"]
    assert isinstance(sdk, OpenAi)
    reply = sdk.client.responses.create(model="lab-openai/plain", input="hi", extra_body={"newer": {"field": [1]}})
    assert reply.output_text == TEXT and lab.upstream.last.json["newer"] == {"field": [1]}
    with sdk.client.responses.create(model="lab-openai/plain", input="hi", stream=True) as events:
        assert [event.type for event in events][-1] == "response.completed"


def test_embeddings_pass_through(lab: Lab) -> None:
    sdk = lab.sdks["openai"]
    assert isinstance(sdk, OpenAi)
    reply = sdk.client.embeddings.create(model="lab-openai/embed", input="hi", encoding_format="float")
    assert reply.data[0].embedding == [0.25, -0.5] and lab.upstream.last.json["model"] == "embed"


def test_invoke_passes_through_byte_for_byte(lab: Lab) -> None:
    sdk = lab.sdks["boto3"]
    assert isinstance(sdk, Bedrock)
    body = b'{"anthropic_version": "bedrock-2023-05-31",  "max_tokens": 5, "messages": []}'
    reply = sdk.client.invoke_model(modelId="lab-bedrock/claude", body=body)
    assert json.loads(reply["body"].read())["content"][0]["text"] == TEXT
    assert lab.upstream.last.body == body and lab.upstream.last.path == "/model/claude/invoke"
    stream = sdk.client.invoke_model_with_response_stream(modelId="lab-bedrock/claude", body=body)["body"]
    events: list[Any] = [json.loads(event["chunk"]["bytes"]) for event in stream]
    assert events[0]["delta"]["text"] == TEXT and events[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("sdk_name", ["openai", "anthropic"])
def test_models_are_listed_for_each_sdk(lab: Lab, sdk_name: str) -> None:
    sdk: Any = lab.sdks[sdk_name]
    listed = [model.id for model in sdk.client.models.list()]
    assert {"orqen/auto", "orqen/cheap", "orqen/fast", "orqen/capable"} <= set(listed)
    assert sdk.client.models.retrieve(listed[-1]).id == listed[-1]
