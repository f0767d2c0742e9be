#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.15.0",
#   "transformers==5.23.0",
#   "trl==1.16.0",
#   "accelerate==1.15.0",
#   "datasets==5.2.0",
#   "tokenizers==0.23.3",
#   "numpy==2.4.6",
#   "peft==0.21.2",
# ]
# ///
"""Shoestring beside PyTorch, transformers and TRL on this machine's CPU, in the same minutes.

    python3 -m venv .venv
    .venv/bin/pip install torch==2.15.0 transformers==5.23.0 trl==1.16.0 \
        accelerate==1.15.0 datasets==5.2.0 tokenizers==0.23.3 numpy==2.4.6 peft==0.21.2
    cargo build --release
    .venv/bin/python bench/compare.py
    .venv/bin/python bench/compare.py --model SmolLM2-135M-Instruct    # a folder: its weights, and LoRA of rank 16 beside them

Same shapes (dense.json, moe.json), random weights, float32, same batch, same number of threads on both sides:

    train     one AdamW step on 16 x 256 tokens: PyTorch eager, and torch.compile
    generate  64 prompts of 64 tokens, 64 new tokens each, temperature 1: transformers' `generate`
    grpo      one step, 8 prompts of 32 tokens x 8 completions of up to 96, random rewards: TRL's GRPOTrainer

With --model the shapes are `model` and `lora` (PEFT's, on all linear layers); training is on 8 x 512 tokens, a GRPO step has 4 prompts.

Before the first round every opponent tries the settings that could be fastest for it (implementation of the
experts, kind of cache, fused AdamW) and keeps the best. Each opponent has a process of its own, which
sleeps while others measure; ours is started anew each time. They take turns, A B A B, for a few rounds. The
table has medians of seconds, the ratio of the medians of tokens per second, and the range of the ratios of single
rounds. Peak memory is VmHWM: for the opponents counted from after the trials and the compilation, which is in their favour.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import queue
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = ("train", "generate", "grpo")
SHAPES = ("dense", "moe", "model", "lora")
RANK = 16
# The sizes of each measurement; --quick shrinks them, to see that everything runs.
FULL = {
    "train": {"batch": 16, "seq": 256, "steps": 3},
    "generate": {"prompts": 64, "prompt_len": 64, "max_new": 64},
    "grpo": {"prompts": 8, "group": 8, "max_new": 96, "prompt_len": 32, "steps": 1},
}
QUICK = {
    "train": {"batch": 2, "seq": 32, "steps": 1},
    "generate": {"prompts": 4, "prompt_len": 8, "max_new": 4},
    "grpo": {"prompts": 2, "group": 2, "max_new": 8, "prompt_len": 8, "steps": 1},
}
def sizes_of(args, kind):
    sizes = dict((QUICK if args.quick else FULL)[kind])
    if args.model and not args.quick:
        sizes |= {"train": {"batch": 8, "seq": 512}, "generate": {"prompts": 32}, "grpo": {"prompts": 4}}[kind]
    if kind == "generate" and args.prompt_len:
        sizes["prompt_len"] = args.prompt_len
    return sizes


MARK = "@@ "  # starts a line of a worker that is meant for the parent


# ---------------------------------------------------------------- the opponents, each in a process of its own


def say(**message):
    print(MARK + json.dumps(message), flush=True)


def status_bytes(key):
    """A line of /proc/self/status, in bytes."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(match[1]) * 1024 if match else 0


def forget_peak():
    """Gives freed memory back and lets VmHWM start again from what is held now."""
    import gc

    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass  # then the peak includes the trials


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fastest(label, candidates, again=2):
    """Times `work` for each (name, work) after one run to warm up, and returns the name of the fastest."""
    best = None
    for name, work in candidates:
        try:
            work()
            seconds = min(timed(work) for _ in range(again))
        except Exception as e:  # a setting that this machine or version does not offer
            say(progress=f"{label} {name}: not available ({type(e).__name__}: {str(e)[:120]})")
            continue
        say(progress=f"{label} {name}: {seconds:.3f} s")
        if best is None or seconds < best[0]:
            best = (seconds, name)
    if best is None:
        raise RuntimeError(f"no {label} works")
    return best[1]


def make_model(args, experts):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, attn_implementation="sdpa", dtype=torch.float32)
    else:
        config = AutoConfig.from_pretrained(HERE / f"{args.shape}.json")
        if args.shape == "moe":
            config._experts_implementation = experts
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    count = sum(p.numel() for p in model.parameters())
    say(progress=f"{type(model).__name__}, {count / 1e6:.2f} M parameters")
    return model


