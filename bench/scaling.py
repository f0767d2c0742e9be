#!/usr/bin/env python3
"""Writes the tables of docs/scaling.md, between its marks, and docs/network.svg: what was measured over wires (docs/network.jsonl, of
bench/network.py), and what follows for more machines.

    bench/scaling.py
"""
import json, math, os, re, sys

DOCS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "docs")
# What is measured, by bench/network.py's names: as people call it, parameters, tokens of a step.
MODELS = {
    "launch.toml pretrain": ("`launch`, 1.5 M", 1.5e6, 2048),
    "network-135m.toml sft": ("SmolLM2, 135 M", 134.5e6, 512),
}
COLOURS = ["#2563eb", "#d97706"]

# Machines of 8 cores at 90 GFLOP/s each, the products of machine C of LOG.md, of which training reaches half.
MACHINE = 8 * 90e9 / 2
LATENCY = 0.2e-3
# As people call it, parameters, those that a token uses, tokens of a step.
LARGE = [("1 B dense", 1e9, 1e9, 0.5e6), ("30B-A3B", 30.5e9, 3.3e9, 4e6)]
RANKS = [8, 64, 1024]


def predicted(sent, rate, delay, ranks=2):
    """Seconds that a step's bytes need: as they are, and a delay for each of the exchanges."""
    return 8 * sent / rate + 2 * math.log2(ranks) * delay


def seconds(value):
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def rate_name(rate):
    return f"{rate / 1e9:g} Gbit/s" if rate >= 1e9 else f"{rate / 1e6:g} Mbit/s"


def share(value):
    return f"{100 * value:.0f} %"


