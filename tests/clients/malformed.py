"""Requests that are wrong in five hundred ways: `malformed.py URL MODEL`. None may be answered by a 5xx or by nothing where an
answer is due, and after each hundred a plain question must still be answered. Standard library alone."""

import json
import random
import socket
import sys

url, model = sys.argv[1:]
host, port = url.removeprefix("http://").rstrip("/").split(":")
rng = random.Random(1)
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize"]


def send(data, end=True, wait=20):
    """What comes back of bytes: the status, or nothing where the connection ended without one."""
    with socket.create_connection((host, int(port)), timeout=wait) as s:
        try:
            s.sendall(data)
            if end:
                s.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        got = b""
        try:
            while b"\r\n" not in got:
                part = s.recv(65536)
                if not part:
                    break
                got += part
        except OSError:
            pass
    line = got.split(b"\r\n")[0].split(b" ")
    return int(line[1]) if len(line) > 1 and line[1].isdigit() else None


def request(path, body, headers=(), method="POST", length=None):
    length = len(body) if length is None else length
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}:{port}", "connection: close", f"content-length: {length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def good(**more):
    return {"model": model, "messages": [{"role": "user", "content": "Compute 3 + 4."}], "max_completion_tokens": 4, "max_tokens": 4,
            "prompt": "1 + 1", "input": "1 + 1", "max_output_tokens": 4, "tokens": [1], **more}


WRONG = [None, True, -1, 0, 1e308, -1e308, 1.5, 2**63, 2**64, 10**400, "", "x", "\u0000", "\ud800", "x" * 70000, [], [[]], {}, {"": ""}, [None] * 5000,
         [{"role": "user"}], [{"role": "user", "content": None}], [{"role": "nobody", "content": "x"}], {"type": "x"}, {"type": "json_schema"},
         [{"type": "function"}], ["x"] * 200, {str(i): 100 for i in range(3000)}, {"-1": 1, "x": 2, "99999999999": 3}]
FIELDS = ["model", "messages", "prompt", "input", "tokens", "max_completion_tokens", "max_tokens", "n", "stop", "seed", "temperature", "top_p", "top_k",
          "min_p", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "stream", "stream_options", "response_format", "tools", "tool_choice",
          "parallel_tool_calls", "reasoning_effort", "reasoning", "votes", "min_agreement", "system", "thinking", "text", "echo", "chat_template_kwargs",
          "repetition_penalty", "ignore_eos", "stop_sequences"]


def nested(depth, open="[", close="]"):
    return (open * depth + close * depth).encode()


def bodies():
    """Bytes, and whether an answer is due: what never becomes a whole request may be waited for."""
    text = json.dumps(good()).encode()
    while True:
        path = rng.choice(PATHS)
        kind = rng.randrange(14)
        if kind < 6:
            # json.dumps writes infinities and lone surrogates, which are no JSON and no text.
            yield request(path, json.dumps(good(**{rng.choice(FIELDS): rng.choice(WRONG)})).encode("utf-8", "surrogatepass")), True
        elif kind == 6:
            deep = rng.choice([100, 200, 10_000, 1_000_000])
            body = rng.choice([nested(deep), nested(deep, '{"a":', "1}"), json.dumps(good()).encode()[:-1] + b',"messages":' + nested(deep) + b"}"])
            yield request(path, body), True
        elif kind == 7:
            at = rng.randrange(len(text))
            yield request(path, text[:at] + bytes([rng.randrange(256)]) + text[at + 1:]), True
        elif kind == 8:
            body = json.dumps(good()).encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7"]))
            yield request(path, body), True
        elif kind == 9:
            yield request(path, text[:rng.randrange(len(text))], length=len(text)), False
        elif kind == 10:
            length = rng.choice(["-1", "x", "1, 2", "99999999999999999999999", str(2**40), "0x10", "1e3"])
            yield request(path, text, length=length), False
        elif kind == 11:
            chunks = rng.choice([b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"5\r\nab", b"5\r\nabcdefgh\r\n0\r\n\r\n", b"0\r\n"])
            head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ntransfer-encoding: chunked\r\n\r\n"
            yield head.encode() + chunks, False
        elif kind == 12:
            raw = [b"", b"\x00" * 100, b"GET", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                   b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", b"POST / HTTP/1.1\r\nhost: a\x00b\r\n\r\n",
                   b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", f"POST {path} HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 2\r\n\r\n{{}}".encode(),
                   b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", b"CONNECT example.org:80 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"]
            yield rng.choice(raw), False
        else:
            # Several on one connection, the second of them broken.
            yield request(path, text).replace(b"connection: close", b"connection: keep-alive") + request(path, b"{"), True


def canary():
    body = request("/v1/chat/completions", json.dumps(good()).encode())
    assert send(body, end=False) == 200, "a plain question is not answered any more"


canary()
statuses = {}
for number, (data, due) in zip(range(1, 501), bodies()):
    status = send(data, end=False) if due else send(data, end=rng.random() < 0.5, wait=0.5)
    statuses[status] = statuses.get(status, 0) + 1
    assert status is None or status < 500, (status, data[:2000])
    assert status is not None or not due, ("no answer", data[:2000])
    if number % 100 == 0:
        canary()

# Heads and bodies that trickle in and never end hold nobody up.
slow = []
for i in range(50):
    s = socket.create_connection((host, int(port)))
    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nx: " + b"y" * i if i % 2 else request("/v1/chat/completions", b"{", length=5000))
    slow.append(s)
for s in slow:
    s.sendall(b"z")
canary()
for s in slow:
    s.close()
print("malformed: 500 requests and 50 that never end;", ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items(), key=str)))
