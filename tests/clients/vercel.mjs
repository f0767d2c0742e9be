// The Vercel SDK against a server: `node tests/clients/vercel.mjs URL MODEL FOLDER`, for a model of recipes/smoke.toml, where FOLDER holds
// node_modules with ai and @ai-sdk/openai-compatible.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const [url, model, modules] = process.argv.slice(2);
const require = createRequire(join(modules, "package.json"));
const { generateText, streamText } = await import(require.resolve("ai"));
const { createOpenAICompatible } = await import(require.resolve("@ai-sdk/openai-compatible"));

const here = createOpenAICompatible({ name: "here", baseURL: `${url}v1`, includeUsage: true });
const ask = { model: here(model), prompt: "Compute 3 + 4.", temperature: 0, maxRetries: 0 };

const whole = await generateText(ask);
assert.ok(whole.text.length > 0, "a text");
assert.ok(whole.reasoningText.length > 0, "a thought");
assert.equal(whole.finishReason, "stop");

const stream = streamText(ask);
let text = "";
for await (const part of stream.textStream) text += part;
assert.equal(text, whole.text);
assert.equal(await stream.reasoningText, whole.reasoningText);
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);

await assert.rejects(generateText({ ...ask, model: here("nobody") }), /nobody/);
console.log("vercel: whole, streamed, thought, refused");
