#!/usr/bin/env python3
"""What bench/earned found, over its seeds: accuracies, operations, and differences with intervals over problems and seeds.

    bench/earned_table.py runs/earned [--stage grpo]

Reads the `done.json` of every stage below the folder. Operations of a stage are those of all that it is built on, the base
included; those of a lever are its own alone. The interval of a difference is of 4000 draws of seeds, and of problems within
each, that are drawn alike for both sides.
"""

import argparse
import json
import random
import sys
import tomllib
from pathlib import Path

DRAWS = 4000
REFERENCES = ("from", "tokenizer", "teacher", "student", "traces")


def load(seed: Path):
    """Costs by stage, and what was measured by job and stage."""
    costs, measured, levers = {}, {}, {}
    for path in sorted(seed.glob("*/*/done.json")):
        job, done = path.parts[-3], json.loads(path.read_text())
        lever = job.startswith("l_")
        if not lever:
            costs[path.parts[-2]] = done["cost"]["operations"]
        for found in done["figures"].get("measured", []):
            if found["scores"]["samples"] == 8:
                if lever:
                    spent = json.loads((path.parents[1] / found["stage"] / "done.json").read_text())
                    levers[job] = (found, spent["cost"]["operations"])
                else:
                    measured[found["stage"]] = found
    return costs, measured, levers


def lineage(recipe: dict, name: str) -> set:
    """A stage and all that it is built on."""
    stages = {stage["name"]: stage for stage in recipe["stage"]}
    found, unseen = set(), [name]
    while unseen:
        name = unseen.pop()
        if name in stages and name not in found:
            found.add(name)
            stage = stages[name]
            unseen += [stage[key] for key in REFERENCES if key in stage]
            if isinstance(stage.get("data"), dict):
                unseen.append(stage["data"].get("stage", ""))
    return found


def right(found: dict) -> list:
    return [outcome["greedy"] for outcome in found["outcomes"]]


def difference(pairs: list) -> tuple:
    """Mean difference in points over seeds, with its interval. `pairs` holds both sides' answers for each seed."""
    draw = random.Random(1)
    gaps = [[100 * (a - b) for a, b in zip(*pair)] for pair in pairs]
    mean = lambda values: sum(values) / len(values)
    draws = sorted(
        mean([mean(draw.choices(gap, k=len(gap))) for gap in draw.choices(gaps, k=len(gaps))]) for _ in range(DRAWS)
    )
    return mean([mean(gap) for gap in gaps]), draws[DRAWS // 40], draws[-DRAWS // 40]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stage", default="grpo", help="what the others are compared with")
    args = parser.parse_args()
    seeds = sorted(args.work.glob("seed-*"))
    if not seeds:
        sys.exit(f"{args.work} holds no seed-1, seed-2, …")
    found = {seed.name: load(seed) for seed in seeds}
    recipe = tomllib.loads(next(seeds[0].glob("*/recipe.toml")).read_text())
    value = lambda m, key: 100 * m["scores"][key]["value"]

    print(f"{'stage':<20}{'pass@1 by seed':<24}{'pass@1':>8}{'pass@8':>8}{'maj@8':>8}{'operations':>12}   {args.stage} less this")
    for name in [s["name"] for s in recipe["stage"]]:
        have = {seed: m[name] for seed, (_, m, _) in found.items() if name in m}
        if not have:
            continue
        mean = lambda key: sum(value(m, key) for m in have.values()) / len(have)
        built = lineage(recipe, name)
        spent = [sum(found[seed][0].get(stage, 0) for stage in built) for seed in have]
        both = [(right(found[s][1][args.stage]), right(m)) for s, m in have.items() if args.stage in found[s][1]]
        gap = ""
        if both and name != args.stage:
            gap = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference(both))
        by_seed = " ".join(f"{value(m, 'pass@1'):5.1f}" for m in have.values())
        print(
            f"{name:<20}{by_seed:<24}{mean('pass@1'):8.1f}{mean('pass@8'):8.1f}{mean('maj@8'):8.1f}"
            f"{sum(spent) / len(spent):12.2e}   {gap}"
        )
    names = sorted({name for _, _, levers in found.values() for name in levers})
    for name in names:
        have = [levers[name] for _, _, levers in found.values() if name in levers]
        by_seed = " ".join(f"{value(m, 'pass@1'):5.1f}" for m, _ in have)
        mean = lambda key: sum(value(m, key) for m, _ in have) / len(have)
        print(
            f"{name:<20}{by_seed:<24}{mean('pass@1'):8.1f}{mean('pass@8'):8.1f}{mean('maj@8'):8.1f}"
            f"{sum(spent for _, spent in have) / len(have):12.2e}"
        )


if __name__ == "__main__":
    main()
