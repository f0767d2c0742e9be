// The server's interface, as this page uses it.

function headers(key) {
  const all = { "content-type": "application/json" };
  if (key) all.authorization = `Bearer ${key}`;
  return all;
}

async function failure(response) {
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not in the usual shape: the status says what there is to say.
  }
  const error = new Error(message);
  error.status = response.status;
  return error;
}

/** The models that can be asked: a list of {id, chat}. */
export async function models(key) {
  const response = await fetch("/v1/models", { headers: headers(key) });
  if (!response.ok) throw await failure(response);
  return (await response.json()).data;
}

/** Whether the server shows runs. */
export async function showsRuns(key) {
  const response = await fetch("/studio", { headers: headers(key) });
  return response.ok && (await response.json()).runs;
}

/** Parses server-sent events out of a stream of text; yields each event's data. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trim()).join("\n");
        if (data) yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Asks for an answer; calls `on` with what grows: {reasoning}, {text}, {finish}, {usage}. */
export async function chat(body, key, signal, on) {
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(key), body: JSON.stringify(request), signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) on({ usage: chunk.usage });
    for (const { delta, finish_reason } of chunk.choices) {
      const reasoning = delta.reasoning_content ?? delta.reasoning;
      if (reasoning) on({ reasoning });
      if (delta.content) on({ text: delta.content });
      if (finish_reason) on({ finish: finish_reason });
    }
  }
  throw new Error("the connection ended before the answer did");
}
