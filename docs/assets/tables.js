// Names each cell by its column's header, which style.css shows on narrow screens, where a row is a card.
for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const titles = [...table.querySelectorAll("thead th")].map((header) => header.textContent.trim());
  if (titles.length < 3) continue;
  table.setAttribute("data-cards", "");
  for (const row of table.querySelectorAll("tbody tr")) {
    [...row.children].forEach((cell, column) => cell.setAttribute("data-label", titles[column]));
  }
}
