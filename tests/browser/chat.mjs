// The chat page in a real browser: `node tests/browser/chat.mjs URL FOLDER`, where FOLDER holds node_modules with
// playwright-core. It asks, stops, edits, asks again, looks at both colour schemes and a phone's width, and fails at any
// error in the console. Pictures go to $SCREENSHOTS, if that is set.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fitsAPhone } from "./fits.mjs";

const [url, modules] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "package.json"))("playwright-core");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"],
});
const errors = [];

async function open(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.on("console", (m) => m.type() === "error" && errors.push(m.text()));
  page.on("pageerror", (e) => errors.push(String(e)));
  page.on("request", (r) => assert.ok(r.url().startsWith(url) || r.url().startsWith("data:"), `asks ${r.url()}`));
  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#model option"));
  return page;
}

async function picture(page, name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`) });
}

async function ask(page, text) {
  await page.fill("#input", text);
  await page.press("#input", "Enter");
  await page.waitForSelector("#send:visible", { timeout: 60000 });
}

const answers = (page) => page.locator("article.assistant").count();

// A conversation to the end, by keyboard alone.
const page = await open({ viewport: { width: 1100, height: 800 } });
await page.click("#settings-open");
await page.fill("#temperature", "0");
await page.keyboard.press("Escape");
await ask(page, "Compute 3 + 4.");
assert.equal(await answers(page), 1);
const first = await page.locator("article.assistant .one > div > .text").innerText();
assert.ok(first.length > 0, "an answer came");
assert.ok((await page.locator("#said").textContent()).endsWith(`: ${first}`), "and is said once to those who listen");
assert.ok(!first.includes("<answer>"), "without tags");
assert.ok(await page.locator("article.assistant details summary").count() === 1, "thinking is folded");
assert.equal(await page.locator("article.assistant details").getAttribute("open"), null);
await page.locator("article.assistant details summary").focus();
await page.keyboard.press("Enter");
assert.ok((await page.locator("article.assistant details .text").innerText()).length > 0);
await picture(page, "chat-light");

// The same again, greedily: the same answer.
await page.getByRole("button", { name: "Regenerate" }).click();
await page.waitForSelector("#send:visible", { timeout: 60000 });
assert.equal(await page.locator("article.assistant .one > div > .text").innerText(), first);

// Another question in place of the first.
await page.getByRole("button", { name: "Edit" }).click();
await page.locator("textarea.edit").fill("Compute 2 + 2.");
await page.keyboard.press("Enter");
await page.waitForSelector("#send:visible", { timeout: 60000 });
assert.equal(await page.locator("article.user .text").innerText(), "Compute 2 + 2.");
assert.equal(await answers(page), 1);

// What was said is still there after a reload; HTML stays text.
await ask(page, "<img src=x onerror=alert(1)> **x**");
assert.equal(await page.locator("main img").count(), 0);
await page.reload();
await page.waitForFunction(() => document.querySelectorAll("article").length === 4);

// A model that learnt from single questions is asked each alone, unless told otherwise.
const sent = async (earlier) => {
  await page.click("#settings-open");
  await page.selectOption("#earlier", earlier);
  await page.keyboard.press("Escape");
  const [request] = await Promise.all([page.waitForRequest("**/v1/chat/completions"), ask(page, "Compute 1 + 1.")]);
  return request.postDataJSON().messages.length;
};
assert.equal(await sent(""), 1);
assert.ok((await page.locator("#status").innerText()).includes("each is asked alone"));
assert.ok(await sent("keep") > 2);
assert.equal(await sent("forget"), 1);

// Stopping: the answer, many at once so that it takes its time, ends where it is.
await page.getByRole("button", { name: "New chat" }).click();
await page.route("**/v1/chat/completions", (route) => {
  const body = { ...route.request().postDataJSON(), ignore_eos: true, max_completion_tokens: 400, temperature: 1, n: 64 };
  return route.continue({ postData: JSON.stringify(body) });
});
await page.fill("#input", "Compute 5 + 5.");
await page.press("#input", "Enter");
await page.waitForSelector("#stop:visible");
await page.waitForFunction(() => document.querySelector("article.assistant .text")?.textContent.length > 0);
await page.keyboard.press("Escape");
await page.waitForSelector("#send:visible");
assert.equal(await page.locator("article.assistant .tools span").innerText(), "stopped");
await page.unroute("**/v1/chat/completions");

// A vote: what most of several answers say, and how far they agree.
await page.getByRole("button", { name: "New chat" }).click();
await page.click("#settings-open");
await page.fill("#votes", "5");
await page.fill("#temperature", "1");
await page.fill("#system", "");
await picture(page, "settings-light");
await page.keyboard.press("Escape");
await ask(page, "Compute 3 + 4.");
assert.match(await page.locator("p.votes").innerText(), /[0-5] of 5 agree \(\d+ %\)/);
await picture(page, "chat-vote-light");
await page.click("#settings-open");
await page.fill("#votes", "");
await page.keyboard.press("Escape");

// Two models side by side on the same question, where there are two.
if (await page.locator("#beside option").count() > 2) {
  await page.getByRole("button", { name: "New chat" }).click();
  const other = await page.locator("#beside option").last().getAttribute("value");
  await page.selectOption("#beside", other);
  await ask(page, "Compute 3 + 4.");
  assert.equal(await page.locator("article.assistant .pair > div").count(), 2);
  for (const text of await page.locator("article.assistant .pair > div > .text").allInnerTexts()) assert.ok(text.length > 0);
  await picture(page, "chat-pair-light");
}

// A phone in the dark: nothing is wider than the screen.
const phone = await open({ viewport: { width: 360, height: 640 }, colorScheme: "dark", hasTouch: true });
// A question of the model's own run to begin with.
await fitsAPhone(phone, "the chat with its examples");
await phone.locator("#examples button").first().click();
await phone.waitForSelector("#send:visible", { timeout: 60000 });
assert.equal(await answers(phone), 1);
await fitsAPhone(phone, "the chat");
await picture(phone, "chat-phone-dark");

assert.deepEqual(errors, [], "no error in the console");
await browser.close();
console.log("the chat page: asked, regenerated, edited, reloaded, stopped, voted, looked at on a phone in the dark");
