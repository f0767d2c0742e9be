// A conversation: asked, streamed, stopped, edited, asked again.

import * as api from "./api.js";
import { fill, make } from "./render.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["system", "temperature", "top_p", "top_k", "min_p", "max_completion_tokens", "seed"];
const NUMBERS = SETTINGS.slice(1);

const state = {
  // {role, content, reasoning, note, error}
  turns: load("turns", []),
  running: null,
};

function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function save() {
  try {
    localStorage.setItem("turns", JSON.stringify(state.turns));
    const settings = Object.fromEntries(SETTINGS.map((id) => [id, $(id).value]));
    localStorage.setItem("settings", JSON.stringify({ ...settings, single: $("single").checked, model: $("model").value }));
  } catch {
    // A full or forbidden store: the conversation lives as long as the page.
  }
  try {
    sessionStorage.setItem("key", $("key").value);
  } catch {
    // Likewise.
  }
}

function status(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function draw() {
  const log = $("log");
  log.querySelectorAll("article").forEach((a) => a.remove());
  $("empty").hidden = state.turns.length > 0;
  state.turns.forEach((turn, i) => log.append(article(turn, i)));
  log.scrollTop = log.scrollHeight;
}

function article(turn, index) {
  const mine = turn.role === "user";
  const text = make("div", { class: "text" });
  fill(text, turn.content);
  const whole = make("article", { class: turn.role }, make("h2", {}, mine ? "You" : turn.model ?? "Model"));
  if (turn.reasoning) whole.append(thought(turn));
  whole.append(text);
  if (turn.error) whole.append(make("p", { class: "error" }, turn.error));
  if (state.running?.turn !== turn) whole.append(tools(turn, index, whole));
  return whole;
}

function thought(turn) {
  const inside = make("div", { class: "text" });
  fill(inside, turn.reasoning);
  const open = state.running?.turn === turn && !turn.content;
  const details = make("details", {}, make("summary", {}, open ? "Thinking …" : "Thinking"), inside);
  details.addEventListener("toggle", () => { turn.unfolded = details.open; });
  details.open = Boolean(turn.unfolded);
  return details;
}

function tools(turn, index, whole) {
  const bar = make("div", { class: "tools" });
  const button = (name, act) => bar.append(make("button", { type: "button", onclick: act }, name));
  button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(turn.content);
      status("Copied.");
    } catch {
      status("The browser does not let this page copy.", true);
    }
  });
  if (turn.role === "user") button("Edit", () => edit(turn, index, whole));
  else if (index === state.turns.length - 1) button("Regenerate", () => regenerate(index));
  if (turn.note) bar.append(make("span", {}, turn.note));
  return bar;
}

function edit(turn, index, whole) {
  if (state.running) return;
  const field = make("textarea", { class: "edit", rows: "3", "aria-label": "Edit the message" });
  field.value = turn.content;
  const send = () => {
    if (!field.value.trim()) return;
    state.turns.length = index;
    ask(field.value);
  };
  field.addEventListener("keydown", (e) => {
    if (e.key === "Escape") draw();
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
      e.preventDefault();
      send();
    }
  });
  const bar = make("div", { class: "tools" },
    make("button", { type: "button", onclick: send }, "Send again"),
    make("button", { type: "button", onclick: draw }, "Cancel"));
  whole.replaceChildren(field, bar);
  field.focus();
}

function regenerate(index) {
  if (state.running) return;
  state.turns.length = index;
  answer();
}

function ask(text) {
  state.turns.push({ role: "user", content: text });
  answer();
}

/** The request for the next answer. */
function request() {
  const turns = $("single").checked ? state.turns.slice(-1) : state.turns;
  const messages = turns.filter((t) => t.content || t.role === "user").map(({ role, content }) => ({ role, content }));
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const body = { model: $("model").value, messages };
  for (const name of NUMBERS) {
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  return body;
}

async function answer() {
  const body = request();
  const turn = { role: "assistant", content: "", reasoning: "", model: body.model };
  const abort = new AbortController();
  state.turns.push(turn);
  state.running = { turn, abort };
  $("send").hidden = true;
  $("stop").hidden = false;
  status("Waiting for the model …");
  draw();
  const begun = performance.now();
  let first = 0;
  let finish = "";
  let usage = null;
  try {
    await api.chat(body, $("key").value, abort.signal, (news) => {
      if (news.usage) usage = news.usage;
      if (news.finish) finish = news.finish;
      if (!news.text && !news.reasoning) return;
      first ||= performance.now();
      turn.content += news.text ?? "";
      turn.reasoning += news.reasoning ?? "";
      status(turn.content ? "Answering …" : "Thinking …");
      redraw(turn);
    });
    if (finish === "length") turn.error = "Cut off: it has all the tokens that it may have.";
  } catch (error) {
    if (abort.signal.aborted) turn.note = "stopped";
    else turn.error = error.message;
    if (error.status === 401) $("settings").showModal();
  }
  if (usage) {
    const seconds = (performance.now() - begun) / 1000;
    const rate = Math.round(usage.completion_tokens / seconds);
    const wait = `${((first - begun) / 1000).toFixed(2)} s to the first`;
    turn.note = `${usage.completion_tokens} tokens, ${wait}, ${rate} tokens/s`;
  }
  state.running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  status("");
  save();
  draw();
  $("input").focus();
}

/** Redraws the turn that grows, once a frame. */
function redraw(turn) {
  if (state.drawing) return;
  state.drawing = true;
  requestAnimationFrame(() => {
    state.drawing = false;
    if (state.running?.turn !== turn) return;
    const log = $("log");
    const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    log.lastElementChild.replaceWith(article(turn, state.turns.length - 1));
    if (follow) log.scrollTop = log.scrollHeight;
  });
}

function send() {
  const text = $("input").value;
  if (!text.trim() || state.running) return;
  $("input").value = "";
  grow();
  ask(text);
}

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

async function begin() {
  const settings = load("settings", {});
  for (const id of SETTINGS) $(id).value = settings[id] ?? "";
  $("single").checked = Boolean(settings.single);
  $("key").value = sessionStorage.getItem("key") ?? "";
  await listModels(settings.model);
  draw();
}

async function listModels(wanted) {
  try {
    const list = await api.models($("key").value);
    $("model").replaceChildren(...list.map((m) => make("option", { value: m.id }, m.id)));
    if (list.some((m) => m.id === wanted)) $("model").value = wanted;
    status("");
  } catch (error) {
    status(error.message, true);
    if (error.status === 401 && !$("settings").open) $("settings").showModal();
  }
}

$("composer").addEventListener("submit", (e) => {
  e.preventDefault();
  send();
});
$("input").addEventListener("input", grow);
$("input").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    send();
  }
});
$("stop").addEventListener("click", () => state.running?.abort.abort());
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape" && state.running && !$("settings").open) state.running.abort.abort();
});
$("fresh").addEventListener("click", () => {
  state.running?.abort.abort();
  state.turns = [];
  save();
  draw();
  $("input").focus();
});
$("settings-open").addEventListener("click", () => $("settings").showModal());
$("settings").addEventListener("close", () => {
  save();
  if (!$("model").value) listModels();
});
$("model").addEventListener("change", save);
begin();
