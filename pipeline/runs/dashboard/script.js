// Sorting and filtering the list of runs, and keeping a page up to date while a run is in progress.
"use strict";
const REFRESH = 4000, exported = document.currentScript.hasAttribute("data-exported");
let filter = "", sorted = null;

function key(row, column) {
  const cell = row.cells[column];
  const text = cell ? cell.dataset.sort ?? cell.textContent.trim() : "";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function sort(table, column, down) {
  const body = table.tBodies[0], direction = down ? -1 : 1;
  const rows = [...body.rows].map(row => [key(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");  // what is missing comes last, whatever the direction
    return direction * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  });
  body.append(...rows.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  sorted = [column, down];
}

function show() {
  const rows = [...document.querySelectorAll("#list tbody tr")], words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  const count = document.getElementById("count");
  if (count) count.textContent = words.length ? `${shown} of ${rows.length}` : "";
}

function equip() {
  const table = document.getElementById("list");
  if (!table) return;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.onclick = () => {  // figures the largest first
      const now = head.getAttribute("aria-sort");
      sort(table, column, now ? now === "ascending" : head.classList.contains("number"));
    };
    head.append(button);
  });
  const field = document.getElementById("filter");
  document.getElementById("filtering").hidden = false;
  field.value = filter;
  field.oninput = () => { filter = field.value; show(); };
  if (sorted) sort(table, ...sorted);
  show();
}

async function refresh() {
  const main = document.getElementById("main");
  if (!main.hasAttribute("data-running")) return;
  try {
    const response = await fetch(location.href);
    if (response.ok) {
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("main");
      // Not while somebody reads an opened part or chooses something: it would close under their hands.
      const busy = main.querySelector("details[open]") || main.contains(document.activeElement) && document.activeElement !== main;
      if (fresh && !busy) { main.replaceWith(fresh); equip(); }
    }
  } catch { /* the server is gone; what was last known stays */ }
  setTimeout(refresh, REFRESH);
}

equip();
if (!exported) setTimeout(refresh, REFRESH);
