// Names each cell by its column's header, which style.css shows on narrow screens, where a row is a card. With two
// columns the names would only repeat.
for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const titles = [...table.querySelectorAll("thead th")].map((header) => header.textContent.trim());
  table.setAttribute("data-cards", "");
  for (const row of table.querySelectorAll("tbody tr")) {
    if (titles.length > 2) [...row.children].forEach((cell, column) => cell.setAttribute("data-label", titles[column]));
  }
}
