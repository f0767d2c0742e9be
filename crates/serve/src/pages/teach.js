// A table, from drop to a better model: dropped, understood, tried, taught, compared.

import * as api from "./api.js";
import { Stages, duration } from "./curves.js";
import { firstSteps, nav } from "./nav.js";
import { fill, fillTable, make } from "./render.js";

const $ = (id) => document.getElementById(id);
const FIELDS = ["model", "minutes", "question", "answer", "solution", "max_new"];
const NUMBERS = ["minutes", "max_new"];
const PAUSE = 1000;

// `shown` is what the parts of the page show already, so that they are drawn anew only where something changed.
const state = { name: "", lesson: null, metrics: 0, stages: new Stages(), shown: {} };

const address = (part = "") => `/studio/lessons/${encodeURIComponent(state.name)}${part}`;

function status(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

/** Runs what may fail; what goes wrong is said at the top. */
async function trying(act) {
  try {
    await act();
  } catch (error) {
    status(error.message, true);
  }
}

async function upload(file) {
  status(`Reading ${file.name} …`);
  const lesson = await api.put(`/studio/lessons/${encodeURIComponent(file.name)}`, file);
  await list();
  choose(lesson.name);
  take(lesson);
  status("");
  if ($("model").value) await begin("look");
}

/** What the form says. */
function settings() {
  const all = {};
  for (const id of FIELDS) {
    if ($(id).value !== "") all[id] = NUMBERS.includes(id) ? Number($(id).value) : $(id).value;
  }
  return all;
}

async function begin(what) {
  status("");
  take(await api.post(address(`/${what}`), what === "stop" ? {} : settings()));
}

/** Chooses a lesson and forgets the one before. */
function choose(name) {
  Object.assign(state, { name, lesson: null, metrics: 0, stages: new Stages(), shown: {} });
  $("curves").replaceChildren();
  $("lesson").value = name;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
}

/** Whether a part is to be drawn anew. */
function changed(part, value) {
  const text = JSON.stringify(value);
  if (state.shown[part] === text) return false;
  state.shown[part] = text;
  return true;
}

/** Shows a lesson as it is now. */
function take(lesson) {
  const first = state.lesson === null;
  state.lesson = lesson;
  if (first) {
    for (const id of FIELDS) {
      if (lesson.settings[id] !== undefined) $(id).value = lesson.settings[id];
    }
  }
  const busy = lesson.state === "looking" || lesson.state === "teaching";
  const listed = [...$("lesson").options].find((o) => o.value === lesson.name);
  if (listed) listed.textContent = `${lesson.name} (${lesson.state})`;
  $("understood").hidden = false;
  $("look").hidden = lesson.begun;
  for (const id of ["look", ...FIELDS]) $(id).disabled = busy || (lesson.begun && id !== "look");
  $("look").textContent = lesson.state === "looking" ? "Trying the model …" : lesson.look ? "Try again" : "Try the model";
  if (changed("found", [lesson.look, lesson.error])) found(lesson);
  $("teaching").hidden = !lesson.look && !lesson.begun;
  $("pointless").textContent = lesson.look?.pointless ?? "";
  $("start").hidden = busy || lesson.state === "done" || Boolean(lesson.look?.pointless && !lesson.begun);
  $("start").textContent = lesson.begun ? "Go on" : "Start";
  $("end").hidden = !busy;
  $("run").hidden = !lesson.run;
  $("run").href = `/runs#${encodeURIComponent(lesson.name)}`;
  if (lesson.state === "looking") $("teaching").hidden = false;
  progress(lesson);
  $("outcome").hidden = lesson.state !== "done";
  if (lesson.state === "done" && changed("outcome", lesson.outcome)) outcome(lesson);
  // Whoever comes back is where they would look first.
  if (first && lesson.begun) $(lesson.state === "done" ? "outcome" : "teaching").scrollIntoView();
}

function mark(right) {
  return make("td", { class: right ? "right" : "wrong" }, right ? "right" : "wrong");
}

/** A cell with a text of a model or a table. */
function cell(text) {
  const whole = make("td", { class: "text" });
  fill(whole, String(text).trim());
  return whole;
}

const percent = (x) => `${Math.round(100 * x)} %`;

/** How the table was understood, and the rows that the model tried. */
function found({ look, error }) {
  const parts = [];
  if (error) {
    parts.push(make("p", { class: "error" }, error));
    $("columns").open = true;
  }
  if (look) {
    const solutions = look.solution === null ? "none with a worked solution" : `${look.solved} of them with a worked solution (“${look.solution}”)`;
    parts.push(make("p", {}, `${look.rows} rows with a question (“${look.question}”) and an answer (“${look.answer}”), ${solutions}. Scored by ${look.verifier}: ${look.why}.`));
    if (look.left_out.length) {
      const { row, reason } = look.left_out[0];
      parts.push(make("p", {}, `${look.left_out.length} rows are left out; the first is row ${row}: ${reason}.`));
    }
    parts.push(make("p", {}, `The model as it came is right on ${percent(look.before["pass@1"].value)} of ${look.before.problems} rows that it was tried on.`));
    const rows = look.tried.map((t) => [cell(t.question), cell(t.answer), cell(t.said), mark(t.right)]);
    parts.push(fillTable(make("table"), "Five rows, as the model answered just now", ["Question", "Answer", "The model said", ""], rows));
  }
  $("found").replaceChildren(...parts);
}

function progress(lesson) {
  const all = 60 * (lesson.settings.minutes ?? 30);
  const words = {
    new: "", looked: "", looking: "The model is tried on some of the rows …",
    teaching: "The model is being taught.", stopped: "Stopped: nothing is lost, and it goes on from here.",
    failed: lesson.begun ? `It ended: ${lesson.error}` : "", done: "Done.",
  };
  let text = words[lesson.state] ?? "";
  // What changes every second is not told to those who listen.
  if ($("standing").textContent !== text) $("standing").textContent = text;
  const teaching = lesson.state === "teaching";
  if (teaching && lesson.seconds !== null) {
    const left = all - lesson.seconds;
    text = left > 0 ? `${text} About ${duration(left)} left of ${duration(all)}.` : `${text} ${duration(-left)} beyond the ${duration(all)} that were planned.`;
    const last = state.stages.last();
    if (last) text += ` In ${last.stage}, step ${last.step}.`;
    $("bar").value = Math.min(1, lesson.seconds / all);
  }
  $("bar").hidden = !teaching;
  if ($("progress").textContent !== text) $("progress").textContent = text;
  const log = lesson.log.join("\n");
  $("log").hidden = !log || !(teaching || lesson.state === "looking" || lesson.state === "failed");
  if ($("log").textContent !== log) {
    $("log").textContent = log;
    $("log").scrollTop = $("log").scrollHeight;
  }
}

/** What was gained, and answers side by side. */
function outcome({ outcome: o, settings: s, name, answers }) {
  const points = (x) => (100 * x).toFixed(1);
  const { value, low, high } = o.gain;
  const [before, after] = [o.before, o.after].map((m) => percent(m["pass@1"].value));
  const gain = low > 0 ? `Better by ${points(value)} points (${points(low)} to ${points(high)}).`
    : `Not shown to be better: ${points(value)} points, and the interval from ${points(low)} to ${points(high)} holds zero.`;
  const forgotten = o.forgotten ? ` On text that nothing was trained on it is ${Math.abs(100 * o.forgotten.worse).toFixed(1)} % ${o.forgotten.worse > 0 ? "worse" : "better"} than before.` : "";
  $("gain").textContent = `${gain} ${before} of ${o.held_out} rows that nothing was trained on were right before, ${after} after.${forgotten}`;
  $("talk").href = `/?${new URLSearchParams({ model: `${name}/model`, beside: s.model })}`;
  const rows = answers.map((a) => [cell(a.question), cell(a.answer), cell(a.before.text), mark(a.before.right), cell(a.after.text), mark(a.after.right)]);
  fillTable($("answers"), "Rows that nothing was trained on", ["Question", "Answer", "Before", "", "After", ""], rows);
}

/** Reads what is new of the chosen lesson. */
async function look() {
  const name = state.name;
  const lesson = await api.get(address());
  if (name !== state.name) return;
  if (lesson.run) await metrics(name);
  if (name === state.name) take(lesson);
}

async function metrics(name) {
  const read = await api.get(`/studio/runs/${encodeURIComponent(name)}/metrics?from=${state.metrics}`);
  if (name !== state.name) return;
  state.metrics = read.next;
  read.lines.forEach((line) => state.stages.note(line));
  if (read.lines.length) state.stages.draw($("curves"));
}

async function list() {
  const { lessons } = await api.get("/studio/lessons");
  $("lesson").replaceChildren(make("option", { value: "" }, "a new lesson"), ...lessons.map((l) => make("option", { value: l.name }, `${l.name} (${l.state})`)));
  $("lesson-label").hidden = lessons.length === 0;
  if (state.name) $("lesson").value = state.name;
  return lessons;
}

/** The models that can be taught; where there are none, how to come by one. */
async function models() {
  const found = await api.models();
  $("model").replaceChildren(...found.map((m) => make("option", { value: m.id }, m.id)));
  const none = found.length === 0;
  if (none && !$("none").hasChildNodes()) $("none").append(await firstSteps());
  $("none").hidden = !none;
  $("begin").hidden = none;
  if (none) setTimeout(() => trying(models), 3 * PAUSE);
}

async function start() {
  nav();
  await models();
  const lessons = await list();
  const wanted = decodeURIComponent(location.hash.slice(1));
  const busy = lessons.find((l) => l.state === "teaching" || l.state === "looking");
  const open = lessons.find((l) => l.name === wanted) ?? busy;
  if (open) choose(open.name);
  for (;;) {
    if (state.name && !document.hidden) await trying(look);
    await new Promise((done) => setTimeout(done, PAUSE));
  }
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) trying(() => upload(file));
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (e) => {
    e.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && e.dataTransfer.files.length && !$("begin").hidden) trying(() => upload(e.dataTransfer.files[0]));
  });
}
$("settings").addEventListener("submit", (e) => {
  e.preventDefault();
  trying(() => begin("look"));
});
$("start").addEventListener("click", () => trying(() => begin("start")));
$("end").addEventListener("click", () => trying(() => begin("stop")));
$("lesson").addEventListener("change", () => {
  if ($("lesson").value === "") {
    location.hash = "";
    location.reload();
  } else {
    choose($("lesson").value);
    trying(look);
  }
});
trying(start);
