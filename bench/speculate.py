"""What guessing ahead gains: `speculate.py SHOESTRING MODEL PROMPTS [ROUNDS] [GUESSES…]`. PROMPTS is a file with a question a line.

Servers with `--speculate` N, one for each of GUESSES (0 1 2 4), are asked the same questions one after another, by turns: greedily, and at
temperature 1 with the same seeds. The texts must be equal. Told are the tokens a second, and of the guesses the share that came, those of
the MTP layer and those looked up in the text apart. Standard library alone.
"""

import json
import statistics
import subprocess
import sys
import time
import urllib.request

shoestring, model, prompts = sys.argv[1:4]
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
guesses = [int(n) for n in sys.argv[5:]] or [0, 1, 2, 4]
questions = open(prompts).read().split("\n")
questions = [q for q in questions if q]


def get(port, path, body=None):
    data = body and json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data), timeout=600) as response:
        return response.read().decode()


def metrics(port):
    """Guessed and come, of all and of the MTP layer."""
    time.sleep(0.2)  # The lane tells how it stands a moment later.
    lines = dict(line.rsplit(" ", 1) for line in get(port, "/metrics").splitlines() if line[0] != "#")
    count = lambda kind, right: int(lines[f'shoestring_{kind}guessed{right}_tokens_total{{model="m"}}'])
    by_mtp = [count("mtp_", right) for right in ("", "_right")]
    return by_mtp + [count("", right) - mtp for right, mtp in zip(("", "_right"), by_mtp)]


def answers(port, temperature):
    """Texts and tokens a second."""
    texts, tokens, begun = [], 0, time.monotonic()
    for seed, question in enumerate(questions):
        body = {"messages": [{"role": "user", "content": question}], "temperature": temperature, "seed": seed, "max_tokens": 160}
        got = json.loads(get(port, "/v1/chat/completions", body))
        message = got["choices"][0]["message"]
        texts.append((message.get("reasoning_content"), message["content"]))
        tokens += got["usage"]["completion_tokens"]
    return texts, tokens / (time.monotonic() - begun)


servers = []
try:
    for i, n in enumerate(guesses):
        command = [shoestring, "serve", f"m={model}", "--port", str(8741 + i), "--quiet", "--speculate", str(n)]
        servers.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        servers[-1].stdout.readline()
    for temperature in (0, 1):
        usual, speeds, came = None, {n: [] for n in guesses}, {}
        for _ in range(rounds):
            for i, n in enumerate(guesses):
                before = metrics(8741 + i)
                texts, speed = answers(8741 + i, temperature)
                usual = usual or texts
                assert texts == usual, f"--speculate {n} changes a text"
                speeds[n].append(speed)
                came[n] = [b - a for a, b in zip(before, metrics(8741 + i))]
        for n in guesses:
            share = lambda guessed, right: f"{right} of {guessed} came ({100 * right / guessed:.0f} %)" if guessed else "none"
            ratios = [a / b for a, b in zip(speeds[n], speeds[guesses[0]])]
            print(f"temperature {temperature}, --speculate {n}: {statistics.median(speeds[n]):.0f} tokens/s, {statistics.median(ratios):.2f} of --speculate "
                  f"{guesses[0]}'s; the MTP layer's guesses: {share(*came[n][:2])}; looked up: {share(*came[n][2:])}", flush=True)
finally:
    for server in servers:
        server.terminate()
