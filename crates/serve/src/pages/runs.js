// A run as it goes: curves, samples, what its stages cost.

import { fill, make } from "./render.js";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// What is drawn of a stage, and in which order.
const CURVES = ["reward", "accuracy", "loss", "eval_loss", "entropy", "completion_length", "tokens_per_second", "grad_norm"];
const NAMES = { completion_length: "length of answers", tokens_per_second: "tokens per second", grad_norm: "norm of the gradient", eval_loss: "held-out loss" };
const PAUSE = 1000;

const state = { name: "", metrics: 0, samples: 0, stages: new Map(), last: null };

async function get(path) {
  const key = sessionStorage.getItem("key");
  const response = await fetch(path, { headers: key ? { authorization: `Bearer ${key}` } : {} });
  if (!response.ok) throw new Error((await response.json()).error.message);
  return response.json();
}

const run = (part = "") => `/studio/runs/${encodeURIComponent(state.name)}${part}`;

/** Chooses a run and forgets the one before. */
function choose(name) {
  Object.assign(state, { name, metrics: 0, samples: 0, stages: new Map(), last: null });
  for (const id of ["stages", "curves", "samples"]) $(id).replaceChildren();
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
}

async function follow() {
  for (;;) {
    try {
      if (state.name) await look();
    } catch (error) {
      $("status").textContent = error.message;
    }
    await new Promise((done) => setTimeout(done, PAUSE));
  }
}

/** Reads what is new. */
async function look() {
  const name = state.name;
  let news = false;
  for (;;) {
    const { next, lines } = await get(run(`/metrics?from=${state.metrics}`));
    if (name !== state.name) return;
    lines.forEach(note);
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
  if (news) curves();
  const ago = about.written === null ? null : Math.max(0, Math.round(Date.now() / 1000 - about.written));
  $("status").textContent = about.report ? "Finished." : ago === null ? "Nothing was written yet." : `Last line ${ago} s ago.`;
}

function note(line) {
  if (!state.stages.has(line.stage)) state.stages.set(line.stage, []);
  state.stages.get(line.stage).push(line);
}

function sample(line) {
  const text = make("div", { class: "text" });
  fill(text, line.text ?? "");
  $("samples").prepend(make("article", {}, make("h3", {}, `${line.stage}, step ${line.step}`), text));
  while ($("samples").children.length > 20) $("samples").lastElementChild.remove();
}

function table(about) {
  const head = make("tr", {}, ...["Stage", "Steps", "Seconds", "Tokens", "$", "Outcome"].map((t) => make("th", { scope: "col" }, t)));
  const done = new Map(about.stages.map((s) => [s.name, s]));
  const names = [...new Set([...state.stages.keys(), ...done.keys()])];
  const rows = names.map((name) => {
    const steps = state.stages.get(name)?.at(-1)?.step ?? "";
    const cost = done.get(name)?.cost ?? {};
    const number = (x, digits = 0) => (typeof x === "number" ? x.toFixed(digits) : "");
    const cells = [steps, number(cost.seconds, 1), number(cost.tokens), number(cost.cost, 5), done.get(name)?.summary ?? "in work"];
    return make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((c) => make("td", {}, String(c))));
  });
  const report = about.report ? [make("caption", {}, make("a", { href: run("/report"), target: "_blank", rel: "noopener" }, "The report"))] : [];
  $("stages").replaceChildren(...report, make("thead", {}, head), make("tbody", {}, ...rows));
}

function curves() {
  const figures = [];
  for (const [stage, lines] of [...state.stages].reverse()) {
    for (const key of CURVES) {
      const points = lines.filter((l) => typeof l[key] === "number").map((l) => [l.step, l[key]]);
      if (points.length > 1) figures.push(figure(stage, key, points));
    }
  }
  $("curves").replaceChildren(...figures);
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const short = (x) => Number(x.toPrecision(3)).toLocaleString("en");

/** One curve with its ends written beside it. */
function figure(stage, key, points) {
  const [width, height] = [280, 90];
  const xs = points.map((p) => p[0]);
  const ys = points.map((p) => p[1]);
  const [left, right, low, high] = [xs[0], xs.at(-1), Math.min(...ys), Math.max(...ys)];
  const x = (v) => ((v - left) / (right - left || 1)) * width;
  const y = (v) => height - ((v - low) / (high - low || 1)) * height;
  const every = Math.ceil(points.length / 600);
  const shown = points.filter((_, i) => i % every === 0 || i === points.length - 1);
  const line = shown.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ");
  const name = NAMES[key] ?? key;
  const label = `${stage}: ${name} from ${short(ys[0])} to ${short(ys.at(-1))} in ${right} steps`;
  const drawn = svg("svg", { viewBox: `-2 -4 ${width + 4} ${height + 8}`, role: "img", "aria-label": label }, svg("polyline", { points: line }));
  const caption = make("figcaption", {}, make("b", {}, `${stage} · ${name}`), ` ${short(ys.at(-1))}`, make("span", {}, ` ${short(low)} to ${short(high)}, step ${right}`));
  return make("figure", {}, caption, drawn);
}

async function begin() {
  try {
    const { runs } = await get("/studio/runs");
    if (runs.length === 0) {
      $("status").textContent = "There are no runs yet: start one with `shoestring launch`.";
      return;
    }
    runs.sort((a, b) => (b.written ?? 0) - (a.written ?? 0));
    $("run").replaceChildren(...runs.map((r) => make("option", { value: r.name }, r.name)));
    const wanted = decodeURIComponent(location.hash.slice(1));
    $("run").value = runs.some((r) => r.name === wanted) ? wanted : runs[0].name;
    $("run").addEventListener("change", () => choose($("run").value));
    choose($("run").value);
    follow();
  } catch (error) {
    $("status").textContent = error.message;
  }
}

begin();
