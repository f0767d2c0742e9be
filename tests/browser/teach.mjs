// The page that teaches, in a real browser: `node tests/browser/teach.mjs URL FOLDER MODEL`, where FOLDER holds node_modules
// with playwright-core and MODEL is a model that the studio at URL knows. A table of sums goes from drop to before and after.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fitsAPhone } from "./fits.mjs";

const [url, modules, model] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "package.json"))("playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"],
});
const errors = [];
const page = await browser.newPage({ viewport: { width: 1100, height: 1000 } });
page.on("console", (m) => m.type() === "error" && errors.push(m.text()));
page.on("pageerror", (e) => errors.push(String(e)));

async function picture(name, of = "main") {
  await page.locator(of).scrollIntoViewIfNeeded();
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`) });
}

// From the chat to the page, and a table dropped on it.
await page.goto(url);
await page.getByRole("link", { name: "Teach" }).click();
await page.waitForFunction((m) => [...document.querySelectorAll("#model option")].some((o) => o.value === m), model);
await page.selectOption("#model", model);
const sums = Array.from({ length: 40 }, (_, i) => [1 + (i % 8), 1 + ((3 * i) % 7)]);
const table = ["Question,Answer,Solution", ...sums.map(([a, b]) => `"Compute ${a} + ${b}.",${a + b},"${a} + ${b} = ${a + b}"`)].join("\n");
const file = await page.evaluateHandle((text) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], "Small sums.csv", { type: "text/csv" }));
  return transfer;
}, table);
await page.dispatchEvent("#drop", "drop", { dataTransfer: file });

// How it was understood, and five rows that the model tried.
await page.getByText("Five rows, as the model answered just now").waitFor({ timeout: 120000 });
assert.equal(await page.locator("#found tbody tr").count(), 5);
assert.ok((await page.locator("#found").innerText()).includes("40 rows with a question (“Question”)"));
await picture("teach-understood-light");

// Taught; the page is closed and opened, the training stopped, and it goes on.
await page.fill("#minutes", "0.3");
await page.getByRole("button", { name: "Start" }).click();
await page.waitForSelector("#run:visible", { timeout: 120000 });
await page.reload();
await page.locator("#progress").getByText(/The model is being taught/).waitFor();
await picture("teach-training-light");
const above = () => page.evaluate(() => document.scrollingElement.scrollHeight - innerHeight);
assert.ok(await above() <= 0, "the way between the pages stays in view");
await page.getByRole("button", { name: "Stop" }).click();
const on = page.getByRole("button", { name: "Go on" });
await on.or(page.locator("#gain:visible")).waitFor({ timeout: 120000 });
if (await on.isVisible()) await on.click();
await page.waitForSelector("#gain:visible", { timeout: 240000 });
assert.match(await page.locator("#gain").innerText(), /points.*right before.*after/);
assert.ok(await page.locator("#answers tbody tr").count() > 0, "answers before and after");
assert.ok(await page.locator("#curves figure").count() > 0, "curves");
await picture("teach-curves-light", "#curves");
await picture("teach-outcome-light", "#answers");
await page.emulateMedia({ colorScheme: "dark" });
await page.setViewportSize({ width: 360, height: 640 });
await fitsAPhone(page, "the page that teaches");
await picture("teach-phone-dark", "#gain");
await page.setViewportSize({ width: 1100, height: 800 });

// The model that was made just now is talked to, beside the one that it was.
await page.getByRole("link", { name: "Talk to both" }).click();
await page.waitForFunction(() => document.querySelector("#beside option:checked")?.value);
assert.equal(await page.locator("#beside").inputValue(), model);
await page.fill("#input", "Compute 3 + 4.");
await page.press("#input", "Enter");
await page.waitForSelector("#send:visible", { timeout: 120000 });
// Each says something, be it a thought that did not end; which, depends on how far the training came.
const said = await page.locator("article.assistant .pair > div").evaluateAll((columns) =>
  columns.map((column) => [...column.querySelectorAll(".text")].map((text) => text.textContent).join("")));
assert.equal(said.length, 2);
for (const text of said) assert.ok(text.length > 0);
await picture("teach-talk-dark");

assert.deepEqual(errors, [], "no error in the console");
await browser.close();
console.log("the page that teaches: a table dropped, understood, taught, stopped, taught on, talked to before and after");
