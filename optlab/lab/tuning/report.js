// Show the numbers of the value nearest to the pointer; without this script <title> shows them.
const readout = document.createElement("div");
readout.className = "readout";
readout.hidden = true;
document.body.append(readout);
let near = null;
function point(hit) {
  if (near) near.classList.remove("near");
  near = hit;
  readout.hidden = !hit;
  if (hit) hit.classList.add("near");
}
for (const chart of document.querySelectorAll(".chart")) {
  const hits = [...chart.querySelectorAll(".hit")].map((hit) => {
    const title = hit.querySelector("title");
    const { e, f } = hit.transform.baseVal[0].matrix;
    const text = title.textContent;
    title.remove();
    return { hit, text, x: e, y: f };
  });
  const show = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(
      chart.getScreenCTM().inverse());
    let best = null, least = 40 * 40;
    for (const candidate of hits) {
      const distance = (candidate.x - at.x) ** 2 + (candidate.y - at.y) ** 2;
      if (distance < least) [best, least] = [candidate, distance];
    }
    if (!best) return point(null);
    point(best.hit);
    readout.textContent = best.text;
    const box = readout.getBoundingClientRect();
    const spot = best.hit.getBoundingClientRect();
    const left = Math.min(spot.right + 8, document.documentElement.clientWidth - box.width - 4);
    const over = spot.top - box.height - 6;
    readout.style.left = `${Math.max(4, left)}px`;
    readout.style.top = `${over > 0 ? over : spot.bottom + 6}px`;
  };
  chart.addEventListener("pointermove", show);
  chart.addEventListener("pointerdown", show);
  chart.addEventListener("pointerleave", () => point(null));
}
addEventListener("scroll", () => point(null), { passive: true });

// Sort a table by the column whose heading is pressed; what is no number comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...table.tBodies[0].rows].map((row) => {
        const { dataset, textContent } = row.cells[column];
        return { row, text: textContent, value: parseFloat(dataset.value ?? "NaN") };
      });
      keyed.sort((a, b) => {
        const [first, second] = [isNaN(a.value), isNaN(b.value)];
        if (first !== second) return first - second;
        const order = first ? a.text.localeCompare(b.text) : a.value - b.value;
        return down ? -order : order;
      });
      table.tBodies[0].append(...keyed.map((entry) => entry.row));
    });
  });
}
