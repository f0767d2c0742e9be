#!/usr/bin/env python3
"""Plugs the `reasoning-gym` package into Shoestring as a source of problems and as their verifier.

    python3 -m venv gym && . gym/bin/activate && pip install reasoning-gym==0.1.25
    shoestring run recipes/gym.toml       # whose external command is: python3 examples/reasoning_gym.py

One JSON object per line on stdin, one or more per line on stdout:

    {"cmd": "problems", "task": "leg_counting", "split": "train", "seed": 1, "start": 0, "count": 2}
        -> two lines {"prompt": ..., "answer": ..., "meta": {"dataset": ..., "seed": ..., "item": ...}}
           and with --worked also "solution": ..., for the datasets of WORKED below
    {"id": 7, "problem": {..., "meta": {...}}, "completion": "...", "answer": "42"}
        -> {"id": 7, "score": 1.0, "reason": "right"}

Train and held-out problems never share a question: a question belongs to the held-out half when its hash falls
into one tenth of the hash space, whatever the seed, and each half is drawn from seeds of its own as well.

A few datasets need a setting before they can be drawn from (`composite`, `word_ladder`), are slow to draw from
(`acre`, `futoshiki`) or score their own stated answers oddly (`game_of_life_halting` accepts anything,
`graph_color`, `propositional_logic`, `rubiks_cube` and `rush_hour` have no answer of their own to state).

Options (after the file name):
    --set leg_counting.max_animals=3    a setting of a dataset, value as JSON; may be repeated
    --partial                           pass reasoning-gym's partial credit on; by default only full marks count
    --worked                            write worked solutions beside the answers, to pretrain and fine-tune on
    --list                              print the names of all datasets and end
"""

import argparse
import functools
import hashlib
import json
import os
import sys

# This file has the package's name: without this, `import reasoning_gym` would find this file.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path = [path for path in sys.path if os.path.abspath(path or ".") != HERE]

try:
    import reasoning_gym  # noqa: E402
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}: pip install reasoning-gym==0.1.25")
from reasoning_gym.arithmetic.leg_counting import ANIMALS  # noqa: E402

# Datasets generate item `i` from (seed, i) on demand; the size only bounds the index.
SIZE = 1_000_000
HELD_OUT_SEEDS = 500_000_000


def is_held_out(question):
    """One question in ten, by content alone."""
    digest = hashlib.sha256(" ".join(question.split()).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 == 0


def added(x, y):
    """`182 + 32 : 2 + 2 = 4 , 8 + 3 = 11 , 1 + 1 = 2 , so 214`: the columns from the right, each with its carry."""
    columns, carry = [], 0
    for place in range(max(len(str(x)), len(str(y)))):
        terms = [n // 10**place % 10 for n in (x, y) if place < len(str(n))] + [1] * carry
        columns.append(" + ".join(map(str, terms)) + (f" = {sum(terms)}" if len(terms) > 1 else ""))
        carry = sum(terms) // 10
    return f"{x} + {y} : {' , '.join(columns)} , so {x + y}"


def legs_counted(entry):
    """Animal after animal, with the sum so far."""
    lines, total = [], 0
    for animal, count in entry["metadata"]["animals"].items():
        legs = count * ANIMALS[animal]
        lines.append(f"{animal} {count} * {ANIMALS[animal]} = {legs}")
        if total and legs:
            lines.append(added(total, legs))
        total += legs
    return " . ".join(lines) + f" . in all {total} ."


def numbers_sorted(entry):
    """Negative numbers apart, then all in order."""
    numbers = entry["metadata"]["original_numbers"]
    below, above = [n for n in numbers if n.startswith("-")], [n for n in numbers if not n.startswith("-")]
    order = entry["metadata"]["sorted_numbers"]
    listed = lambda numbers: " , ".join(numbers) or "none"
    return f"below zero {listed(below)} . above {listed(above)} . {entry['metadata']['direction']} {listed(order)} ."


WORKED = {"leg_counting": legs_counted, "number_sorting": numbers_sorted}


class Gym:
    def __init__(self, settings, partial, worked):
        self.settings = settings
        self.partial = partial
        self.worked = WORKED if worked else {}
        self.kept = {}  # (name, seed, held_out) -> (indices kept so far, next index to look at)

    @functools.lru_cache(maxsize=64)
    def dataset(self, name, seed):
        return reasoning_gym.create_dataset(name, size=SIZE, seed=seed, **self.settings.get(name, {}))

    def problems(self, request):
        name, held_out = request["task"], request["split"] == "held_out"
        seed = int(request["seed"]) % HELD_OUT_SEEDS + (HELD_OUT_SEEDS if held_out else 0)
        # Items of neighbouring seeds overlap (an item is drawn from seed + index), so seeds are spread out.
        seed = seed * 1_000_003 % 2_000_000_011
        dataset = self.dataset(name, seed)
        start, count = int(request.get("start", 0)), int(request["count"])
        kept, at = self.kept.get((name, seed, held_out), ([], 0))
        while len(kept) < start + count:
            if at >= SIZE or at > 200 * (start + count) + 1000:
                raise ValueError(f"{name} has too few different questions for {start + count} of this split")
            if is_held_out(dataset[at]["question"]) == held_out:
                kept.append(at)
            at += 1
        self.kept[name, seed, held_out] = (kept, at)
        for item in kept[start : start + count]:
            entry = dataset[item]
            problem = {
                "prompt": entry["question"],
                "answer": str(entry["answer"]),
                "meta": {"dataset": name, "seed": seed, "item": item},
            }
            if name in self.worked:
                problem["solution"] = self.worked[name](entry)
            yield problem

    def score(self, request):
        meta, answer = request["problem"]["meta"], request.get("answer")
        if not isinstance(answer, str) or not answer.strip():
            return {"id": request["id"], "score": 0.0, "reason": "no answer"}
        # The entry is drawn again, so its metadata need not survive a trip through JSON.
        dataset = self.dataset(meta["dataset"], meta["seed"])
        entry = dataset[meta["item"]]
        score = min(max(float(dataset.score_answer(answer=answer.strip(), entry=entry)), 0.0), 1.0)
        if score < 1.0 and not self.partial:
            score = 0.0
        reason = "right" if score == 1.0 else f"expected {entry['answer']}"
        return {"id": request["id"], "score": score, "reason": reason}

    def answer(self, request):
        """The lines that answer one request."""
        if request.get("cmd") == "problems":
            try:
                return list(self.problems(request))
            except Exception as error:  # an unknown dataset, a bad setting: the asker is told which
                return [{"error": f"{type(error).__name__}: {error}"}]
        try:
            return [self.score(request)]
        except Exception as error:  # a scorer that chokes on an answer has not accepted it
            return [{"id": request["id"], "score": 0.0, "reason": f"{type(error).__name__}: {error}"}]


def parse_settings(pairs):
    settings = {}
    for pair in pairs:
        try:
            key, value = pair.split("=", 1)
            name, setting = key.split(".", 1)
            settings.setdefault(name, {})[setting] = json.loads(value)
        except ValueError:
            sys.exit(f"--set {pair}: expected dataset.setting=JSON, for example leg_counting.max_animals=3")
    return settings


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", action="append", default=[], metavar="DATASET.SETTING=JSON")
    parser.add_argument("--partial", action="store_true")
    parser.add_argument("--worked", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(sorted(reasoning_gym.factory.DATASETS)))
        return
    gym = Gym(parse_settings(options.set), options.partial, options.worked)
    # Some datasets print while they work: that must not end up between the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        if line.strip():
            for reply in gym.answer(json.loads(line)):
                out.write(json.dumps(reply) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
