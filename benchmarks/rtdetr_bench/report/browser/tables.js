// Sorts a table by the column whose head is pressed: numbers as numbers, ascending first; what has no value stays last.
"use strict";
(() => {
  const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?/i;
  const EMPTY = new Set(["", "-"]);

  function numberIn(text) {
    const found = NUMBER.exec(text);
    return found === null ? NaN : parseFloat(found[0]);
  }

  function sorted(rows, column, descending) {
    const texts = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
    const known = [...texts.values()].filter((text) => !EMPTY.has(text));
    const numeric = known.every((text) => !Number.isNaN(numberIn(text)));
    const compared = (one, other) =>
      (numeric && numberIn(one) - numberIn(other)) || one.localeCompare(other, undefined, { numeric: true });
    return [...rows].sort((one, other) => {
      const [a, b] = [texts.get(one), texts.get(other)];
      if (EMPTY.has(a) || EMPTY.has(b)) return EMPTY.has(a) - EMPTY.has(b);
      return descending ? compared(b, a) : compared(a, b);
    });
  }

  function sortBy(table, head) {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    body.append(...sorted([...body.rows], head.cellIndex, descending));
  }

  for (const table of document.querySelectorAll("table")) {
    if (table.tBodies[0].rows.length < 2) continue;
    for (const head of table.tHead.rows[0].cells) {
      if (head.textContent === "") continue;
      const button = document.createElement("button");
      button.type = "button";
      button.title = "sort by this column";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sortBy(table, head));
      head.append(button);
    }
  }
})();
