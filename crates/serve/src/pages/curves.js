// Curves of a run's numbers.

import { make } from "./render.js";

const SVG = "http://www.w3.org/2000/svg";
// What is drawn of a stage, and in which order.
const CURVES = ["reward", "accuracy", "loss", "eval_loss", "entropy", "completion_length", "tokens_per_second", "ceiling_share", "grad_norm"];
const NAMES = {
  completion_length: "length of answers", tokens_per_second: "tokens per second", grad_norm: "norm of the gradient",
  eval_loss: "held-out loss", ceiling_share: "share of the ceiling",
};

// Stages that have one of these are what a run is watched for: they stay open.
const WATCHED = ["reward", "accuracy"];

/** Lines of a run's log by their stage, as they are read, and how they are drawn. */
export class Stages extends Map {
  /** By stage: the part of the page that shows it, and whether it has news. */
  #parts = new Map();

  note(line) {
    if (!this.has(line.stage)) this.set(line.stage, []);
    this.get(line.stage).push(line);
    const part = this.#parts.get(line.stage);
    if (part) part.news = true;
  }

  /** The newest line. */
  last() {
    return [...this.values()].map((lines) => lines.at(-1)).reduce((a, b) => (!a || b.time >= a.time ? b : a), null);
  }

  /** Draws what is new, the newest stage on top; what a reader has opened or folded stays so, and keeps its focus. */
  draw(into) {
    for (const [stage, lines] of this) {
      if (!this.#parts.has(stage) && curves(stage, lines).length) this.#parts.set(stage, this.#part(stage, into));
    }
    const newest = [...this.#parts.keys()].at(-1);
    for (const [stage, part] of this.#parts) {
      const lines = this.get(stage);
      if (part.news) part.grid.replaceChildren(...curves(stage, lines));
      part.news = false;
      if (!part.touched) part.whole.open = stage === newest || WATCHED.some((key) => typeof lines.at(-1)[key] === "number");
    }
  }

  #part(stage, into) {
    const part = { news: true, touched: false, grid: make("div", { class: "curves" }) };
    const title = make("summary", { onclick: () => { part.touched = true; } }, stage);
    part.whole = make("details", {}, title, part.grid);
    into.prepend(part.whole);
    return part;
  }
}

/** A figure for each number of a stage. */
function curves(stage, lines) {
  const points = (key) => lines.filter((l) => typeof l[key] === "number").map((l) => [l.step, l[key]]);
  return CURVES.map((key) => [key, points(key)]).filter(([, drawn]) => drawn.length > 1).map(([key, drawn]) => figure(stage, key, drawn));
}

/** Seconds as a person says them. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
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
  const [left, right] = [xs[0], xs.at(-1)];
  const [low, high] = ys.reduce(([l, h], y) => [Math.min(l, y), Math.max(h, y)], [Infinity, -Infinity]);
  const x = (v) => ((v - left) / (right - left || 1)) * width;
  const y = (v) => height - ((v - low) / (high - low || 1)) * height;
  const every = Math.ceil(points.length / 600);
  const shown = points.filter((_, i) => i % every === 0 || i === points.length - 1);
  const line = shown.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ");
  const name = NAMES[key] ?? key;
  const label = `${stage}: ${name} from ${short(ys[0])} to ${short(ys.at(-1))} in ${right} steps`;
  const drawn = svg("svg", { viewBox: `-2 -4 ${width + 4} ${height + 8}`, role: "img", "aria-label": label }, svg("polyline", { points: line }));
  const caption = make("figcaption", {}, make("b", {}, name), ` ${short(ys.at(-1))}`, make("span", {}, `between ${short(low)} and ${short(high)}, step ${right}`));
  return make("figure", {}, caption, drawn);
}
