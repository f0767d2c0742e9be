// Whether a page fits a screen.

import assert from "node:assert/strict";

/** Nothing on the page is wider than a phone of 390 pixels, or sticks out of it; what may be scrolled sideways may hold more. */
export async function fitsAPhone(page, what) {
  const before = page.viewportSize();
  await page.setViewportSize({ width: 390, height: 844 });
  const outside = await page.evaluate(() => {
    const scrolls = (e) => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const seen = [...document.querySelectorAll("body *")].filter((e) => !e.closest(".hidden, thead") && !scrolls(e.parentElement));
    const out = seen.filter((e) => {
      const { left, right, width } = e.getBoundingClientRect();
      return width > 0 && (left < -1 || right > innerWidth + 1);
    });
    // Letter by letter is no way to write either.
    const squeezed = [...document.querySelectorAll("td, th")].filter((e) => {
      const { width, height } = e.getBoundingClientRect();
      return e.textContent.length > 3 && width > 0 && width < 24 && height > 60;
    });
    return [...out, ...squeezed].map((e) => `${e.tagName} ${e.id} ${e.textContent.slice(0, 40)}`);
  });
  assert.deepEqual(outside, [], `${what} fits a phone`);
  await page.setViewportSize(before);
}
