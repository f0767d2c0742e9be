"""Other clients against a server: `more_clients.py URL MODEL`, for a model of recipes/smoke.toml. Packages: anthropic,
langchain-openai, llm. One that is not installed is told and left out."""

import importlib.util
import os
import subprocess
import sys
import tempfile

url, model = sys.argv[1:]
question = "Compute 3 + 4."


def has(name):
    there = importlib.util.find_spec(name) is not None
    if not there:
        print(f"{name} is not installed: left out")
    return there


if has("anthropic"):
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    ask = {"model": model, "max_tokens": 200, "extra_body": {"temperature": 0}, "messages": [{"role": "user", "content": question}]}
    whole = client.messages.create(**ask)
    said = "".join(b.text for b in whole.content if b.type == "text")
    assert said and whole.stop_reason == "end_turn" and whole.usage.output_tokens > 0, whole
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == said and final.usage.output_tokens == whole.usage.output_tokens, (text, said)
    thinking = client.messages.create(**ask, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [b.type for b in thinking.content] == ["thinking", "text"], thinking
    assert client.messages.count_tokens(model=model, messages=ask["messages"]).input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    try:
        client.messages.create(**{**ask, "model": "nobody"})
        raise SystemExit("a model that is not there was answered for")
    except anthropic.NotFoundError as error:
        assert "nobody" in str(error)
    print("anthropic: whole, streamed, thinking, counted, refused")

if has("langchain_openai"):
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    chat = ChatOpenAI(base_url=url + "v1", api_key="none", model=model, temperature=0, max_retries=0, stream_usage=True)
    whole = chat.invoke(question)
    assert whole.content and whole.response_metadata["finish_reason"] == "stop", whole
    parts = list(chat.stream(question))
    assert "".join(p.content for p in parts) == whole.content
    assert sum(p.usage_metadata["output_tokens"] for p in parts if p.usage_metadata) == whole.usage_metadata["output_tokens"]
    assert chat.invoke([HumanMessage(question), AIMessage(whole.content), HumanMessage(question)]).content
    assert [m.content for m in chat.batch([question, question])] == [whole.content] * 2

    class Sum(BaseModel):
        sum: int

    assert isinstance(chat.with_structured_output(Sum, method="json_schema").invoke(question).sum, int)
    print("langchain: whole, streamed, in turns, in a batch, structured")

if has("llm"):
    with tempfile.TemporaryDirectory() as folder:
        listed = os.path.join(folder, "extra-openai-models.yaml")
        with open(listed, "w") as file:
            file.write(f"- model_id: here\n  model_name: {model}\n  api_base: {url}v1\n")
        for more in [["--no-stream"], []]:
            run = subprocess.run(
                [sys.executable, "-m", "llm", "prompt", "-m", "here", "-o", "temperature", "0", *more, question],
                env={**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}, capture_output=True, text=True, check=True,
            )
            assert run.stdout.strip(), run
    print("llm: whole and streamed")
