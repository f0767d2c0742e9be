// The way between the pages, as far as this server has them.

import { make } from "./render.js";
import { get } from "./api.js";

const PAGES = [["/", "Chat", () => true], ["/teach", "Teach", (s) => s.teach], ["/runs", "Runs", (s) => s.runs]];

/** Fills the page's nav; a server with a chat alone needs none. */
export async function nav() {
  const studio = await get("/studio").catch(() => ({}));
  const shown = PAGES.filter(([, , has]) => has(studio));
  const link = ([address, name]) => make("a", { href: address, ...(address === location.pathname ? { "aria-current": "page" } : {}) }, name);
  const whole = document.querySelector("nav");
  whole.replaceChildren(...shown.map(link));
  whole.hidden = shown.length < 2;
}

/** What to do where there is no model yet; models that are made meanwhile come by themselves. */
export async function firstSteps() {
  const { folder } = await get("/studio").catch(() => ({}));
  const out = (name) => (folder ? ` --out ${/[^\w/.-]/.test(folder) ? `"${folder}/${name}"` : `${folder}/${name}`}` : "");
  const step = (title, command) => make("li", {}, title, make("pre", { tabindex: "0" }, command));
  return make("div", { class: "first" }, make("h2", {}, "There is no model here yet"), make("p", {}, "In a terminal:"), make("ul", {},
    step("Make a small one from nothing, in three minutes or so,", `shoestring launch --quick${out("quick")}`),
    step("or the real one, in a quarter to half an hour on two cores,", `shoestring launch${out("launch")}`),
    step("or bring an open model, a GGUF file or a folder, and start the studio with it:", "shoestring studio --model MODEL")),
  make("p", {}, "A model that is made while this page is open appears by itself; ", make("a", { href: "/runs" }, "Runs"), " shows how far it is."));
}
