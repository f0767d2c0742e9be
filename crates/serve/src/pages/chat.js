// A conversation: asked, streamed, stopped, edited, asked again.

import * as api from "./api.js";
import { nav } from "./nav.js";
import { fill, make } from "./render.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["system", "temperature", "top_p", "top_k", "min_p", "max_completion_tokens", "seed", "votes", "min_agreement"];
const NUMBERS = SETTINGS.slice(1);

const state = {
  // {role: "user", content} and {role: "assistant", answers: [{model, content, reasoning, note, error}]}
  turns: load("turns", []).filter((t) => t.role === "user" || Array.isArray(t.answers)),
  running: null,
  // As the server lists them.
  models: [],
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
    localStorage.setItem("settings", JSON.stringify({ ...settings, single: $("single").checked, model: $("model").value, beside: $("beside").value }));
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
  examples();
  state.turns.forEach((turn, i) => log.append(article(turn, i)));
  log.scrollTop = log.scrollHeight;
}

/** Questions of the kind that the chosen model was made for, to begin with. */
function examples() {
  const found = state.models.find((m) => m.id === $("model").value)?.examples ?? [];
  $("examples").replaceChildren(...found.map((text) => button(text, () => state.running || ask(text))));
  $("examples").hidden = found.length === 0;
}

function article(turn, index) {
  const whole = make("article", { class: turn.role });
  if (turn.role === "user") {
    const text = make("div", { class: "text" });
    fill(text, turn.content);
    const buttons = [button("Copy", () => copy(turn.content)), button("Edit", () => edit(turn, index, whole))];
    whole.append(make("h2", {}, "You"), text, make("div", { class: "tools" }, ...buttons));
    return whole;
  }
  const columns = turn.answers.map((answer) => column(answer, turn));
  whole.append(make("div", { class: columns.length > 1 ? "pair" : "one" }, ...columns));
  if (state.running?.turn !== turn && index === state.turns.length - 1) {
    whole.append(make("div", { class: "tools" }, button("Regenerate", () => regenerate(index))));
  }
  return whole;
}

/** One model's answer. */
function column(answer, turn) {
  const text = make("div", { class: "text" });
  fill(text, answer.content);
  const whole = make("div", {}, make("h2", {}, answer.model || "Model"));
  const running = state.running?.turn === turn;
  if (answer.reasoning) whole.append(thought(answer, running && !answer.content));
  whole.append(text);
  if (answer.votes) whole.append(make("p", { class: "votes" }, answer.votes));
  if (answer.error) whole.append(make("p", { class: "error" }, answer.error));
  if (!running) {
    const note = answer.note ? [make("span", {}, answer.note)] : [];
    whole.append(make("div", { class: "tools" }, button("Copy", () => copy(answer.content)), ...note));
  }
  return whole;
}

function thought(answer, open) {
  const inside = make("div", { class: "text" });
  fill(inside, answer.reasoning);
  const details = make("details", {}, make("summary", {}, open ? "Thinking …" : "Thinking"), inside);
  details.addEventListener("toggle", () => { answer.unfolded = details.open; });
  details.open = Boolean(answer.unfolded);
  return details;
}

function button(name, act) {
  return make("button", { type: "button", onclick: act }, name);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    status("Copied.");
  } catch {
    status("The browser does not let this page copy.", true);
  }
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

/** What a model said in a turn of the conversation. */
function said(turn, model) {
  if (turn.role === "user") return turn.content;
  return (turn.answers.find((a) => a.model === model) ?? turn.answers[0]).content;
}

/** The request for a model's next answer. */
function request(model) {
  const before = state.turns.slice(0, -1);
  const turns = $("single").checked ? before.slice(-1) : before;
  const messages = turns.map((t) => ({ role: t.role, content: said(t, model) })).filter((m) => m.content);
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const body = { model, messages };
  for (const name of NUMBERS) {
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  if (!body.votes) delete body.min_agreement;
  return body;
}

/** Asks the model, and the one beside it. */
async function answer() {
  const models = [...new Set([$("model").value, $("beside").value])].filter(Boolean);
  const turn = { role: "assistant", answers: models.map((model) => ({ model, content: "", reasoning: "" })) };
  const abort = new AbortController();
  state.turns.push(turn);
  state.running = { turn, abort };
  $("send").hidden = true;
  $("stop").hidden = false;
  status("Waiting for the model …");
  draw();
  await Promise.all(turn.answers.map((one) => follow(one, turn, abort.signal)));
  state.running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  status("");
  save();
  draw();
  $("input").focus();
}

/** Follows one model's answer to its end. */
async function follow(one, turn, signal) {
  const begun = performance.now();
  let first = 0;
  let usage = null;
  try {
    await api.chat(request(one.model), $("key").value, signal, (news) => {
      if (news.usage) usage = news.usage;
      if (news.votes) one.votes = agreement(news.votes);
      if (news.finish === "length") one.error = "Cut off: it has all the tokens that it may have.";
      if (!news.text && !news.reasoning) return;
      first ||= performance.now();
      one.content += news.text ?? "";
      one.reasoning += news.reasoning ?? "";
      status(one.content ? "Answering …" : "Thinking …");
      redraw(turn);
    });
  } catch (error) {
    if (signal.aborted) one.note = "stopped";
    else one.error = error.message;
    if (error.status === 401) $("settings").showModal();
  }
  if (usage) {
    const seconds = (performance.now() - begun) / 1000;
    const rate = Math.round(usage.completion_tokens / seconds);
    one.note = `${usage.completion_tokens} tokens, ${((first - begun) / 1000).toFixed(2)} s to the first, ${rate} tokens/s`;
  }
}

/** How far the samples of a vote agree. */
function agreement({ samples, answered, agreement, abstained }) {
  const same = Math.round(agreement * samples);
  const silent = answered < samples ? `, ${samples - answered} came to no answer` : "";
  return `${abstained ? "No answer: " : ""}${same} of ${samples} agree (${Math.round(100 * agreement)} %)${silent}`;
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
  nav();
  const settings = load("settings", {});
  // A link may name the models to talk to, and nothing else.
  const named = new URLSearchParams(location.search);
  for (const id of ["model", "beside"]) settings[id] = named.get(id) ?? settings[id];
  for (const id of SETTINGS) $(id).value = settings[id] ?? "";
  $("single").checked = Boolean(settings.single);
  $("key").value = sessionStorage.getItem("key") ?? "";
  await listModels(settings.model, settings.beside);
  draw();
}

async function listModels(wanted, beside) {
  try {
    const list = await api.models($("key").value);
    state.models = list;
    $("model").replaceChildren(...list.map((m) => make("option", { value: m.id }, m.id)));
    $("beside").replaceChildren(make("option", { value: "" }, "none"), ...list.map((m) => make("option", { value: m.id }, m.id)));
    $("beside-label").hidden = list.length < 2;
    if (list.some((m) => m.id === wanted)) $("model").value = wanted;
    if (list.some((m) => m.id === beside)) $("beside").value = beside;
    examples();
    status(list.length ? "" : "No model is served here.", list.length === 0);
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
// What a run has made meanwhile can be talked to.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !state.running) listModels($("model").value, $("beside").value);
});
$("model").addEventListener("change", () => {
  save();
  examples();
});
$("beside").addEventListener("change", save);
begin();
