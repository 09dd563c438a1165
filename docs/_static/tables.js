// The label of each cell, for tables.css, which shows tables as lists on a phone. The roles are those
// that a table loses in some browsers when it is shown otherwise.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.docutils")) {
    const labels = [...(table.tHead?.rows[0]?.cells ?? [])].map((cell) => cell.textContent.trim());
    table.setAttribute("role", "table");
    for (const row of table.rows) {
      row.setAttribute("role", "row");
      [...row.cells].forEach((cell, number) => {
        cell.setAttribute("role", cell.tagName === "TH" ? "columnheader" : "cell");
        cell.dataset.label = labels[number] ?? "";
        cell.classList.toggle("is-empty", cell.textContent.trim() === "");
      });
    }
    table.classList.add("is-labelled");
  }
});
