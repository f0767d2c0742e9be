#!/usr/bin/env python3
"""What a run is planned to take of memory, and what it then took: each case is a recipe of a few steps, whose `--dry-run` is held
against the peak that the system saw (what `/usr/bin/time -v` prints as the maximum resident set size).

    bench/memory.py                                        # models that begin here: dense, with experts, launch's shape
    bench/memory.py SmolLM2-135M-Instruct.Q4_1.gguf        # and an open model: all weights, LoRA, each fine-tuned and reinforced
    bench/memory.py MODEL --only lora,grpo                 # cases with one of these words in their name

Prints a line of a Markdown table for each case. `SHOESTRING` names another program than target/release/shoestring.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("SHOESTRING", str(ROOT / "target/release/shoestring"))
GIB = float(1 << 30)

LAUNCH = {
    "model_type": "deepseek_v3", "hidden_size": 128, "intermediate_size": 384, "moe_intermediate_size": 96,
    "num_hidden_layers": 4, "num_attention_heads": 4, "kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 512,
}  # fmt: skip
PROBLEMS = """
[machine]
memory_gib = 64
[problems]
mix = [{ task = "word" }]
held_out = 4
"""
# Where no reward differs between answers nothing is trained on: the share of Latin letters does.
REWARD = """
[[problems.reward]]
name = "latin"
weight = 1.0
verifier = { script = "Latin" }
"""
ADAPTER = "adapter = { rank = 16, alpha = 32 }\n"


def toml(value):
    return json.dumps(value) if not isinstance(value, dict) else "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"


def fresh(config):
    """A model of random weights with a tokenizer of its own."""
    keys = {k: v for k, v in config.items() if v is not None and not k.endswith("token_id") and k != "vocab_size"}
    model = "".join(f"{k} = {toml(v)}\n" for k, v in keys.items())
    size = min(config.get("vocab_size", 1024), 4096)
    return f'[models.m]\n{model}\n[[stage]]\nkind = "tokenizer"\nvocab_size = {size}\ndocuments = 4000\n'


def stage(kind, extra):
    return f'\n[[stage]]\nkind = "{kind}"\n{extra}sample_every = 0\neval_every = 0\n'


def pretrain(batch, seq, steps=2):
    return stage("pretrain", f'model = "m"\ntokens = {steps * batch}\nbatch_tokens = {batch}\nseq_len = {seq}\n')


def sft(model, adapter=""):
    # Steps differ in size, and what they take settles after some.
    return stage("sft", f"from = {toml(model)}\nsteps = 8\nbatch_tokens = 2048\nseq_len = 512\n{adapter}")


def grpo(model, prompts, group, max_new, adapter=""):
    size = f"prompts = {prompts}\ngroup = {group}\nmax_new = {max_new}\n"
    return stage("grpo", f"from = {toml(model)}\nsteps = 1\n{size}{adapter}")


def cases(model):
    dense, experts = (json.loads((ROOT / f"bench/{name}.json").read_text()) for name in ("dense", "moe"))
    yield "dense, 4096 tokens", fresh(dense) + pretrain(4096, 256)
    yield "experts, 4096 tokens", fresh(experts) + pretrain(4096, 256)
    yield "launch's shape, 2048 tokens", fresh(LAUNCH) + pretrain(2048, 288)
    yield "launch's shape, grpo 64 × 8 × 160", fresh(LAUNCH) + pretrain(2048, 288) + grpo("pretrain", 64, 8, 160)
    if model:
        yield "open model, sft, all weights", sft(model)
        yield "open model, sft, LoRA 16", sft(model, ADAPTER)
        yield "open model, grpo 4 × 8 × 96, all weights", grpo(model, 4, 8, 96)
        yield "open model, grpo 4 × 8 × 96, LoRA 16", grpo(model, 4, 8, 96, ADAPTER)


def measure(recipe, folder, out):
    plan = subprocess.run([PROGRAM, "run", recipe, "--dry-run"], capture_output=True, text=True)
    if plan.returncode:
        raise SystemExit(plan.stderr)
    planned = max(float(x) for x in re.findall(r"^# .* ([0-9.]+) GiB ", plan.stdout, re.M))
    log = open(folder / "log", "w")
    process = subprocess.Popen([PROGRAM, "run", recipe, "--out", out], stdout=log, stderr=log)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((folder / "log").read_text())
    return planned, used.ru_maxrss * 1024 / GIB


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    model = args.model and os.path.abspath(args.model)
    print("| case | planned, GiB | peak, GiB | planned over peak |\n|---|---|---|---|")
    for name, text in cases(model):
        if not any(word in name for word in args.only.split(",")):
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            recipe = folder / "memory.toml"
            rewards = REWARD if "grpo" in name else ""
            recipe.write_text('name = "memory"\nseed = 1\n' + PROBLEMS + rewards + text)
            planned, peak = measure(recipe, folder, folder / "run")
        print(f"| {name} | {planned:.2f} | {peak:.2f} | {planned / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