def lora():
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")


def set_experts(model, experts):
    if experts:
        model.config._experts_implementation = experts


def experts_for(shape, names):
    """The implementations of the experts to try; a dense model has none."""
    return list(names) if shape == "moe" else [None]


def serve(measure):
    """Answers every line of the parent with a measurement: (seconds, tokens)."""
    say(ready=True)
    for _ in sys.stdin:
        seconds, tokens = measure()
        say(seconds=seconds, tokens=tokens, peak=status_bytes("VmHWM"))


def worker_train(args, sizes, compiled):
    import torch

    model = make_model(args, "grouped_mm")
    if args.shape == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, lora())
    model.train()
    n = sizes["batch"] * sizes["seq"]
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, model.config.vocab_size, (sizes["batch"], sizes["seq"]), generator=generator)
    run = torch.compile(model, dynamic=False, mode=args.compile_mode) if compiled else model

    def optimizer_of(**options):
        return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-4, **options)

    optimizer = [optimizer_of(fused=True)]

    def step():
        run(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer[0].step()
        optimizer[0].zero_grad(set_to_none=True)

    chosen = []
    if args.shape == "moe":
        # Compiled, "eager" breaks the graph at every layer and "grouped_mm" stays whole, so only one is compiled.
        names = ["grouped_mm"] if compiled and not args.thorough else ["grouped_mm", "eager"]

        def try_experts(name):
            if model.config._experts_implementation != name:
                set_experts(model, name)
                torch.compiler.reset()
            step()

        name = fastest("experts", [(name, lambda name=name: try_experts(name)) for name in names], 1)
        if model.config._experts_implementation != name:
            set_experts(model, name)
            torch.compiler.reset()
        chosen.append(name)
    step()
    options = {"fused": {"fused": True}, "foreach": {"foreach": True}}
    run(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    tries = {name: optimizer_of(**o) for name, o in options.items()}
    name = fastest("AdamW", [(name, o.step) for name, o in tries.items()], 3)
    chosen.append(f"{name} AdamW")
    del tries
    optimizer[0] = optimizer_of(**options[name])
    model.zero_grad(set_to_none=True)
    step()
    forget_peak()

    def measure():
        step()
        return timed(lambda: [step() for _ in range(sizes["steps"])]) / sizes["steps"], n

    say(chosen=", ".join(chosen))
    serve(measure)


def worker_generate(args, sizes):
    import torch

    model = make_model(args, "grouped_mm").eval()
    model.generation_config.eos_token_id = None  # all run to the end, ours too
    shape = (sizes["prompts"], sizes["prompt_len"])
    tokens = torch.randint(0, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)

    def generate(experts, cache, max_new):
        set_experts(model, experts)
        options = {}
        if cache != "dynamic":
            options = {"cache_implementation": "static", "disable_compile": cache == "static"}
        if cache == "static, compiled":
            from transformers import CompileConfig

            options["compile_config"] = CompileConfig(mode=args.compile_mode)
            options["compile_config"]._compile_all_devices = True
        return model.generate(
            tokens, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=max_new, pad_token_id=0, **options,
        )  # fmt: skip

    # "batched_mm" gathers a copy of the experts' weights for every token: gigabytes for a prompt, and slow.
    names = experts_for(args.shape, ["grouped_mm", "eager"] + (["batched_mm"] if args.thorough else []))
    short = max(2, sizes["max_new"] // 8)
    experts = fastest("experts", [(name, lambda name=name: generate(name, "dynamic", short)) for name in names]) if len(names) > 1 else names[0]
    caches = ["dynamic", "static"] + (["static, compiled"] if args.thorough else [])
    # Not shorter than measured: a static cache is as long as what will be generated.
    cache = fastest("cache", [(c, lambda c=c: generate(experts, c, sizes["max_new"])) for c in caches], 1)
    say(chosen=", ".join(filter(None, [experts, f"{cache} cache"])))
    forget_peak()

    def measure():
        if cache != "static, compiled":  # another length would compile anew
            generate(experts, cache, min(2, sizes["max_new"]))
        out = []
        seconds = timed(lambda: out.append(generate(experts, cache, sizes["max_new"])))
        made = out[0].shape[1] - tokens.shape[1]
        assert made == sizes["max_new"], made
        return seconds, made * tokens.shape[0]

    serve(measure)


def worker_grpo(args, sizes, folder):
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model = make_model(args, "grouped_mm")
    # A word for every token: <bos> <eos> <pad> w3 w4 …
    words = ["<bos>", "<eos>", "<pad>"] + [f"w{i}" for i in range(3, model.config.vocab_size)]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    rng = random.Random(4)
    prompt = lambda: " ".join(f"w{rng.randrange(3, model.config.vocab_size)}" for _ in range(sizes["prompt_len"]))
    assert len(tokenizer(prompt())["input_ids"]) == sizes["prompt_len"]
    sequences = sizes["prompts"] * sizes["group"]

    # One trial step for each setting after a first one to warm up; then steps as the parent asks for them.
    trials = [(e, c) for e in experts_for(args.shape, ["grouped_mm", "eager"]) for c in ("dynamic",)]
    if args.thorough:
        trials += [(e, "static") for e, _ in trials]
    trials = trials if len(trials) > 1 else []
    warm = 1 + len(trials)
    seen = {"tokens": 0}

    def reward(completion_ids, **_):
        assert len(completion_ids) == sequences
        seen["tokens"] = sum(len(c) for c in completion_ids)
        return [float(rng.random() < 0.5) for _ in completion_ids]

    class Steps(TrainerCallback):
        """Holds the trainer before every measured step until the parent asks for it."""

        done, start, times = 0, 0.0, {}

        def use(self, setting):
            set_experts(model, setting[0])
            if args.thorough:
                trainer.generation_config.cache_implementation = "static" if setting[1] == "static" else None
                trainer.generation_config.disable_compile = True

        def on_step_begin(self, config, state, control, **_):
            if 1 <= self.done < warm:
                self.use(trials[self.done - 1])
            elif self.done == warm:
                best = min(self.times, key=self.times.get) if trials else (None, "dynamic")
                self.use(best)
                say(chosen=", ".join(filter(None, [best[0], f"{best[1]} cache"])))
                forget_peak()
                say(ready=True)
            if self.done >= warm and not sys.stdin.readline():
                os._exit(0)
            self.start = time.perf_counter()

        def on_step_end(self, config, state, control, **_):
            seconds = time.perf_counter() - self.start
            if 1 <= self.done < warm:
                self.times[trials[self.done - 1]] = seconds
                say(progress=f"{trials[self.done - 1]}: {seconds:.3f} s")
            elif self.done >= warm:
                say(seconds=seconds, tokens=seen["tokens"], peak=status_bytes("VmHWM"))
            self.done += 1

    steps = warm + args.rounds
    config = GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, fp16=False, beta=0.0, learning_rate=1e-6, loss_type="grpo",
        per_device_train_batch_size=sequences, gradient_accumulation_steps=1, num_generations=sizes["group"],
        max_completion_length=sizes["max_new"], temperature=1.0, top_k=0, top_p=1.0, max_steps=steps,
        gradient_checkpointing=False, lr_scheduler_type="constant", optim="adamw_torch_fused",
        logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": [prompt() for _ in range(sizes["prompts"] * steps)]})
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Steps()],
        peft_config=lora() if args.shape == "lora" else None,
    )
    trainer.train()


def worker(args):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    kind, _, variant = args.worker.partition("-")
    if kind == "grpo":
        import trl  # noqa: F401
    libraries = ["torch", "transformers"] + (["trl"] if kind == "grpo" else [])
    versions = [f"{name} {importlib.metadata.version(name)}" for name in libraries]
    say(progress=", ".join(versions), start=status_bytes("VmRSS"))
    sizes = sizes_of(args, kind)
    if kind == "train":
        worker_train(args, sizes, variant == "compile")
    elif kind == "generate":
        worker_generate(args, sizes)
    else:
        with tempfile.TemporaryDirectory() as folder:
            worker_grpo(args, sizes, folder)


# ---------------------------------------------------------------- the parent: turns, medians, the table


class Failed(Exception):
    pass


class Opponent:
    """A worker process: set up once, measured when asked, asleep in between."""

    def __init__(self, args, kind, shape, log):
        self.name, self.chosen, self.start, self.times, self.rates, self.peak = kind, "", 0, [], [], 0
        self.log = open(Path(args.logs) / f"{shape}-{kind}.log", "w")
        self.say = log
        command = [
            args.python, __file__, "--worker", kind, "--shape", shape, "--threads", str(args.threads),
            "--rounds", str(args.rounds), "--compile-mode", args.compile_mode,
        ]  # fmt: skip
        command += ["--quick"] * args.quick + ["--thorough"] * args.thorough
        command += ["--prompt-len", str(args.prompt_len)] if args.prompt_len else []
        command += ["--model", args.model] if args.model else []
        threads = str(args.threads)
        # Waiting threads sleep, as what measures meanwhile needs the cores.
        env = os.environ | {
            "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TRL_EXPERIMENTAL_SILENCE": "1",
            # Compiling workers would live on beside what is measured.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env
        )
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        try:
            self.until("ready", args.timeout)
        except BaseException:
            self.close()
            raise
        log(f"{self.name}: ready ({self.chosen})")

    def read(self):
        for line in self.process.stdout:
            if line.startswith(MARK):
                self.lines.put(json.loads(line[len(MARK) :]))
            else:
                self.log.write(line)
        self.lines.put(None)

    def until(self, key, timeout):
        end = time.monotonic() + timeout
        while True:
            try:
                message = self.lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise Failed(f"{self.name}: nothing within {timeout} s, see {self.log.name}") from None
            if message is None:
                raise Failed(f"{self.name}: ended, see {self.log.name}")
            self.chosen = message.get("chosen", self.chosen)
            self.start = message.get("start", self.start)
            if "progress" in message:
                self.say(f"  {self.name}: {message['progress']}")
            if key in message:
                return message

    def measure(self, timeout):
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except OSError:
            raise Failed(f"{self.name}: ended, see {self.log.name}") from None
        m = self.until("seconds", timeout)
        self.times.append(m["seconds"])
        self.rates.append(m["tokens"] / m["seconds"])
        self.peak = max(self.peak, m["peak"])

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Ours:
    """Our binary, started anew for every measurement."""

    def __init__(self, args, kind, shape):
        sizes = sizes_of(args, kind) | ({"steps": 2} if kind == "grpo" and not args.quick else {})
        options = [x for k, v in sizes.items() for x in ("--" + k.replace("_", "-"), str(v))]
        source = ["--model", args.model] if args.model else ["--config", str(HERE / f"{shape}.json")]
        source += ["--lora", str(RANK)] if shape == "lora" else []
        self.command = [args.binary, "bench", kind, *source, "--threads", str(args.threads), "--device", "cpu",
                        "--json", *options]
        self.times, self.rates, self.peak = [], [], 0

    def measure(self, timeout):
        try:
            done = subprocess.run(self.command, capture_output=True, text=True, timeout=timeout)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise Failed(f"ours: {e}") from None
        if done.returncode:
            raise Failed(f"ours: {' '.join(self.command)}: {done.stderr.strip()[-300:]}")
        m = json.loads(done.stdout)
        self.times.append(m["seconds_per_step"])
        self.rates.append(m["tokens_per_second"])
        self.peak = max(self.peak, m["peak_memory_bytes"])


def pairs_of(args, kind, shape, log):
    """Runs one kind of measurement on one shape; returns the (opponent, ours) pairs, and what failed."""
    names = [f"train-{v}" for v in args.torch] if kind == "train" else [kind]
    pairs, failed = [], []
    try:
        for name in names:
            try:
                pairs.append((Opponent(args, name, shape, log), Ours(args, kind, shape)))
            except Failed as e:
                failed.append(f"{shape} {e}")
                log(f"FAILED {e}")
        for turn in range(args.rounds):
            for pair in list(pairs):
                try:
                    for side in pair:
                        side.measure(args.timeout)
                except Failed as e:
                    failed.append(f"{shape} {e}")
                    log(f"FAILED {e}")
                    pairs.remove(pair)
                    pair[0].close()
                    continue
                theirs, ours = pair
                ratio = ours.rates[-1] / theirs.rates[-1]
                log(f"round {turn + 1}: {theirs.name} {theirs.times[-1]:.3f} s, ours {ours.times[-1]:.3f} s, ratio {ratio:.2f}")
    finally:
        for theirs, _ in pairs:
            theirs.close()
    return pairs, failed


def row(kind, shape, theirs, ours):
    a, b = statistics.median(theirs.rates), statistics.median(ours.rates)
    ratios = [y / x for x, y in zip(theirs.rates, ours.rates)]
    return {
        "measured": kind, "shape": shape, "opponent": theirs.name, "settings": theirs.chosen,
        "opponent_seconds": statistics.median(theirs.times), "seconds": statistics.median(ours.times),
        "opponent_tokens_per_second": a, "tokens_per_second": b,
        "ratio": b / a, "ratio_low": min(ratios), "ratio_high": max(ratios),
        "opponent_peak_bytes": theirs.peak, "opponent_bytes_after_import": theirs.start, "peak_bytes": ours.peak,
        "rounds": len(ratios),
    }  # fmt: skip


TITLES = {"train-eager": "PyTorch eager", "train-compile": "torch.compile", "generate": "transformers generate", "grpo": "TRL GRPO"}


def table(rows):
    head = ["shape", "opponent", "its settings", "its s", "our s", "its tok/s", "our tok/s", "times faster", "(rounds)", "its MiB", "(bare)", "our MiB", "memory"]
    body = [
        [
            r["shape"], TITLES[r["opponent"]], r["settings"], f"{r['opponent_seconds']:.3f}", f"{r['seconds']:.3f}",
            f"{r['opponent_tokens_per_second']:,.0f}", f"{r['tokens_per_second']:,.0f}", f"{r['ratio']:.2f}",
            f"{r['ratio_low']:.2f}-{r['ratio_high']:.2f}", f"{r['opponent_peak_bytes'] / 2**20:,.0f}",
            f"{r['opponent_bytes_after_import'] / 2**20:,.0f}", f"{r['peak_bytes'] / 2**20:,.0f}",
            f"{r['peak_bytes'] / max(1, r['opponent_peak_bytes']):.2f}",
        ]
        for r in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    show = lambda line: "| " + " | ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))) + " |"
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([show(head), rule, *map(show, body)])


def main():
    def subset(allowed):
        def parse(text):
            chosen = text.split(",")
            unknown = [c for c in chosen if c not in allowed]
            if unknown:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(allowed)}")
            return [a for a in allowed if a in chosen]

        return parse

    parser = argparse.ArgumentParser(description="Shoestring beside PyTorch, transformers and TRL on the CPU.")
    parser.add_argument("--only", type=subset(KINDS), default=list(KINDS), help="train,generate,grpo")
    parser.add_argument("--shape", type=subset(SHAPES), help="dense,moe; with --model model,lora (default: both)")
    parser.add_argument("--model", help="a Hugging Face folder whose weights are taken in place of the shapes of this folder")
    parser.add_argument("--torch", type=subset(("eager", "compile")), default=["eager", "compile"], help="for train: eager,compile")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for both sides (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: see that all runs, the figures mean nothing")
    parser.add_argument("--thorough", action="store_true", help="let the opponents try slow-to-try settings too (minutes more)")
    parser.add_argument("--prompt-len", type=int, help="tokens per prompt when generating (default: 64)")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's mode")
    parser.add_argument("--binary", default=str(HERE.parent / "target/release/shoestring"))
    parser.add_argument("--python", default=sys.executable, help="a Python that has the opponents (default: this one)")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--logs", help="folder for the opponents' output (default: a new one)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that one wait may take")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rounds = max(1, args.rounds)
    args.shape = args.shape or (["model", "lora"] if args.model else ["dense", "moe"])
    if any((shape in ("model", "lora")) != bool(args.model) for shape in args.shape):
        parser.error("--model has the shapes model and lora, and nothing else has them")
    if args.worker:
        args.shape = args.shape[0]
        return worker(args)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no worker is left behind
    begin = time.monotonic()
    log = lambda text: print(f"[{time.monotonic() - begin:5.0f} s] {text}", flush=True)
    if not os.access(args.binary, os.X_OK):
        sys.exit(f"{args.binary} is not there: cargo build --release, or --binary")
    args.logs = args.logs or tempfile.mkdtemp(prefix="shoestring-bench-")
    os.makedirs(args.logs, exist_ok=True)
    load = os.getloadavg()[0]
    log(f"{args.threads} threads, load {load:.1f}, opponents' output in {args.logs}")
    if load > 0.5:
        log("the machine is busy with other work: read ratios, not seconds, and mind their range")
    rows, failed = [], []
    for kind in args.only:
        for shape in args.shape:
            log(f"== {kind}, {shape}")
            pairs, bad = pairs_of(args, kind, shape, log)
            rows += [row(kind, shape, *p) for p in pairs]
            failed += bad
    print("\n" + table(rows) if rows else "nothing was measured")
    print(f"\n{args.rounds} rounds, {args.threads} threads, load {load:.1f} before and {os.getloadavg()[0]:.1f} after, {time.monotonic() - begin:.0f} s.")
    print("s: per step (train, grpo) or for the whole batch (generate). bare: the opponent's process after its imports.")
    if args.quick:
        print("QUICK: tiny sizes, these figures mean nothing.")
    for f in failed:
        print("FAILED", f)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rounds": args.rounds, "quick": args.quick, "rows": rows, "failed": failed}, indent=1) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
