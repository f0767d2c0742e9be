// A conversation: asked, streamed, stopped, edited, asked again.

import * as api from "./api.js";
import { firstSteps, nav } from "./nav.js";
import { fill, make } from "./render.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_tokens", "seed", "votes", "min_agreement"];
const SETTINGS = ["system", "reasoning_effort", "earlier", ...NUMBERS];
const PAUSE = 3000;

const state = {
  // {role: "user", content} and {role: "assistant", answers: [{model, content, answer, reasoning, note, error}]}
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
    localStorage.setItem("settings", JSON.stringify({ ...settings, model: $("model").value, beside: $("beside").value }));
  } catch {
    // A full or forbidden store: the conversation lives as long as the page.
  }
}

function status(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function draw() {
  const log = $("log");
  log.querySelectorAll("article").forEach((a) => a.remove());
  $("empty").hidden = state.turns.length > 0 || !$("none").hidden;
  examples();
  state.turns.forEach((turn, i) => log.append(article(turn, i)));
  log.scrollTop = log.scrollHeight;
}

/** Questions of the kind that a model was made for. */
const madeFor = (model) => state.models.find((m) => m.id === model)?.examples ?? [];

/** Whether a question goes to a model without the turns before it, as models of runs have learnt them. */
const alone = (model) => ($("earlier").value ? $("earlier").value === "forget" : madeFor(model).length > 0);

/** What to know before the next question. */
function hint() {
  const model = $("model").value;
  return state.turns.length && !$("earlier").value && alone(model) ? `${model} learnt from single questions, so each is asked alone (Settings).` : "";
}

/** Examples for the chosen model, to begin with. */
function examples() {
  const found = madeFor($("model").value);
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
  const running = state.running?.turn === turn;
  const columns = turn.answers.map((answer) => column(answer, running));
  whole.append(make("div", { class: columns.length > 1 ? "pair" : "one" }, ...columns.map((c) => c.whole)));
  if (running) state.running.columns = columns;
  else if (index === state.turns.length - 1) {
    whole.append(make("div", { class: "tools" }, button("Regenerate", () => regenerate(index))));
  }
  return whole;
}

/** One model's answer: its part of the page, and what fills it anew as it grows. */
function column(answer, running) {
  const text = make("div", { class: "text" });
  const thought = make("div", { class: "text" });
  const summary = make("summary", {});
  const details = make("details", {}, summary, thought);
  details.open = Boolean(answer.unfolded);
  details.addEventListener("toggle", () => { answer.unfolded = details.open; });
  const whole = make("div", {}, make("h2", {}, answer.model || "Model"), details, text);
  const grow = (running) => {
    details.hidden = !answer.reasoning;
    summary.textContent = running && !answer.content ? "Thinking …" : "Thinking";
    fill(thought, answer.reasoning);
    fill(text, marked(answer));
  };
  grow(running);
  if (answer.votes) whole.append(make("p", { class: "votes" }, answer.votes));
  if (answer.error) whole.append(make("p", { class: "error" }, answer.error));
  if (!running) {
    const note = answer.note ? [make("span", {}, answer.note)] : [];
    whole.append(make("div", { class: "tools" }, button("Copy", () => copy(answer.content)), ...note));
  }
  return { whole, grow };
}

/** What was said, with the tags around what the model has marked as its answer. */
function marked({ content, answer }) {
  const at = answer ? content.lastIndexOf(answer) : -1;
  return at < 0 ? content : `${content.slice(0, at)}<answer>${answer}</answer>${content.slice(at + answer.length)}`;
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
  const turns = alone(model) ? before.slice(-1) : before;
  const messages = turns.map((t) => ({ role: t.role, content: said(t, model) })).filter((m) => m.content);
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const body = { model, messages };
  for (const name of NUMBERS) {
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  if ($("reasoning_effort").value) body.reasoning_effort = $("reasoning_effort").value;
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
  // Whoever reads on in the conversation is left where they are.
  const reading = $("log").contains(document.activeElement);
  $("send").hidden = false;
  $("stop").hidden = true;
  status(hint());
  save();
  finish(turn);
  if (!reading) $("input").focus();
}

/** Puts what goes with an answer that has ended below it, and says it to those who listen. */
function finish(turn) {
  const index = state.turns.indexOf(turn);
  if (index < 0) return;
  const old = $("log").lastElementChild;
  const thoughts = [...old.querySelectorAll("summary")].indexOf(document.activeElement);
  const log = $("log");
  const follow = nearEnd(log);
  const whole = article(turn, index);
  old.replaceWith(whole);
  if (thoughts >= 0) whole.querySelectorAll("summary")[thoughts]?.focus();
  if (follow) log.scrollTop = log.scrollHeight;
  $("said").textContent = turn.answers.map((a) => [`${a.model}:`, a.content || "no answer.", a.votes, a.error].filter(Boolean).join(" ")).join("\n");
}

const nearEnd = (log) => log.scrollHeight - log.scrollTop - log.clientHeight < 80;

/** Follows one model's answer to its end. */
async function follow(one, turn, signal) {
  const begun = performance.now();
  let first = 0;
  let usage = null;
  try {
    await api.chat(request(one.model), signal, (news) => {
      if (news.usage) usage = news.usage;
      if (news.votes) one.votes = agreement(news.votes);
      if (news.finish === "length") one.error = "Cut off: it has all the tokens that it may have.";
      if (news.answer) one.answer = news.answer;
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

/** Fills the turn that grows anew, once a frame: what is folded, chosen or in focus stays so. */
function redraw(turn) {
  if (state.drawing) return;
  state.drawing = true;
  requestAnimationFrame(() => {
    state.drawing = false;
    if (state.running?.turn !== turn) return;
    const log = $("log");
    const follow = nearEnd(log);
    state.running.columns.forEach((c) => c.grow(true));
    if (follow) log.scrollTop = log.scrollHeight;
  });
}

function send() {
  const text = $("input").value;
  if (!text.trim() || state.running || !$("model").value) return;
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
  await listModels(settings.model, settings.beside);
  draw();
}

async function listModels(wanted, beside) {
  try {
    const list = await api.models();
    state.models = list;
    await none(list.length === 0);
    $("model").replaceChildren(...list.map((m) => make("option", { value: m.id }, m.id)));
    $("beside").replaceChildren(make("option", { value: "" }, "none"), ...list.map((m) => make("option", { value: m.id }, m.id)));
    $("beside-label").hidden = list.length < 2;
    if (list.some((m) => m.id === wanted)) $("model").value = wanted;
    if (list.some((m) => m.id === beside)) $("beside").value = beside;
    examples();
    status(hint());
  } catch (error) {
    status(error.message, true);
  }
}

/** Without a model nothing can be asked: the page says how to come by one, and looks for it. */
async function none(nothing) {
  for (const id of ["input", "send"]) $(id).disabled = nothing;
  if (nothing) {
    if (!$("none").hasChildNodes()) $("none").append(await firstSteps());
    setTimeout(() => listModels($("model").value, $("beside").value), PAUSE);
  }
  $("none").hidden = !nothing;
  $("model-label").hidden = nothing;
  $("empty").hidden = nothing || state.turns.length > 0;
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
  status("");
  $("input").focus();
});
$("settings-open").addEventListener("click", () => $("settings").showModal());
$("settings").addEventListener("close", () => {
  save();
  status(hint());
});
// What a run has made meanwhile can be talked to.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !state.running && $("none").hidden) listModels($("model").value, $("beside").value);
});
$("model").addEventListener("change", () => {
  save();
  examples();
  status(hint());
});
$("beside").addEventListener("change", save);
begin();
