#!/usr/bin/env python3
"""Shoestring beside llama.cpp on this machine's CPU, on the same GGUF file, by turns in the same minutes.

    CMAKE_ARGS="-DGGML_NATIVE=ON" .venv/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
    .venv/bin/python bench/llama.py SmolLM2-135M-Instruct.Q4_1.gguf --rounds 5

    decode    one sequence, 128 tokens behind a prompt of 16
    prompt    512 tokens read, none written
    batch     32 sequences of 64 + 96 tokens at once

Weights as they are stored on both sides; llama.cpp also rounds activations to 8 bits, Shoestring computes in f32. Random prompts, random draws
here and the most likely token there. Tokens per second: medians over the rounds, and the range of the rounds' ratios. Where instruction
sets are advertised that the machine refuses (AMX), build llama.cpp with GGML_NATIVE=OFF and each of the others.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import time
from pathlib import Path

WORK = {"decode": (1, 16, 128), "prompt": (1, 512, 1), "batch": (32, 64, 96)}


class Llama:
    def __init__(self, path, threads, sequences, tokens):
        import llama_cpp as api

        self.api = api
        params = api.llama_model_default_params()
        self.model = api.llama_model_load_from_file(str(path).encode(), params)
        context = api.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max = sequences * tokens, 2048, 512, sequences
        context.n_threads = context.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, context)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(max(2048, sequences), 0, 1)

    def run(self, sequences, prompt, new):
        import numpy

        api, batch = self.api, self.batch
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        rng = random.Random(1)
        start = time.perf_counter()

        def decode(rows):
            batch.n_tokens = len(rows)
            for i, (token, place, sequence, wanted) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, place, 1, sequence, wanted
            assert api.llama_decode(self.context, batch) == 0

        def likeliest(i):
            logits = api.llama_get_logits_ith(self.context, i)
            return numpy.ctypeslib.as_array(logits, (self.vocabulary,)).argmax()

        rows = [(rng.randrange(100, self.vocabulary), p, s, p == prompt - 1) for s in range(sequences) for p in range(prompt)]
        latest = [0] * sequences
        for at in range(0, len(rows), 2048):
            part = rows[at : at + 2048]
            decode(part)
            for i, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    latest[sequence] = likeliest(i)
        for step in range(new - 1):
            decode([(latest[s], prompt + step, s, True) for s in range(sequences)])
            latest = [likeliest(s) for s in range(sequences)]
        return time.perf_counter() - start


def ours(binary, model, threads, sequences, prompt, new):
    call = [binary, "bench", "generate", "--json", "--model", model, "--threads", threads, "--device", "cpu"]
    call += ["--prompts", sequences, "--prompt-len", prompt, "--max-new", new]
    out = subprocess.run([str(c) for c in call], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)["seconds_per_step"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", default=",".join(WORK))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--binary", default=str(Path(__file__).resolve().parent.parent / "target/release/shoestring"))
    args = parser.parse_args()
    for kind in args.only.split(","):
        sequences, prompt, new = WORK[kind]
        llama = Llama(args.model, args.threads, sequences, prompt + new)
        llama.run(sequences, prompt, new)
        tokens = prompt if kind == "prompt" else sequences * new
        rounds = []
        for _ in range(args.rounds):
            here = tokens / ours(args.binary, args.model, args.threads, sequences, prompt, new)
            rounds.append((here, tokens / llama.run(sequences, prompt, new)))
        ratios = sorted(a / b for a, b in rounds)
        here, there = (statistics.median(r[i] for r in rounds) for i in (0, 1))
        print(
            f"{kind:8} {here:9.1f} tokens/s here, {there:9.1f} llama.cpp, {here / there:.2f} times"
            f" [{ratios[0]:.2f}-{ratios[-1]:.2f}]",
            flush=True,
        )


main()
