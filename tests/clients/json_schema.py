"""Schemas of the official JSON-Schema suite, draft 2020-12: `json_schema.py URL MODEL SUITE [MOST]`, where SUITE is the folder
`tests/draft2020-12` of JSON-Schema-Test-Suite. Each is either refused (400, with a reason) or held to: an answer that ends is valid JSON of
the schema, whatever the model is. Package: jsonschema."""

import concurrent.futures
import json
import pathlib
import sys
import urllib.error
import urllib.request

import jsonschema

url, model, suite = sys.argv[1:4]
most = int(sys.argv[4]) if len(sys.argv) > 4 else 300


def ask(schema):
    """An answer and why it ended, or the refusal."""
    body = json.dumps({
        "model": model, "messages": [{"role": "user", "content": "Compute 3 + 4."}], "max_completion_tokens": 150, "seed": 1, "reasoning_effort": "none",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }).encode()
    request = urllib.request.Request(url + "v1/chat/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            choice = json.load(response)["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]
    except urllib.error.HTTPError as error:
        assert error.code == 400, (error.code, schema)
        return json.load(error)["error"]["message"], "refused"


def check(case):
    name, schema = case
    text, why = ask(schema)
    if why == "stop":
        validator = jsonschema.Draft202012Validator(schema)
        try:
            value = json.loads(text)
            wrong = next(iter(validator.iter_errors(value)), None)
        except Exception as error:  # JSON that is none, or a reference that the validator does not know.
            wrong = error
        if wrong:
            return name, "WRONG", f"{json.dumps(schema)[:300]} → {text!r}: {str(wrong).splitlines()[0]}"
    return name, why, text


cases = []
for path in sorted(pathlib.Path(suite).glob("*.json")):
    for group in json.loads(path.read_text()):
        if isinstance(group["schema"], dict):
            cases.append((f"{path.stem}: {group['description']}", group["schema"]))
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = list(pool.map(check, cases[:most]))
counts = {}
for name, why, text in results:
    counts[why] = counts.get(why, 0) + 1
    if why == "WRONG":
        print(f"{name}: {text}")
print(f"json schema: {len(results)} schemas:", ", ".join(f"{n} {why}" for why, n in sorted(counts.items())))
sys.exit(bool(counts.get("WRONG")))
