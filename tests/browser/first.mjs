// A studio's first minute, in a real browser: `node tests/browser/first.mjs URL FOLDER KEY RUNS MODEL`, where FOLDER holds node_modules with
// playwright-core and the studio at URL asks for KEY and has the empty folder RUNS. It asks for the key wherever one comes in, says what to
// do without a model, and finds the run that MODEL, the folder of a run, becomes there; its report opens by a link.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { cpSync } from "node:fs";
import { join } from "node:path";
import { fitsAPhone } from "./fits.mjs";

const [url, modules, key, runs, run] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "package.json"))("playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"],
});
const errors = [];

async function open(path) {
  const page = await (await browser.newContext({ viewport: { width: 1100, height: 800 } })).newPage();
  // That a key is needed is an error to the browser.
  page.on("console", (m) => m.type() === "error" && !m.text().includes("401") && errors.push(m.text()));
  page.on("pageerror", (e) => errors.push(String(e)));
  await page.goto(new URL(path, url).href);
  return page;
}

async function unlock(page) {
  await page.getByLabel("API key").fill("wrong");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "does not know that key" }).waitFor();
  await page.getByLabel("API key").fill(key);
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog#key", { state: "detached" });
  await page.getByRole("link", { name: "Teach" }).waitFor();
}

async function picture(page, name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`) });
}

for (const path of ["/", "/teach"]) {
  const page = await open(path);
  await unlock(page);
  await page.getByRole("heading", { name: "There is no model here yet" }).waitFor();
  assert.ok((await page.locator(".first pre").first().innerText()).includes(runs), "a command that fills this folder");
  assert.equal(await page.locator("#input:enabled, #file:visible").count(), 0, "nothing that leads nowhere");
  await fitsAPhone(page, `${path} without a model`);
  await picture(page, `first${path === "/" ? "-chat" : "-teach"}`);
}
const chat = await open("/");
await unlock(chat);
const watch = await open("/runs");
await unlock(watch);
await watch.getByText("There are no runs yet").waitFor();
await picture(watch, "first-runs");

// A run that comes while the pages are open.
cpSync(run, join(runs, "new"), { recursive: true });
await chat.waitForSelector("#input:enabled", { timeout: 20000 });
assert.ok(await chat.locator("#model option").count() > 0);
await watch.waitForSelector("#stages caption a", { timeout: 20000 });
const [report] = await Promise.all([watch.context().waitForEvent("page"), watch.locator("#stages caption a").click()]);
await report.waitForSelector("svg", { timeout: 20000 });
// The link leads to the report and nowhere else.
const ticket = new URL(report.url()).search;
for (const path of ["/studio/runs/new/metrics", "/v1/models", "/studio/runs/other/report"]) {
  assert.equal((await report.request.get(new URL(path + ticket, url).href)).status(), 401, path);
}

assert.deepEqual(errors, [], "no error in the console");
await browser.close();
console.log("the first minute: a key asked for, no model yet, a run that came, its report");
