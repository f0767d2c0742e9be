// The server's interface, as this page uses it.

import { make } from "./render.js";

const KEY = "key";
// `asked` is the question for a key that is open now; `declined`: nobody wants to be asked again.
const state = { key: "", asked: null, declined: false };

/** The key that was given in this tab. */
function kept() {
  try {
    return sessionStorage.getItem(KEY) ?? state.key;
  } catch {
    return state.key;
  }
}

function keep(key) {
  state.key = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // The key lives as long as the page.
  }
}

function headers(key) {
  const all = { "content-type": "application/json" };
  if (key) all.authorization = `Bearer ${key}`;
  return all;
}

/** Asks for a key, once for all who need one; says whether one was given. */
function newKey(before) {
  if (state.declined) return false;
  state.asked ??= new Promise((done) => {
    const field = make("input", { type: "password", autocomplete: "off", required: "" });
    const form = make("form", { method: "dialog" },
      make("h2", { id: "key-title" }, before ? "The server does not know that key" : "This server asks for a key"),
      make("label", {}, "API key ", field),
      make("p", { class: "row" }, make("span", { class: "space" }), make("button", { type: "submit" }, "Go on")));
    const dialog = make("dialog", { id: "key", "aria-labelledby": "key-title" }, form);
    dialog.addEventListener("close", () => {
      state.asked = null;
      state.declined = !field.value;
      if (field.value) keep(field.value);
      dialog.remove();
      done(Boolean(field.value));
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return state.asked;
}

/** A response that is none of an error; where a key is needed, it is asked for. */
async function reach(path, options) {
  for (;;) {
    const key = kept();
    const response = await fetch(path, { ...options, headers: headers(key) });
    if (response.ok) return response;
    const error = await failure(response);
    if (error.status !== 401) throw error;
    error.message = "The server asks for a key: reload the page to give one.";
    if (key === kept() && !(await newKey(key))) throw error;
  }
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
export async function models() {
  return (await ask("/v1/models")).data;
}

async function ask(path, more = {}) {
  return (await reach(path, more)).json();
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

/** Asks for an answer; calls `on` with what grows: {reasoning}, {text}, {answer}, {finish}, {usage}, {votes}. */
export async function chat(body, signal, on) {
  const request = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await reach("/v1/chat/completions", { method: "POST", body: JSON.stringify(request), signal });
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
      if (delta.answer) on({ answer: delta.answer });
      if (delta.refusal) on({ text: delta.refusal });
      if (finish_reason) on({ finish: finish_reason });
    }
  }
  throw new Error("the connection ended before the answer did");
}
