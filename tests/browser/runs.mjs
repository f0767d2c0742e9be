// The page of runs in a real browser: `node tests/browser/runs.mjs URL FOLDER RUN`, where FOLDER holds node_modules with
// playwright-core and RUN is the folder of a run that the studio at URL shows. A line that is added to its log is seen.

import assert from "node:assert/strict";
import { appendFileSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";
import { fitsAPhone } from "./fits.mjs";

const [url, modules, run] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "package.json"))("playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"],
});
const errors = [];
const page = await browser.newPage({ viewport: { width: 1100, height: 900 } });
page.on("console", (m) => m.type() === "error" && errors.push(m.text()));
page.on("pageerror", (e) => errors.push(String(e)));

// From the chat to the runs.
await page.goto(url);
await page.getByRole("link", { name: "Runs" }).click();
await page.waitForSelector("figure svg");
await page.selectOption("#run", basename(run));
const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trim().split("\n").map((l) => JSON.parse(l));
const reward = page.getByRole("img", { name: /^grpo: reward/ });
await reward.waitFor();
assert.ok(await page.locator("#stages tbody tr").count() > 3, "stages with their costs");
const planned = [...readFileSync(join(run, "recipe.toml"), "utf8").matchAll(/^\[\[stage\]\]\nname = "(.*)"$/gm)].map((found) => found[1]);
assert.deepEqual(await page.locator("#stages tbody tr td:first-child").allInnerTexts(), planned, "the stages in the recipe's order");
assert.ok(await page.locator("#samples article").count() > 0, "samples");

// A run that goes on: a step that is written now is drawn.
const last = lines.filter((l) => l.stage === "grpo").at(-1);
appendFileSync(join(run, "metrics.jsonl"), `${JSON.stringify({ ...last, step: last.step + 1, reward: 0.987 })}\n`);
await page.getByRole("img", { name: new RegExp(`^grpo: reward .* to 0.987 in ${last.step + 1} steps`) }).waitFor({ timeout: 15000 });
if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, "runs-light.png") });

await page.emulateMedia({ colorScheme: "dark" });
await page.setViewportSize({ width: 360, height: 640 });
await fitsAPhone(page, "the page of runs");
if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, "runs-phone-dark.png") });

// The report, with values under the pointer.
await page.emulateMedia({ colorScheme: "light" });
await page.setViewportSize({ width: 1100, height: 900 });
await page.goto(new URL(await page.locator("#stages caption a").getAttribute("href"), url).href);
await page.locator(".wide svg[data-plot]").first().hover();
await page.waitForFunction(() => document.querySelector("#tip").textContent.includes(":"));
await page.reload();
await fitsAPhone(page, "the report");

assert.deepEqual(errors, [], "no error in the console");
await browser.close();
console.log("the page of runs: opened, chosen, followed as a step was written, looked at on a phone in the dark");
