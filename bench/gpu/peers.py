#!/usr/bin/env python3
"""What PyTorch and transformers do on a card with the work that `shoestring bench` times; bench/gpu/speed runs both.

    bench/gpu/peers.py [PART ...] [--out ROWS.jsonl]       measures (all parts if none is named)
    bench/gpu/peers.py --table FOLDER                      prints what bench/gpu/speed left in FOLDER

Random weights. f32 is f32 throughout, without TF32, beside our exact mode; bf16 is autocast, or bf16 weights where it says
so, beside our fast mode. Every row is written when it is known, and a part that fails leaves its error and does not stop
the others. --quick takes tiny sizes, on the CPU too, to see that all runs.
Written for Python 3.12, PyTorch 2.11 and transformers 5.17.
"""

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BENCH = Path(__file__).resolve().parent.parent
# What is done, and in what it is counted. The folder that --table reads has PART-f32.json and PART-bf16.json of ours.
PARTS = {
    "products": ("matrix product", "GFLOP/s"),
    "dense-train": ("dense 6.8 M, training 16 x 256", "tokens/s"),
    "dense-generate": ("dense 6.8 M, generating 64 x (64 + 128)", "tokens/s"),
    "moe-train": ("DeepSeek-V3 MoE, training 16 x 256", "tokens/s"),
    "qwen-train": ("Qwen3 0.6 B, training 8 x 1024", "tokens/s"),
    "qwen-generate": ("Qwen3 0.6 B, generating 64 x (64 + 128)", "tokens/s"),
    # Ours alone.
    "dense-grpo": ("dense 6.8 M, GRPO step of 8 x 8 answers of 96", "s"),
    "qwen-grpo": ("Qwen3 0.6 B, GRPO step of 8 x 8 answers of 256", "s"),
    "launch": ("shoestring launch, from start to end", "s"),
}
PRODUCTS = [(8192, 8192, 8192), (4096, 1024, 4096)]  # rows, inner length, columns


# ---------------------------------------------------------------- measuring


class Peers:
    def __init__(self, args):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_float32_matmul_precision("highest")  # no TF32
        torch.manual_seed(1)
        self.torch, self.quick, self.out = torch, args.quick, args.out
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu" and not self.quick:
            sys.exit("PyTorch sees no GPU (--quick runs tiny sizes on the CPU)")
        self.card = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        versions = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
        self.write(card=self.card, versions=versions)

    def write(self, **row):
        line = json.dumps(row)
        print(f"[{time.monotonic() - BEGIN:5.1f} s] {line}", flush=True)
        if self.out:
            with open(self.out, "a") as file:
                file.write(line + "\n")

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def seconds(self, work, times):
        """Of one `work`, as the mean of several in a row."""
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - start) / times

    def measure(self, part, numbers, variant, measure):
        """Writes the rate that `measure` returns, or why there is none."""
        if self.device == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
        try:
            row = {"rate": measure()}
            if self.device == "cuda":
                row["peak_gib"] = round(self.torch.cuda.max_memory_allocated() / 2**30, 2)
        except Exception as e:  # one failure must not stop the rest
            row = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}
        self.write(part=part, numbers=numbers, variant=variant, **row)
        gc.collect()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def model(self, shape, dtype=None, experts=None):
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(BENCH / f"{shape}.json")
        if self.quick and shape.startswith("qwen"):
            config.num_hidden_layers, config.vocab_size, config.layer_types = 2, 4096, config.layer_types[:2]
            config.bos_token_id = config.eos_token_id = None
        if experts:
            config._experts_implementation = experts
        with self.torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa", dtype=dtype or self.torch.float32
            )
        return model.to(self.device)

    def tokens(self, model, rows, columns):
        return self.torch.randint(0, model.config.vocab_size, (rows, columns), device=self.device)

    def products(self, m, k, n, dtype):
        """The best of five rounds, as `shoestring bench gemm` gives the best of its own."""
        torch = self.torch
        random = lambda *shape: torch.rand(shape, device=self.device).sub(0.5).to(dtype)
        x, w, y = random(m, k), random(n, k), random(m, n)
        work = lambda: torch.mm(x, w.t(), out=y)
        self.seconds(work, 2)
        times = max(1, min(100, int(1e12 / (2 * m * k * n)))) if not self.quick else 1
        return 2e-9 * m * k * n / min(self.seconds(work, times) for _ in range(5))

    def train(self, model, batch, seq, steps, autocast=False, graph=False, compiled=False):
        """Tokens per second of whole steps with AdamW; with `graph`, of one step captured and replayed; with `compiled`, of a model
        that torch.compile has been through."""
        torch = self.torch
        if self.quick:
            batch, seq, steps = 2, 16, 1
        model.train()
        if compiled:
            model = torch.compile(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=graph)
        x, targets = self.tokens(model, batch, seq), self.tokens(model, batch, seq).flatten()

        def backward():
            with torch.autocast(self.device, torch.bfloat16, enabled=autocast):
                logits = model(input_ids=x, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets).backward()

        def step():
            backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if graph:
            # As PyTorch's documentation does it: gradients are made by the captured step, in the graph's memory.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(aside)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                backward()
                optimizer.step()
            step = captured.replay
        self.seconds(step, 3)
        return batch * seq / self.seconds(step, steps)

    def generate(self, model):
        """New tokens per second of sampling at temperature 1; the second run counts."""
        torch = self.torch
        prompts, prompt_len, max_new = (2, 8, 4) if self.quick else (64, 64, 128)
        model.eval()
        model.generation_config.eos_token_id = None  # all run to the end, ours too
        x = self.tokens(model, prompts, prompt_len)
        made = []

        def run():
            with torch.inference_mode():
                y = model.generate(
                    x, attention_mask=torch.ones_like(x), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    max_new_tokens=max_new, pad_token_id=0, use_cache=True,
                )  # fmt: skip
            made.append(y.shape[1] - prompt_len)

        run()
        seconds = self.seconds(run, 1)
        assert made[-1] == max_new, f"{made[-1]} new tokens, not {max_new}"
        return prompts * max_new / seconds

    def part(self, name):
        f32, bf16 = self.torch.float32, self.torch.bfloat16
        if name == "products":
            for numbers, dtype in [("f32", f32), ("bf16", bf16)]:
                for m, k, n in PRODUCTS if not self.quick else [(64, 64, 64)]:
                    self.measure(name, numbers, f"{m} x {k} x {n}", lambda: self.products(m, k, n, dtype))
        elif name == "dense-train":
            for numbers, autocast in [("f32", False), ("bf16", True)]:
                train = lambda steps, graph: self.train(self.model("dense"), 16, 256, steps, autocast, graph)
                self.measure(name, numbers, "eager", lambda: train(50, False))
                self.measure(name, numbers, "whole step as a CUDA graph", lambda: train(100, True))
                compiled = lambda: self.train(self.model("dense"), 16, 256, 50, autocast, compiled=True)
                self.measure(name, numbers, "torch.compile", compiled)
        elif name == "dense-generate":
            self.measure(name, "f32", "transformers", lambda: self.generate(self.model("dense")))
        elif name == "moe-train":
            for experts in ["grouped_mm", "batched_mm", "eager"]:
                train = lambda: self.train(self.model("moe", experts=experts), 16, 256, 10)
                self.measure(name, "f32", f"eager, experts by {experts}", train)
        elif name == "qwen-train":
            train = lambda dtype, steps, autocast: self.train(self.model("qwen3-0.6b", dtype), 8, 1024, steps, autocast)
            self.measure(name, "f32", "eager", lambda: train(f32, 3, False))
            self.measure(name, "bf16", "eager", lambda: train(f32, 6, True))
            compiled = lambda: self.train(self.model("qwen3-0.6b"), 8, 1024, 6, True, compiled=True)
            self.measure(name, "bf16", "torch.compile", compiled)
            self.measure(name, "bf16", "eager, bf16 weights", lambda: train(bf16, 6, False))
        elif name == "qwen-generate":
            self.measure(name, "f32", "transformers", lambda: self.generate(self.model("qwen3-0.6b", f32)))
            self.measure(name, "bf16", "transformers, bf16 weights", lambda: self.generate(self.model("qwen3-0.6b", bf16)))


