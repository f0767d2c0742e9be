"""The Python package `openai` against a server: `openai_client.py URL MODEL`, for a model of recipes/smoke.toml."""

import sys

import openai

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url + "v1", api_key="none", max_retries=0)
question = [{"role": "user", "content": "Compute 3 + 4."}]


def ask(**more):
    return client.chat.completions.create(**{"model": model, "messages": question, "temperature": 0, **more})


assert model in [m.id for m in client.models.list()]
assert client.models.retrieve(model).id == model

whole = ask()
message = whole.choices[0].message
assert message.role == "assistant" and whole.choices[0].finish_reason == "stop"
assert message.reasoning_content and message.reasoning == message.reasoning_content and message.content
assert 0 < whole.usage.completion_tokens_details.reasoning_tokens < whole.usage.completion_tokens

# A stream adds up to the whole.
content, reasoning, finish, usage = "", "", [], None
for chunk in ask(stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        finish.append(choice.finish_reason)
assert (content, reasoning) == (message.content, message.reasoning_content)
assert finish[-1] == "stop" and not any(finish[:-1])
assert usage.completion_tokens == whole.usage.completion_tokens

# The client's own reader of streams.
with client.chat.completions.stream(model=model, messages=question, temperature=0) as stream:
    stream.until_done()
    assert stream.get_final_completion().choices[0].message.content == message.content

several = ask(n=4, temperature=1, seed=7, logprobs=True, top_logprobs=2, max_completion_tokens=5)
assert [c.index for c in several.choices] == [0, 1, 2, 3]
again = ask(n=4, temperature=1, seed=7, max_completion_tokens=5)
assert [c.message.content for c in several.choices] == [c.message.content for c in again.choices]
for choice in several.choices:
    assert all(len(t.top_logprobs) == 2 and t.logprob <= 0 and bytes(t.bytes).decode() == t.token for t in choice.logprobs.content)

assert ask(stop=["</think>"]).choices[0].message.content == ""
assert ask(messages=question + [{"role": "assistant", "content": message.content}] + question).choices

text = client.completions.create(model=model, prompt=["1 + 1", "2 + 2"], max_tokens=6, temperature=0, logprobs=1)
assert [c.index for c in text.choices] == [0, 1] and len(text.choices[0].logprobs.tokens) == text.usage.completion_tokens - len(text.choices[1].logprobs.tokens)

for wrong, kind in [
    ({"temperature": 3}, openai.BadRequestError),
    ({"model": "nobody"}, openai.NotFoundError),
    ({"messages": []}, openai.BadRequestError),
    ({"n": 1000}, openai.BadRequestError),
    ({"messages": [{"role": "user", "content": "long " * 2000}]}, openai.BadRequestError),
]:
    try:
        ask(**wrong)
        raise SystemExit(f"{wrong} was accepted")
    except kind as error:
        assert error.body["message"] and error.body["param"], error.body

print(f"openai {openai.__version__}: models, chat, streams, samples, log-probabilities, stops, completions, errors")
