"use strict";
// Identifiers and labels come from strangers: they are set as text, never as markup.
const island = JSON.parse(document.getElementById("island").textContent);
const dialog = document.getElementById("behind");

function open(button) {
  const keys = island.cells[button.dataset.cell];
  document.getElementById("behind-title").textContent = button.dataset.title;
  const count = Number(button.dataset.count);
  document.getElementById("behind-count").textContent =
    keys.length < count ? `${keys.length} of ${count} images, the highest scores first` : `${count} image${count === 1 ? "" : "s"}`;
  document.getElementById("behind-images").replaceChildren(...keys.map(key => {
    const item = document.createElement("li"), entry = island.images[key];
    if (!entry) {
      item.textContent = "This image can't be shown.";
      return item;
    }
    const image = document.createElement("img");
    image.src = entry.src;
    image.alt = `image ${entry.id}`;
    item.append(image);
    for (const text of [entry.id, `actual ${entry.actual}`, `predicted ${entry.predicted}`]) {
      const line = document.createElement("p");
      line.textContent = text;
      item.append(line);
    }
    return item;
  }));
  dialog.showModal();
}

for (const button of document.querySelectorAll("button[data-cell]")) {
  button.addEventListener("click", () => open(button));
}
document.getElementById("behind-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });

// Sorting: by number where a cell has data-value, empty ones last; else by text.
function compare(a, b, column) {
  const [left, right] = [a, b].map(row => row.cells[column]);
  if (left.dataset.value === undefined) return left.textContent.localeCompare(right.textContent);
  const [x, y] = [left, right].map(cell => cell.dataset.value === "" ? NaN : Number(cell.dataset.value));
  return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : x - y;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const missing = row => row.cells[column].dataset.value === "";
        const order = compare(a, b, column);
        return missing(a) || missing(b) ? order : down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
