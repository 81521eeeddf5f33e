"use strict";
// Sorts and filters the overview, compares chosen rows. Numbers come from data-v, everything else from the text; empty cells stay last.
(() => {
  const table = document.getElementById("runs");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const text = (cell) => {
    const first = cell.firstElementChild;
    return (first && first.tagName === "SPAN" ? cell : cell.firstChild || cell).textContent.trim();
  };
  const key = (cell) => {
    if (cell.dataset.v !== undefined) return cell.dataset.v === "" ? null : Number(cell.dataset.v);
    const shown = text(cell);
    return shown === "–" ? null : shown !== "" && !Number.isNaN(Number(shown)) ? Number(shown) : shown;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  const sort = (column) => {
    const falling = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head, index) =>
      head.setAttribute("aria-sort", index === column ? (falling ? "descending" : "ascending") : "none"));
    const rows = Array.from(body.rows, (row) => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return falling ? compare(b, a) : compare(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  };
  heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => sort(index)));

  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => content.includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${body.rows.length} runs`;
  });

  // Where the configurations of the chosen runs differ. Rows keep their number when they are sorted.
  const differences = JSON.parse(document.getElementById("differences-data").textContent);
  const chosen = document.getElementById("chosen");
  const original = Array.from(body.rows);
  const cell = (row, tag, content) => {
    const made = row.appendChild(document.createElement(tag));
    made.textContent = content;
  };
  body.addEventListener("change", (event) => {
    if (!event.target.classList.contains("pick")) return;
    const numbers = original.flatMap((row, number) => (row.querySelector(".pick").checked ? [number] : []));
    chosen.replaceChildren();
    if (numbers.length < 2) return;
    const made = chosen.appendChild(document.createElement("table"));
    const header = made.createTHead().insertRow();
    cell(header, "th", "differs");
    numbers.forEach((number) => cell(header, "th", text(original[number].cells[0])));
    const rows = made.createTBody();
    for (const [name, values, places] of differences) {
      if (numbers.every((number) => places[number] === places[numbers[0]])) continue;
      const row = rows.insertRow();
      cell(row, "th", name);
      numbers.forEach((number) => cell(row, "td", values[places[number]] ?? "–"));
    }
    if (!rows.rows.length) chosen.textContent = "Their configurations are the same.";
  });
})();
