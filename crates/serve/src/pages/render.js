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
  const kinds = { think: (inside) => make("span", { class: "thought", title: "the thought" }, inside.trim()), answer: (inside) => make("mark", { title: "the answer" }, inside) };
  const nodes = [];
  for (let i = 0; i < parts.length; i += 3) {
    nodes.push(document.createTextNode(parts[i]));
    if (i + 2 < parts.length) nodes.push(kinds[parts[i + 1]](parts[i + 2]));
  }
  return nodes;
}

/**
 * Fills a table. On a narrow screen each row stands as a block (style.css), its cells under their columns' names; roles are stated, since
 * a table that is laid out as blocks would be none to a screen reader. Cells are texts or elements.
 */
export function fillTable(table, caption, columns, rows) {
  const cell = (content, i) => {
    const whole = content instanceof Node && content.tagName === "TD" ? content : make("td", {}, content);
    whole.setAttribute("role", "cell");
    if (columns[i]) whole.dataset.column = columns[i];
    return whole;
  };
  const head = columns.map((name) => make("th", { scope: "col", role: "columnheader" }, name));
  const body = rows.map((cells) => make("tr", { role: "row" }, ...cells.map(cell)));
  table.setAttribute("role", "table");
  table.replaceChildren(
    ...(caption ? [make("caption", { role: "caption" }, caption)] : []),
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...head)),
    make("tbody", { role: "rowgroup" }, ...body),
  );
  return table;
}
