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

/** Fills an element with a text: code between fences, thoughts faint, what stands in answer tags marked, all else as it is. */
export function fill(element, text) {
  const parts = text.split(/^```[^\n]*\n?/m);
  element.replaceChildren(...parts.flatMap((part, i) => (i % 2 ? [make("pre", {}, part)] : plain(part))));
}

function plain(text) {
  const parts = text.split(/<(think|answer)>([\s\S]*?)(?:<\/\1>|$)/);
  const kinds = { think: (inside) => make("span", { class: "thought", title: "the thought" }, inside), answer: (inside) => make("mark", { title: "the answer" }, inside) };
  const nodes = [];
  for (let i = 0; i < parts.length; i += 3) {
    nodes.push(document.createTextNode(parts[i]));
    if (i + 2 < parts.length) nodes.push(kinds[parts[i + 1]](parts[i + 2]));
  }
  return nodes;
}
