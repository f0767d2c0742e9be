// Values under the pointer. The page says everything without this script as well.
const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll("svg[data-plot]")) {
  const plot = JSON.parse(svg.dataset.plot);
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", plot.top);
  cursor.setAttribute("y2", plot.bottom);
  cursor.style.display = "none";
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const near = (points) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    const found = plot.series.filter((one) => one.points.length).map((one) => [one, near(one.points)]);
    if (!found.length) return;
    const at = found.reduce((a, b) => (Math.abs(b[1][0] - x) < Math.abs(a[1][0] - x) ? b : a))[1];
    cursor.setAttribute("x1", at[0]);
    cursor.setAttribute("x2", at[0]);
    cursor.style.display = "";
    tip.textContent = "";
    tip.append(`${plot.label} ${at[2]}`);
    for (const [one, point] of found) {
      tip.append(document.createElement("br"), `${one.name}: ${point[3]}`);
    }
    tip.style.opacity = 1;
    const left = event.clientX + 16;
    tip.style.left = `${Math.min(left, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 18}px`;
  });
  svg.addEventListener("pointerleave", () => {
    tip.style.opacity = 0;
    cursor.style.display = "none";
  });
}
