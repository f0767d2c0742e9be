// Curves of a run's numbers.

import { make } from "./render.js";

const SVG = "http://www.w3.org/2000/svg";
// What is drawn of a stage, and in which order.
const CURVES = ["reward", "accuracy", "loss", "eval_loss", "entropy", "completion_length", "tokens_per_second", "ceiling_share", "grad_norm"];
const NAMES = {
  completion_length: "length of answers", tokens_per_second: "tokens per second", grad_norm: "norm of the gradient",
  eval_loss: "held-out loss", ceiling_share: "share of the ceiling",
};

/** Lines of a run's log by their stage, as they are read. */
export class Stages extends Map {
  note(line) {
    if (!this.has(line.stage)) this.set(line.stage, []);
    this.get(line.stage).push(line);
  }

  /** The newest line. */
  last() {
    return [...this.values()].map((lines) => lines.at(-1)).reduce((a, b) => (!a || b.time >= a.time ? b : a), null);
  }

  /** A figure for each number of each stage, the newest stage first. */
  figures() {
    const figures = [];
    for (const [stage, lines] of [...this].reverse()) {
      for (const key of CURVES) {
        const points = lines.filter((l) => typeof l[key] === "number").map((l) => [l.step, l[key]]);
        if (points.length > 1) figures.push(figure(stage, key, points));
      }
    }
    return figures;
  }
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
  const caption = make("figcaption", {}, make("b", {}, `${stage} · ${name}`), ` ${short(ys.at(-1))}`, make("span", {}, ` ${short(low)} to ${short(high)}, step ${right}`));
  return make("figure", {}, caption, drawn);
}
