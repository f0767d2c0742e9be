"""Many streams at once: `load.py URL MODEL [STREAMS]`.

Every tenth client goes away in the midst of its answer, every tenth reads slowly; all others must get to the end, and every
greedy text must be that of the same question asked alone. Standard library alone.
"""

import asyncio
import json
import random
import sys
import time

url, model = sys.argv[1:3]
streams = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
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


async def main():
    alone = {q: (await ask(q))[0] for q in QUESTIONS}
    draw = random.Random(1)
    begun = time.monotonic()
    jobs = []
    for i in range(streams):
        question = draw.choice(QUESTIONS)
        kind = i % 10
        leave, pause = (3, 0) if kind == 0 else (None, 0.05) if kind == 1 else (None, 0)
        jobs.append((question, leave, asyncio.create_task(ask(question, leave_after=leave, pause=pause))))
        if i % 100 == 99:
            await asyncio.sleep(0.05)
    firsts, ended, left = [], 0, 0
    for question, leave, job in jobs:
        text, first, done = await job
        firsts.append(first)
        if leave is None:
            assert done, f"{question}: the stream was lost"
            assert text == alone[question], f"{question}: {text!r}, alone {alone[question]!r}"
            ended += 1
        else:
            left += 1
    firsts = sorted(f for f in firsts if f is not None)
    seconds = time.monotonic() - begun
    print(f"{streams} streams in {seconds:.1f} s: {ended} ended, each with the text of its solo run, {left} went away; "
          f"first token after {firsts[len(firsts) // 2]:.2f} s in the middle, {firsts[-1]:.2f} s at most")


asyncio.run(main())
