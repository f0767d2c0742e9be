"""Requests generated from the server's own description: `schemathesis_cases.py URL MODEL [CASES] [SEED]`.

As many cases as are asked for, divided evenly among the operations of `/openapi.json`, a half of them as the description allows and a half
against it. None may be answered by a 5xx or not at all, and after each hundred a plain question must be answered with the text that it
had before. What is asked for in order names MODEL and 16 tokens at most, so that cases get past the look at their names and end soon.
Package: schemathesis.
"""

import collections
import itertools
import json
import sys

import hypothesis
import requests
import schemathesis

url, model = sys.argv[1:3]
wanted = int(sys.argv[3]) if len(sys.argv) > 3 else 10_000
seed = int(sys.argv[4]) if len(sys.argv) > 4 else 1
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
LIMITS = {
    "/v1/chat/completions": "max_completion_tokens", "/v1/completions": "max_tokens", "/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens",
}
session = requests.Session()
statuses = collections.Counter()


def canary():
    body = {"model": model, "temperature": 0, "max_completion_tokens": 24, "messages": [{"role": "user", "content": "Compute 3 + 4."}]}
    response = requests.post(url + "v1/chat/completions", json=body, timeout=600)
    assert response.status_code == 200, (response.status_code, response.text[:300])
    return response.json()["choices"][0]["message"]


def aim(case):
    """Lets a case that is in order reach the model, and not hold it for long."""
    body = case.body
    if isinstance(body, dict):
        body["model"] = model
        if limit := LIMITS.get(case.operation.path):
            given = body.get(limit)
            body[limit] = min(given, 16) if isinstance(given, int) and given > 0 else 16
            if limit == "max_completion_tokens":
                body.pop("max_tokens", None)


def count(case, mode):
    if mode == POSITIVE:
        aim(case)
    try:
        response = case.call(session=session, timeout=600)
    except requests.RequestException as error:
        raise AssertionError(f"no answer: {error}: {case.as_curl_command()[:2000]}") from error
    statuses[case.operation.path, response.status_code] += 1
    assert response.status_code < 500, f"{response.status_code} {response.text[:300]}: {case.as_curl_command()[:2000]}"
    if statuses.total() % 100 == 0:
        now = canary()
        assert now == usual, f"after {statuses.total()} cases: {now}, at first {usual}"


def run(operation, mode, cases):
    """So many cases of one kind; some operations have fewer that differ."""
    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=cases, deadline=None, database=None, phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def one(case):
        count(case, mode)

    before = statuses.total()
    try:
        one()
    except hypothesis.errors.Unsatisfiable:
        pass  # Nothing can be asked for in a wrong way.
    return statuses.total() - before


schema = schemathesis.openapi.from_url(url + "openapi.json")
operations = [found.ok() for found in schema.get_all_operations()]
usual = canary()
left = list(itertools.product(operations, (POSITIVE, NEGATIVE)))
# What has few cases comes first, and those with more take what is left.
left.sort(key=lambda pair: pair[0].method.upper() == "POST")
for i, (operation, mode) in enumerate(left):
    share = (wanted - statuses.total()) // (len(left) - i)
    made = run(operation, mode, share) if share else 0
    print(f"{operation.method.upper()} {operation.path}, {mode.value}: {made} of {share}", flush=True)
canary()
total = statuses.total()
by_class = collections.Counter()
for (_, status), n in statuses.items():
    by_class[f"{status // 100}xx"] += n
print(f"schemathesis: {total} cases, no 5xx, the canary the same after each hundred;", json.dumps(dict(sorted(by_class.items()))))
for path in sorted({path for path, _ in statuses}):
    print(f"  {path}:", ", ".join(f"{n} × {status}" for (p, status), n in sorted(statuses.items()) if p == path))
