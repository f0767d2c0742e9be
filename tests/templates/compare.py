#!/usr/bin/env python3
"""Renders chat templates with our engine and with Jinja as transformers sets it up, and compares the texts.

    pip install transformers==5.23.0 jinja2==3.1.6
    cargo build --release -p shoestring-data --example render_chats
    tests/templates/compare.py FOLDER           # every *.jinja in it; 1 if any text differs
    tests/templates/compare.py --write          # tests/templates/*.jinja again, into tests/templates/golden.json

llama.cpp's collection of published templates (models/templates, which PyPI's source package of llama-cpp-python carries under
vendor/llama.cpp) is what it was made for. Every template is given every conversation of CHATS, with and without the generation
prompt. An outcome is one of

    equal       the same text
    both fail   Jinja fails, and so do we: mostly a template that refuses the order of roles
    refused     Jinja renders, we refuse with a sentence
    lenient     Jinja fails, we render
    differs     both render, the texts are not the same

Dates are those of today in UTC: the machine's own zone is set to it.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import time

os.environ["TZ"] = "UTC"
time.tzset()
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, number="call00001"):
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather of a place, "now" & <here>.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": ["integer", "null"]},
                "near": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
        "return": {"type": "number"},
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}
U = said("user", "  What is 2 + 2?\n")
S = said("system", "Be \"brief\".\n<b>Äöü</b>")
A = said("assistant", "4")
THOUGHT = said("assistant", "<think>\ntwo and two\n</think>\n\n4")
REASONED = said("assistant", "4", reasoning_content="two and two,\nthat is easy")
FIRST, LAST = said("user", "The weather in Zürich?"), said("assistant", "It is 21 degrees.")
CALL = said("assistant", "", tool_calls=[call("get_weather", {"city": "Zürich", "days": 2, "near": ["a"], "x": 1.5})])
RESULT = said("tool", '{"degrees": 21}', name="get_weather", tool_call_id="call00001")
BOTH = said(
    "assistant",
    "Let me see.",
    tool_calls=[call("get_weather", {"city": "Bern"}), call("add", {"a": 1, "b": -2.5}, "call00002")],
)
RESULTS = [RESULT, said("tool", "-1.5", name="add", tool_call_id="call00002")]


def changed(message, **fields):
    return {k: v for k, v in {**message, **fields}.items() if v is not ...}


def chats():
    """Name and conversation, in the form of our files."""
    plain = {
        "user": [U],
        "system": [S, U],
        "answered": [U, A],
        "turns": [S, U, A, said("user", "And 3 + 3?"), said("assistant", "6"), said("user", "Sure?")],
        "turns, answered": [U, A, said("user", "And 3 + 3?"), said("assistant", "6")],
        "thought": [U, THOUGHT],
        "thought before": [S, U, THOUGHT, said("user", "And 3 + 3?")],
        "reasoned": [U, REASONED],
        "reasoned before": [S, U, REASONED, said("user", "And 3 + 3?")],
        "reasoned twice": [U, REASONED, said("user", "And 3 + 3?"), REASONED],
        "thinking": [U, changed(REASONED, reasoning_content=..., thinking="two and two")],
        "empty answer": [U, said("assistant", "")],
        "developer": [said("developer", "Be kind."), U],
        "two users": [U, said("user", "Well?")],
        "assistant first": [A, U],
        "marks": [said("user", "{{ 1 }} {% if %} \\n <|im_end|> \u2028 😀 'single' \"double\"")],
    }
    for name, messages in plain.items():
        yield name, {"messages": messages}
    for name, messages in {
        "tools": [FIRST],
        "tools, system": [S, FIRST],
        "call": [FIRST, CALL],
        "call, result": [FIRST, CALL, RESULT],
        "call, result, answer": [S, FIRST, CALL, RESULT, LAST],
        "call, result, answer, more": [FIRST, CALL, RESULT, LAST, said("user", "Thanks. And 1 + 1?")],
        "calls": [FIRST, BOTH, *RESULTS, LAST],
        "calls in turn": [FIRST, CALL, RESULT, BOTH, *RESULTS],
        "call of text": [FIRST, changed(CALL, tool_calls=[call("get_weather", '{"city": "Zürich"}')]), RESULT],
        "call without content": [FIRST, changed(CALL, content=...), RESULT, LAST],
        "call with null": [FIRST, changed(CALL, content=None), RESULT, LAST],
        "reasoned call": [S, FIRST, changed(CALL, reasoning_content="I have to look."), RESULT, LAST],
        "reasoned call open": [FIRST, changed(CALL, reasoning_content="I have to look."), RESULT],
    }.items():
        yield name, {"messages": messages, "tools": [WEATHER, ADD]}
    yield "result without tools", {"messages": [FIRST, CALL, RESULT, LAST]}
    for kwargs in [
        {"enable_thinking": True},
        {"enable_thinking": False},
        {"thinking": True},
        {"thinking": False},
        {"reasoning_effort": "high"},
        {"preserve_thinking": True},
    ]:
        words = ", ".join(f"{k} = {v}" for k, v in kwargs.items())
        yield words, {"messages": [S, U], "chat_template_kwargs": kwargs}
        yield words + ", turns", {"messages": [S, U, REASONED, said("user", "Sure?")], "chat_template_kwargs": kwargs}
        more = {"tools": [WEATHER], "chat_template_kwargs": kwargs}
        yield words + ", tools", {"messages": [S, FIRST, CALL, RESULT], **more}


# Those of them that stand in golden.json.
GOLDEN = [
    "user",
    "turns",
    "thought before",
    "reasoned",
    "reasoned twice",
    "thinking",
    "developer",
    "two users",
    "marks",
    "tools, system",
    "calls",
    "calls in turn",
    "call of text",
    "call without content",
    "call with null",
    "reasoned call open",
    "enable_thinking = False",
    "thinking = False, turns",
    "reasoning_effort = high",
]


def theirs(template, chat, generate):
    given = {**TOKENS, **chat.get("chat_template_kwargs", {})}
    try:
        texts, _ = render_jinja_template(
            conversations=[chat["messages"]],
            tools=chat.get("tools"),
            chat_template=template,
            add_generation_prompt=generate,
            **given,
        )
        return {"text": texts[0]}
    except Exception as error:  # whatever a template raises
        return {"error": f"{type(error).__name__}: {error}"}


def ours(binary, cases):
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([binary], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


def outcome(mine, other):
    if "text" in mine and "text" in other:
        return "equal" if mine["text"] == other["text"] else "differs"
    if "text" in other:
        return "refused"
    return "lenient" if "text" in mine else "both fail"


def show(mine, other):
    a, b = mine.get("text"), other.get("text")
    if a is None or b is None:
        print("     ours  ", repr(a) if a else mine.get("error"))
        print("     Jinja ", repr(b)[:200] if b else other.get("error"))
        return
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    print("     ours  ", repr(a[max(0, at - 60) : at + 60]))
    print("     Jinja ", repr(b[max(0, at - 60) : at + 60]))


def write():
    """The templates of this folder with what Jinja makes of them."""
    golden, kept = [], {name: chat for name, chat in chats() if name in GOLDEN}
    for path in sorted(HERE.glob("*.jinja")):
        for name, chat in kept.items():
            for generate in [False, True]:
                got = theirs(path.read_text(), chat, generate)
                text = got.get("text")
                golden.append({"template": path.name, "chat": name, "generate": generate, "text": text})
    data = {"chats": kept, "rendered": golden}
    (HERE / "golden.json").write_text(json.dumps(data, ensure_ascii=False, indent=0) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path)
    parser.add_argument("--binary", default=str(HERE.parents[1] / "target/release/examples/render_chats"))
    parser.add_argument("--write", action="store_true", help="write golden.json of the templates of this folder")
    parser.add_argument("--show", default="differs,refused,lenient", help="outcomes to show one of for each template")
    args = parser.parse_args()
    if args.write:
        return write()
    shown = args.show.split(",")
    counts, templates = collections.Counter(), collections.defaultdict(set)
    for path in sorted(args.folder.glob("*.jinja")):
        template = path.read_bytes().decode()
        cases = [(name, chat, generate) for name, chat in chats() for generate in [False, True]]
        mine = ours(
            args.binary,
            [{"template": template, "conversation": c, "add_generation_prompt": g} for _, c, g in cases],
        )
        seen = set()
        for (name, chat, generate), got in zip(cases, mine, strict=True):
            other = theirs(template, chat, generate)
            kind = outcome(got, other)
            counts[kind] += 1
            templates[kind].add(path.name)
            reason = (kind, got.get("error", "")[:80] if kind == "refused" else "")
            if kind in shown and reason not in seen:
                seen.add(reason)
                print(f"{path.name}: {name}{', prompt' if generate else ''}: {kind}")
                show(got, other)
    for kind, count in counts.most_common():
        print(f"{kind}: {count} texts, of {len(templates[kind])} templates")
    sys.exit(counts["differs"] > 0)


if __name__ == "__main__":
    main()
