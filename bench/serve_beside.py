"""This server beside llama.cpp's on one GGUF file, by turns in the same minutes: `serve_beside.py SHOESTRING LLAMA_SERVER GGUF
[ROUNDS [THREADS [OPTIONS OF LLAMA_SERVER]]]`. With `-` for LLAMA_SERVER this server alone; several of this server, divided by commas, go by
turns as well.

For each of them, in every round:
- output tokens a second of 8 clients at once, 128 tokens each;
- the time to the first token in a conversation of some 2,000 tokens, at its first turn and at its second;
- the longest pause of a stream while a prompt of some 4,000 tokens comes in, against its usual gap, and the longest in the six seconds before, when
  it was alone: what the machine does to it. A stream becomes slower as it grows, whoever else is there: what is usual is taken before and after
  the prompt, and in between on the line from one to the other. How long llama.cpp's pause lasts is a matter of its batches (`-b`, `-ub`), which are
  of 2,048 and 512 tokens unless told otherwise.

All have room for 8 conversations of 8,192 tokens and sample greedily. Threads of llama.cpp wait for each other by spinning: where other
programs take a part of the machine, give both of them one thread. Standard library alone.
"""

import concurrent.futures
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time

shoestring, llama, gguf = sys.argv[1:4]
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
threads = sys.argv[5] if len(sys.argv) > 5 else "2"
COMMANDS = {}
for i, program in enumerate(shoestring.split(",")):
    COMMANDS[f"shoestring {i}" if i else "shoestring"] = [program, "--threads", threads, "serve", f"m={gguf}", "--quiet", "--context", "8192", "--cache-gib", "2"]
if llama != "-":
    COMMANDS["llama.cpp"] = [llama, "-m", gguf, "-t", threads, "-np", "8", "-c", "65536", "--temp", "0", *sys.argv[6:]]
PORTS = {name: 8731 + i for i, name in enumerate(COMMANDS)}


def stream(name, messages, tokens, stop=None):
    """The moments at which pieces of the answer came, the answer, and the usage. `stop` is a flag that ends it early."""
    connection = http.client.HTTPConnection("127.0.0.1", PORTS[name], timeout=600)
    body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": tokens, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}
    begun = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, (name, response.status, response.read())
    at, text, usage = [], "", None
    while line := response.readline():
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content")
            if piece:
                at.append(time.monotonic() - begun)
                text += piece
        if stop and stop.is_set():
            break
    connection.close()
    return begun, at, text, usage


def goods(number, most):
    """A list of so many goods that no other number has."""
    return " ".join(f"item{number * 1000 + i} costs {(i * 7 + number * 13) % 93} coins," for i in range(most))


def user(text):
    return {"role": "user", "content": text}


def eight(name, number):
    """Output tokens a second of 8 clients."""
    ask = lambda i: stream(name, [user(f"Tell me a story about the number {number * 10 + i}.")], 128)[3]["completion_tokens"]
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tokens = sum(pool.map(ask, range(8)))
    return {"tokens_per_second": tokens / (time.monotonic() - begun)}


def turns(name, number):
    """Seconds to the first token of two turns."""
    messages = [user(f"Here is a list. {goods(number, 180)} Which is the dearest?")]
    _, at, text, first = stream(name, messages, 16)
    messages += [{"role": "assistant", "content": text}, user("And the second?")]
    _, again, _, second = stream(name, messages, 16)
    return {"prompt": first["prompt_tokens"], "first_turn": at[0], "second_turn": again[0], "share": again[0] / at[0],
            "cached": (second.get("prompt_tokens_details") or {}).get("cached_tokens")}


def pause(name, number):
    """The gaps of a stream before and while another's prompt comes in."""
    stop, found = threading.Event(), {}
    teller = threading.Thread(target=lambda: found.update(zip(("begun", "at"), stream(name, [user(f"Tell a long story, number {number}.")], 4000, stop))))
    teller.start()
    time.sleep(7)
    begun, at, _, usage = stream(name, [user(f"Another list. {goods(500 + number, 360)} Which is the dearest?")], 4)
    ended = time.monotonic()
    time.sleep(2)
    stop.set()
    teller.join()
    moments = [found["begun"] + t for t in found["at"]]
    gaps = [(b, b - a) for a, b in zip(moments, moments[1:])]
    alone = [gap for moment, gap in gaps if begun - 6 < moment < begun]
    before = statistics.median(alone[len(alone) // 2:])
    after = statistics.median([gap for moment, gap in gaps if moment > ended + 0.2] or [before])
    # Up to the piece after the other's first token: a pause that lasts until then ends with it.
    until = begun + at[0] + 3 * before
    during = [gap for moment, gap in gaps if begun <= moment <= until] or [at[0]]
    times = [gap / (before + (after - before) * i / len(during)) for i, gap in enumerate(during)]
    quarter = max(1, len(times) // 4)
    return {"prompt": usage["prompt_tokens"], "usual_before": before, "usual_after": after, "longest": max(during), "times": max(times),
            "times_alone": max(alone) / statistics.median(alone),
            "times_99th": sorted(times)[int(0.99 * (len(times) - 1))], "times_middle": statistics.median(times),
            "times_first_quarter": statistics.median(times[:quarter]), "times_last_quarter": statistics.median(times[-quarter:]),
            "pieces_meanwhile": len(during), "first_token": at[0]}


def start(name):
    log = open(os.devnull, "w")
    server = subprocess.Popen([*COMMANDS[name], "--port", str(PORTS[name])], stdout=log, stderr=log)
    for _ in range(600):
        time.sleep(0.2)
        assert server.poll() is None, f"{name} has ended"
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORTS[name], timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return server
        except OSError:
            pass
    raise SystemExit(f"{name} does not answer")


servers = []
try:
    for name in COMMANDS:
        servers.append(start(name))
        stream(name, [user("What is the capital of France?")], 16)
    results = {}
    for number in range(rounds):
        for measure in (eight, turns, pause):
            # Who comes first changes with the round.
            for name in list(COMMANDS)[::1 if number % 2 == 0 else -1]:
                got = measure(name, number)
                results.setdefault((measure.__name__, name), []).append(got)
                print(json.dumps({"round": number, "server": name, "measure": measure.__name__,
                                  **{k: round(v, 4) if isinstance(v, float) else v for k, v in got.items()}}), flush=True)
    print()
    for key, measure in (("tokens_per_second", "eight"), ("first_turn", "turns"), ("second_turn", "turns"), ("share", "turns"), ("usual_before", "pause"),
                         ("usual_after", "pause"), ("longest", "pause"), ("times", "pause"), ("times_alone", "pause"), ("times_99th", "pause"), ("times_middle", "pause"),
                         ("first_token", "pause")):
        middles = [statistics.median(got[key] for got in results[measure, name]) for name in COMMANDS]
        print(f"{measure:6} {key:18}", "  ".join(f"{name} {m:.3f}" for name, m in zip(COMMANDS, middles)))
finally:
    for server in servers:
        server.terminate()
