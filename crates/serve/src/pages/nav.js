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