# ---------------------------------------------------------------- the table


def ours_of(folder, part, numbers):
    """Our figures of a part, by the peer's variant for products and under None else; and our card."""
    try:
        found = json.loads((folder / f"{part}-{numbers}.json").read_text())
    except (OSError, ValueError):
        return {}, None
    if part == "products":
        rates = {f"{s['m']} x {s['k']} x {s['n']}": s["gflops"] for s in found["shapes"]}
        return {" x ".join(map(str, p)): rates.get(" x ".join(map(str, p))) for p in PRODUCTS}, found["device"]
    return {None: found.get("seconds_per_step", found.get("seconds")) if PARTS[part][1] == "s" else found["tokens_per_second"]}, found.get("device")


def table(folder):
    file = folder / "peers.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    head = next((line for line in lines if "card" in line), {})
    body, cards, errors = [], {head.get("card")}, []
    figure = lambda x: "" if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
    for part, (title, unit) in PARTS.items():
        for numbers in ["f32", "bf16"]:
            ours, card = ours_of(folder, part, numbers)
            cards.add(card)
            peers = {row["variant"]: row for row in lines if row.get("part") == part and row["numbers"] == numbers}
            # What the peer did not get to is shown all the same.
            missing = [v for v in ours if v not in peers] if part == "products" or not peers else []
            for variant in [*peers, *missing]:
                row = peers.get(variant, {})
                mine, its = ours.get(variant, ours.get(None)), row.get("rate")
                if "error" in row:
                    errors.append(f"{title}, {numbers}, {variant}: {row['error']}")
                ratio = f"{mine / its:.2f}" if mine and its else ""
                its = "failed" if "error" in row else figure(its)
                body.append([title, numbers, variant or "", unit, figure(mine), its, ratio])
    titles = ["work", "numbers", "PyTorch", "", "ours", "PyTorch's", "ours / its"]
    widths = [max(len(line[i]) for line in [titles, *body]) for i in range(len(titles))]
    align = lambda line: [c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))]
    show = lambda line: "| " + " | ".join(align(line)) + " |"
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    print(" and ".join(sorted(filter(None, cards)) or ["no card"]) + (f"; {head['versions']}" if head else ""))
    print("\n".join([show(titles), rule, *map(show, body)]))
    for error in errors:
        print("FAILED", error)


BEGIN = time.monotonic()


def main():
    parser = argparse.ArgumentParser(description="PyTorch on the work that `shoestring bench` times, on a GPU.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, help="append a JSON line for every figure")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on the CPU too: the figures mean nothing")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="print the table of a folder")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(PARTS)}")
    if args.table:
        return table(args.table)
    peers = Peers(args)
    for part in args.parts or PARTS:
        peers.part(part)  # nothing for what is ours alone


if __name__ == "__main__":
    main()
