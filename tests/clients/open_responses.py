"""`/v1/responses` against Open Responses: `open_responses.py URL MODEL`. What its compliance test asks for (a text, a stream, a system
prompt, a call of a tool, whole and streamed, a picture, several turns) is asked for here, and every response and every event is held
to the types of the specification, as PyPI's `openresponses-types` publishes them. Package: openresponses-types.
"""

import enum
import json
import sys
import typing
import urllib.error
import urllib.request

import openresponses_types.types as types
import pydantic

url, model = sys.argv[1:3]


def tags(annotation):
    """The values that a field of this kind may have."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [member.value for member in annotation]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return []


EVENTS = {}
for name, kind in vars(types).items():
    if name.endswith("StreamingEvent") and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        for tag in tags(kind.model_fields["type"].annotation):
            EVENTS[tag] = kind


# What OpenAI's clients wait for, with the fields that the specification has under a name of its own.
OPENAI = {f"response.reasoning_text.{what}": f"response.reasoning.{what}" for what in ("delta", "done")}


def post(stream, **body):
    # Greedily: what is drawn may not come to an end.
    data = json.dumps({"model": model, "stream": stream, "temperature": 0, **body}).encode()
    request = urllib.request.Request(url + "v1/responses", data, {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=300)


def whole(**body):
    with post(False, **body) as response:
        value = json.load(response)
    types.ResponseResource.model_validate(value)
    assert value["output"], value
    return value


def streamed(**body):
    """The events' names, and the response at the end."""
    names, last, number = [], None, -1
    with post(True, **body) as response:
        for line in response:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            event["type"] = OPENAI.get(event["type"], event["type"])
            kind = EVENTS.get(event["type"])
            assert kind, f"{event['type']} is no event of the specification"
            kind.model_validate(event)
            assert event["sequence_number"] > number, event
            number = event["sequence_number"]
            names.append(event["type"])
            last = event.get("response", last)
    types.ResponseResource.model_validate(last)
    return names, last


def message(role, text):
    return {"type": "message", "role": role, "content": text}


WEATHER = {
    "type": "function", "name": "get_weather", "description": "The weather at a place",
    "parameters": {"type": "object", "properties": {"location": {"enum": ["Paris", "Oslo"]}}, "required": ["location"], "additionalProperties": False},
}
assert whole(input=[message("user", "Say hello in three words.")])["status"] == "completed"
names, last = streamed(input=[message("user", "Count from 1 to 5.")])
assert last["status"] == "completed" and names[0] == "response.created" and names[-1] == "response.completed", names
assert whole(input=[message("system", "Answer as a pirate."), message("user", "Say hello.")])["status"] == "completed"
turns = [message("user", "I am Alice."), message("assistant", "Hello Alice!"), message("user", "Who am I?")]
assert whole(input=turns)["status"] == "completed"
done = ["a text", "a stream", "a system prompt", "several turns"]

# A small model calls nothing on its own accord; a template without a place for tools refuses them.
call = {"input": [message("user", "What is the weather in Paris?")], "tools": [WEATHER], "tool_choice": "required"}
try:
    assert any(item["type"] == "function_call" for item in whole(**call)["output"])
    names, last = streamed(**call)
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= set(names), names
    done.append("a call of a tool")
except urllib.error.HTTPError as error:
    assert error.code == 400, error
    print("tools are refused:", json.load(error)["error"]["message"])
picture = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}]
try:
    whole(input=[message("user", picture)])
    done.append("a picture")
except urllib.error.HTTPError as error:
    assert error.code == 400, error
    print("pictures are refused:", json.load(error)["error"]["message"])
print("Open Responses:", ", ".join(done))
