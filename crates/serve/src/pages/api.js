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

/** The key that the chat page was given. */
export function kept() {
  try {
    return sessionStorage.getItem("key") ?? "";
  } catch {
    return "";
  }
}

async function ask(path, more = {}) {
  const response = await fetch(path, { headers: headers(kept()), ...more });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** What lies at an address of the studio. */
export const get = (path) => ask(path);

/** Asks the studio to do something. */
export const post = (path, body) => ask(path, { method: "POST", body: JSON.stringify(body ?? {}) });

/** Hands the studio a file. */
export const put = (path, file) => ask(path, { method: "PUT", body: file });

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

/** Asks for an answer; calls `on` with what grows: {reasoning}, {text}, {finish}, {usage}, {votes}. */
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
    for (const { delta, finish_reason, votes } of chunk.choices) {
      if (votes) on({ votes });
      const reasoning = delta.reasoning_content ?? delta.reasoning;
      if (reasoning) on({ reasoning });
      if (delta.content) on({ text: delta.content });
      if (delta.refusal) on({ text: delta.refusal });
      if (finish_reason) on({ finish: finish_reason });
    }
  }
  throw new Error("the connection ended before the answer did");
}
