// Texts as elements. Nothing that a model writes is ever taken for HTML.

/** An element with attributes and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Fills an element with a text: code between fences, what stands in answer tags marked, all else as it is. */
export function fill(element, text) {
  const parts = text.split(/^```[^\n]*\n?/m);
  element.replaceChildren(...parts.flatMap((part, i) => (i % 2 ? [make("pre", {}, part)] : plain(part))));
}

function plain(text) {
  const parts = text.split(/<answer>([\s\S]*?)(?:<\/answer>|$)/);
  return parts.map((part, i) => (i % 2 ? make("mark", { title: "the answer" }, part) : document.createTextNode(part)));
}
