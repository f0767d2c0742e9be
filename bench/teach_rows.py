#!/usr/bin/env python3
"""Writes a table of the kind that people bring to `shoestring teach`: questions in sentences whose answers can be checked.

    bench/teach_rows.py 600 > rows.csv                    # receipts, dates, units, in equal parts, with worked solutions
    bench/teach_rows.py 600 --no-solutions > rows.csv     # answers alone
    bench/teach_rows.py 600 --kinds receipts > rows.csv   # numbers alone
    bench/teach_rows.py 600 --kinds sums --no-solutions > rows.csv   # easy ones, answers alone

The same arguments give the same table.
"""

import argparse
import csv
import random
import sys

NAMES = ["Anna", "Ben", "Clara", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas"]
ITEMS = ["notebooks", "mugs", "lamps", "cables", "pens", "boxes of tea", "candles", "plates", "towels", "batteries"]
MONTHS = [
    ("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31), ("June", 30), ("July", 31),
    ("August", 31), ("September", 30), ("October", 31), ("November", 30), ("December", 31),
]  # fmt: skip
# What is measured, the large unit, the small one, how many of these make one of those, how many of the large one.
UNITS = [
    ("The rope is", "metres", "centimetres", 100, 9),
    ("The path is", "kilometres", "metres", 1000, 9),
    ("The parcel weighs", "kilograms", "grams", 1000, 9),
    ("The film lasts", "hours", "minutes", 60, 6),
    ("The song lasts", "minutes", "seconds", 60, 9),
    ("The shelf is", "feet", "inches", 12, 9),
    ("The journey takes", "days", "hours", 24, 9),
    ("The holiday lasts", "weeks", "days", 7, 9),
]


def receipts(rng):
    lines = [(rng.randint(2, 6), item, rng.randint(2, 12)) for item in rng.sample(ITEMS, rng.choice([2, 2, 3]))]
    shipping = rng.choice([0, 0, 3, 4, 5])
    listed = [f"{n} {item} at {price} dollars each" for n, item, price in lines]
    question = f"{rng.choice(NAMES)} buys {', '.join(listed[:-1])} and {listed[-1]}."
    if shipping:
        question += f" Shipping costs {shipping} dollars."
    question += " What is the total in dollars?"
    work = [f"{n} * {price} = {n * price}" for n, _, price in lines]
    total = lines[0][0] * lines[0][2]
    for more in [n * price for n, _, price in lines[1:]] + [shipping] * (shipping > 0):
        work.append(f"{total} + {more} = {total + more}")
        total += more
    return question, str(total), "\n".join(work)


def dates(rng):
    month, day, later = rng.randrange(12), rng.randint(1, 28), rng.randint(5, 45)
    about = rng.choice(["A bill is dated {}. It is due", "A parcel leaves on {}. It arrives", "A course starts on {}. It ends"])
    question = f"{about.format(f'{day} {MONTHS[month][0]}')} {later} days later. On which day? It is no leap year."
    left = day + later
    work = [f"{day} + {later} = {left}"]
    while left > MONTHS[month % 12][1]:
        name, days = MONTHS[month % 12]
        work.append(f"{name} has {days} days: {left} - {days} = {left - days}")
        left -= days
        month += 1
    name = MONTHS[month % 12][0]
    work.append(f"That is in {name}.")
    return question, f"{left} {name}", "\n".join(work)


def units(rng):
    what, large, small, factor, most = rng.choice(UNITS)
    n, rest = rng.randint(2, most), rng.randint(1, factor - 1)
    question = f"{what} {n} {large} and {rest} {small}. How many {small} is that?"
    return question, str(n * factor + rest), f"{n} * {factor} = {n * factor}\n{n * factor} + {rest} = {n * factor + rest}"


def sums(rng):
    """One step with small numbers, which a small model gets right now and then without having been taught."""
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    a, b = rng.randint(3, 20), rng.randint(2, 12)
    if rng.random() < 0.5:
        return f"{name} has {a} {item} and gets {b} more. How many {item} does {name} have now?", str(a + b), f"{a} + {b} = {a + b}"
    a += b
    return f"{name} has {a} {item} and gives {b} away. How many {item} are left?", str(a - b), f"{a} - {b} = {a - b}"


KINDS = {"receipts": receipts, "dates": dates, "units": units, "sums": sums}
USUAL = ["receipts", "dates", "units"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=USUAL)
    parser.add_argument("--no-solutions", action="store_true")
    parser.add_argument("--seed", type=int, default=7)
    a = parser.parse_args()
    rng, seen, out = random.Random(a.seed), set(), csv.writer(sys.stdout)
    out.writerow(["question", "answer"] + ["solution"] * (not a.no_solutions))
    while len(seen) < a.rows:
        question, answer, work = KINDS[a.kinds[len(seen) % len(a.kinds)]](rng)
        if question not in seen:
            seen.add(question)
            out.writerow([question, answer] + [work] * (not a.no_solutions))


if __name__ == "__main__":
    main()
