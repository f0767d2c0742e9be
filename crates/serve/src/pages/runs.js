// A run as it goes: curves, samples, what its stages cost.

import { get } from "./api.js";
import { Stages, duration } from "./curves.js";
import { nav } from "./nav.js";
import { fill, fillTable, make } from "./render.js";

const $ = (id) => document.getElementById(id);
const PAUSE = 1000;

// Samples are {stage, step, tag, text}, by stage and tag; `shown` is what the table says already.
const state = { name: "", metrics: 0, samples: 0, stages: new Stages(), texts: new Map(), shown: "" };

const run = (part = "") => `/studio/runs/${encodeURIComponent(state.name)}${part}`;

/** Chooses a run and forgets the one before. */
function choose(name) {
  Object.assign(state, { name, metrics: 0, samples: 0, stages: new Stages(), texts: new Map(), shown: "" });
  for (const id of ["stages", "curves", "samples"]) $(id).replaceChildren();
  $("written").hidden = true;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
}

/** Reads what is new. */
async function look() {
  const name = state.name;
  let news = false;
  for (;;) {
    const { next, lines } = await get(run(`/metrics?from=${state.metrics}`));
    if (name !== state.name) return;
    lines.forEach((line) => state.stages.note(line));
    news ||= lines.length > 0;
    if (next === state.metrics) break;
    state.metrics = next;
  }
  const { next, lines } = await get(run(`/samples?from=${state.samples}`));
  if (name !== state.name) return;
  state.samples = next;
  lines.forEach(sample);
  const about = await get(run());
  if (name !== state.name) return;
  table(about);
  if (news) state.stages.draw($("curves"));
  $("standing").textContent = standing(about);
  say(about.report ? "Finished." : "");
}

/** Says something to all, also to those who listen; what is said already is not said again. */
function say(text, isError = false) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

/** How the run stands, in a sentence. */
function standing(about) {
  if (about.report) return "";
  if (about.written === null) return "Nothing was written yet.";
  const last = state.stages.last();
  const left = typeof last?.seconds_left === "number" ? `${last.stage}: step ${last.step}, ${duration(last.seconds_left)} left in this stage. ` : "";
  return `${left}Last line ${duration(Math.max(0, Date.now() / 1000 - about.written))} ago.`;
}

/** Takes a text of a stage; its latest is shown, and the slider goes back to how it was. */
function sample(line) {
  const key = `${line.stage} ${line.tag}`;
  if (!state.texts.has(key)) state.texts.set(key, shelf(line));
  state.texts.get(key).add(line);
}

function shelf({ stage }) {
  const lines = [];
  const text = make("div", { class: "text" });
  const title = make("h3", {});
  const slider = make("input", { type: "range", min: "0", max: "0", value: "0", "aria-label": `${stage}: from the first text to the latest` });
  const show = () => {
    const line = lines[Number(slider.value)];
    title.textContent = `${stage}, step ${line.step}`;
    slider.setAttribute("aria-valuetext", `step ${line.step}`);
    fill(text, line.text ?? "");
  };
  slider.addEventListener("input", show);
  $("written").hidden = false;
  $("samples").prepend(make("article", {}, title, slider, text));
  const add = (line) => {
    const follows = Number(slider.value) === lines.length - 1 || lines.length === 0;
    lines.push(line);
    slider.max = String(lines.length - 1);
    slider.hidden = lines.length < 2;
    if (follows) slider.value = slider.max;
    show();
  };
  return { add };
}

const short = (x) => x.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });

/** The stages in their order: what they cost and what came out, or that they are at work or to come. */
function table(about) {
  const done = new Map(about.stages.map((s) => [s.name, s]));
  const begun = [...new Set([...about.planned, ...state.stages.keys(), ...done.keys()])].filter((name) => done.has(name) || state.stages.has(name));
  const coming = about.report ? [] : about.planned.filter((name) => !begun.includes(name));
  const rows = [...begun, ...coming].map((name) => {
    const { cost = {}, summary } = done.get(name) ?? {};
    const steps = state.stages.get(name)?.at(-1)?.step;
    const number = (x, show) => (typeof x === "number" && x > 0 ? show(x) : "");
    const outcome = summary ?? (begun.includes(name) ? "begun" : "to come");
    return [make("b", {}, name), number(steps, String), number(cost.seconds, duration), number(cost.tokens, short), number(cost.cost, (x) => x.toFixed(5)), outcome];
  });
  const shown = JSON.stringify([rows.map(([, ...cells]) => cells), coming, about.report]);
  if (state.shown === shown) return;
  state.shown = shown;
  const caption = about.report ? make("a", { href: about.report, target: "_blank", rel: "noopener" }, "The report: what it bought, answers before and after, curves") : null;
  fillTable($("stages"), caption, ["Stage", "Steps", "Time", "Tokens", "$", "Outcome"], rows);
}

/** Lists the runs that there are, the newest first. */
async function list() {
  const { runs } = await get("/studio/runs");
  runs.sort((a, b) => (b.written ?? 0) - (a.written ?? 0));
  const names = runs.map((r) => r.name);
  if (JSON.stringify(names) !== JSON.stringify([...$("run").options].map((o) => o.value))) {
    $("run").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    $("run").value = state.name;
    $("run-label").hidden = names.length === 0;
  }
  return names;
}

async function begin() {
  nav();
  $("run").addEventListener("change", () => choose($("run").value));
  addEventListener("hashchange", () => choose(decodeURIComponent(location.hash.slice(1))));
  for (let round = 0; ; round += 1) {
    try {
      const names = (round % 10 === 0 || !state.name) ? await list() : [];
      if (!state.name && names.length) {
        const wanted = decodeURIComponent(location.hash.slice(1));
        choose(names.includes(wanted) ? wanted : names[0]);
        $("run").value = state.name;
      }
      if (state.name) await look();
      else say("There are no runs yet: start one with `shoestring launch` in a terminal, or teach a table.");
    } catch (error) {
      say(error.message, true);
    }
    await new Promise((done) => setTimeout(done, PAUSE));
  }
}

begin();
