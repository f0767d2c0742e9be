"""Many streams at once: `load.py URL MODEL [STREAMS [MINUTES PROCESS]]`.

Every tenth client goes away in the midst of its answer, every tenth reads slowly; all others must get to the end, and every
greedy text must be that of the same question asked alone. With MINUTES each client asks anew for as long, and what the server with the
number PROCESS holds of memory must not grow after the first third. Standard library alone.
"""

import asyncio
import json
import random
import sys
import time

url, model = sys.argv[1:3]
streams = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
minutes = float(sys.argv[4]) if len(sys.argv) > 4 else 0
process = sys.argv[5] if len(sys.argv) > 5 else None
host, port = url.removeprefix("http://").rstrip("/").split(":")
QUESTIONS = [f"Compute {a} {op} {b}." for a in range(1, 9) for b in range(1, 6) for op in "+-"]


async def ask(question, tokens=60, leave_after=None, pause=0.0):
    """The text, the seconds to the first token, and whether the end came."""
    body = json.dumps({
        "model": model, "stream": True, "temperature": 0, "max_completion_tokens": tokens,
        "messages": [{"role": "user", "content": question}],
    }).encode()
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    text, first, done, events = "", None, False, 0
    try:
        while line := await reader.readline():
            line = line.decode().strip()
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            delta = chunk["choices"][0]["delta"]
            first = first or time.monotonic() - begun
            text += delta.get("reasoning_content", "") + delta.get("content", "")
            events += 1
            if leave_after is not None and events >= leave_after:
                return text, first, None
            if pause:
                await asyncio.sleep(pause)
    finally:
        writer.close()
    return text, first, done


def megabytes():
    """What the server holds of memory."""
    with open(f"/proc/{process}/status") as status:
        return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmRSS"))


async def client(number, begun, alone, firsts):
    """One that stays, leaves or dawdles: how many of its streams ended, and how many it left."""
    draw = random.Random(number)
    leave, pause = (3, 0) if number % 10 == 0 else (None, 0.05) if number % 10 == 1 else (None, 0)
    await asyncio.sleep(number * 0.0005)
    ended = left = 0
    while True:
        question = draw.choice(QUESTIONS)
        text, first, done = await ask(question, leave_after=leave, pause=pause)
        firsts.append(first)
        if leave is None:
            assert done, f"{question}: the stream was lost"
            assert text == alone[question], f"{question}: {text!r}, alone {alone[question]!r}"
            ended += 1
        else:
            left += 1
        if time.monotonic() - begun > 60 * minutes:
            return ended, left


async def watch(begun, memory):
    """Takes note of the server's memory: the second, and megabytes."""
    while True:
        memory.append((time.monotonic() - begun, megabytes()))
        await asyncio.sleep(1)


async def main():
    alone = {q: (await ask(q))[0] for q in QUESTIONS}
    begun = time.monotonic()
    firsts, memory = [], []
    watching = asyncio.create_task(watch(begun, memory)) if process else None
    counts = await asyncio.gather(*(client(i, begun, alone, firsts) for i in range(streams)))
    ended, left = (sum(c) for c in zip(*counts))
    seconds = time.monotonic() - begun
    firsts = sorted(f for f in firsts if f is not None)
    print(f"{ended + left} streams, {streams} at once, in {seconds:.1f} s: {ended} ended, each with the text of its solo run, {left} went away; "
          f"first token after {firsts[len(firsts) // 2]:.2f} s in the middle, {firsts[-1]:.2f} s at most")
    if watching:
        watching.cancel()
        early = max(mb for at, mb in memory if at <= seconds / 3)
        late = max(mb for at, mb in memory if at > seconds / 3)
        by_minute = [max(mb for at, mb in memory if int(at // 60) == m) for m in range(int(memory[-1][0] // 60) + 1)]
        print("memory by minutes, MB:", " ".join(f"{mb:.0f}" for mb in by_minute))
        assert late <= 1.05 * early, f"memory grew from {early:.0f} to {late:.0f} MB after the first third"


asyncio.run(main())