def measured_table(cells):
    rows = [
        "| model | wire | gives, each way | a rank sends | bytes ÷ bandwidth + delays | waits | share of a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        name = MODELS[cell["what"]][0]
        gives = f"{cell['bits_each_way'] / 1e6:.0f} Mbit/s, {1000 * cell['latency']:.2f} ms"
        if cell["rate"]:
            wire = f"{rate_name(cell['rate'])}, {1000 * cell['delay']:g} ms"
            expected = seconds(predicted(cell["sent_bytes"], cell["rate"], cell["delay"]))
        else:
            wire, expected = "without rate or delay", ""
        waits = cell["waiting_seconds"]
        rows.append(
            f"| {name} | {wire} | {gives} | {cell['sent_bytes'] / 1e6:.1f} MB | {expected} | {seconds(waits)} | "
            f"{share(waits / cell['step_seconds'])} |"
        )
    return "\n".join(rows)


def constants(cells):
    """Of each rate, the share of it that a large model's bytes had over the wire of the shortest delay; and how many of the delays of
    1 Gbit/s a small model's step took."""
    used = {}
    by_wire = {(cell["what"], cell["rate"], cell["delay"]): cell for cell in cells}
    small, large = MODELS
    for rate in sorted({cell["rate"] for cell in cells if cell["rate"]}):
        near = by_wire[large, rate, 0.2e-3]
        used[rate] = 8 * near["sent_bytes"] / (rate * near["waiting_seconds"])
    near, far = by_wire[small, 1e9, 0.2e-3], by_wire[small, 1e9, 5e-3]
    return used, (far["step_seconds"] - near["step_seconds"]) / (far["latency"] - near["latency"])


def large_table(used, exchanges):
    rows = ["| | one machine | " + " | ".join(f"{r:,}" for r in RANKS) + " |", "|---|" + "---|" * (1 + len(RANKS))]
    for name, parameters, active, tokens in LARGE:
        alone = MACHINE / (6 * active)
        for rate in (1e9, 1e10, 1e11):
            row = []
            for ranks in RANKS:
                computing = tokens / alone / ranks
                sent = 8 * parameters * (1 - 1 / ranks)
                waiting = 8 * sent / (rate * used.get(rate, used[1e10])) + exchanges * math.log2(ranks) * LATENCY
                efficiency = computing / (computing + waiting)
                row.append(f"{round_to(tokens / (computing + waiting)):,}, {share(efficiency)}")
            first = name + ", " if rate == 1e9 else ""
            rows.append(f"| {first}{rate_name(rate)} | {f'{alone:.0f}' if first else ''} | " + " | ".join(row) + " |")
    return "\n".join(rows)


def round_to(value, digits=3):
    return int(float(f"{value:.{digits}g}"))


def plot(cells):
    """Share of a step spent waiting over the seconds that the bytes need for each second of computing."""
    width, height, left, right, top, bottom = 760, 420, 60, 20, 20, 60
    low, high = 1e-2, 1e2
    x = lambda v: left + (math.log10(v / low)) / math.log10(high / low) * (width - left - right)
    y = lambda v: height - bottom - v * (height - top - bottom)
    text = lambda at_x, at_y, words, anchor="middle": f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{words}</text>'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" role="img" '
        'aria-label="Share of a step spent waiting over the time that the bytes need, relative to computing">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tick in (0.01, 0.1, 1, 10, 100):
        out.append(f'<path d="M{x(tick):.1f} {y(0)}V{y(1)}" stroke="#e5e7eb"/>{text(x(tick), y(0) + 18, f"{tick:g}")}')
    for tick in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<path d="M{x(low)} {y(tick):.1f}H{x(high)}" stroke="#e5e7eb"/>{text(left - 8, y(tick) + 4, share(tick), "end")}')
    out.append(text((left + width - right) / 2, height - 12, "(bytes ÷ bandwidth + delays) ÷ seconds of computing"))
    curve = [low * (high / low) ** (i / 100) for i in range(101)]
    points = " ".join(f"{x(v):.1f},{y(v / (1 + v)):.1f}" for v in curve)
    out.append(f'<polyline points="{points}" fill="none" stroke="#6b7280" stroke-dasharray="5 4"/>')
    for cell in (cell for cell in cells if cell["rate"]):
        colour = COLOURS[list(MODELS).index(cell["what"])]
        waiting, step = cell["waiting_seconds"], cell["step_seconds"]
        at = predicted(cell["sent_bytes"], cell["rate"], cell["delay"]) / (step - waiting)
        near = cell["delay"] < 1e-3
        about = f'{MODELS[cell["what"]][0].replace("`", "")}, {rate_name(cell["rate"])}, {1000 * cell["delay"]:g} ms'
        fill = colour if near else "white"
        out.append(
            f'<circle cx="{x(min(max(at, low), high)):.1f}" cy="{y(waiting / step):.1f}" r="5" fill="{fill}" stroke="{colour}" '
            f'stroke-width="2"><title>{about}: {share(waiting / step)}</title></circle>'
        )
    legend = [(colour, colour, name.replace("`", "")) for colour, (name, *_) in zip(COLOURS, MODELS.values())]
    legend += [("#374151", "#374151", "0.2 ms"), ("white", "#374151", "5 ms")]
    for i, (fill, stroke, words) in enumerate(legend):
        at = top + 20 + 20 * i
        out.append(f'<circle cx="{left + 20}" cy="{at}" r="5" fill="{fill}" stroke="{stroke}" stroke-width="2"/>{text(left + 32, at + 4, words, "start")}')
    at = top + 20 + 20 * len(legend)
    out.append(f'<path d="M{left + 10} {at}h20" stroke="#6b7280" stroke-dasharray="5 4"/>{text(left + 36, at + 4, "as predicted", "start")}')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    with open(f"{DOCS}/network.jsonl") as file:
        cells = [json.loads(line) for line in file]
    used, exchanges = constants(cells)
    told = {
        "measured": measured_table(cells),
        "large": large_table(used, exchanges),
    }
    with open(f"{DOCS}/scaling.md") as file:
        page = file.read()
    for name, table in told.items():
        page, count = re.subn(f"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table}\n{m[2]}", page, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"docs/scaling.md has not one place for the table `{name}`")
    with open(f"{DOCS}/scaling.md", "w") as file:
        file.write(page)
    with open(f"{DOCS}/network.svg", "w") as file:
        file.write(plot(cells))
    print("share of the rate used:", {rate_name(rate): round(value, 3) for rate, value in used.items()})
    print(f"exchanges waited for, for each doubling of ranks: {exchanges:.1f}")


if __name__ == "__main__":
    main()
