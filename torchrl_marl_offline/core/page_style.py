"""The look of a report's page on a screen, on a telephone and on paper, and the script that sorts its tables."""

from __future__ import annotations

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 1.5rem auto; padding: 0 1rem; color: #1b1b1b;
  overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; break-after: avoid; }
table { border-collapse: collapse; margin: .8rem 0; max-width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .4rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
  overflow-wrap: break-word; }
td:first-child { overflow-wrap: anywhere; }
th.number, td.number { text-align: right; }
td.number { white-space: nowrap; }
td small { color: #444; font-size: 12px; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
th[aria-sort] { cursor: pointer; }
th[aria-sort]::after { content: "\\2195"; color: #767676; padding-left: .2em; }
th[aria-sort=ascending]::after { content: "\\2191"; color: #0072b2; }
th[aria-sort=descending]::after { content: "\\2193"; color: #0072b2; }
a { color: #0060a0; }
img { max-width: 100%; height: auto; }
figure { margin: .8rem 0; break-inside: avoid; }
figcaption { font-size: 13px; color: #444; }
p.warning { background: #fff3cd; border-left: 4px solid #e69f00; padding: .5rem .8rem; }
summary { cursor: pointer; }
@media screen and (max-width: 640px) {
  body { margin: .5rem auto; padding: 0 .6rem; }
  thead { display: none; }
  table, tbody, tr, td { display: block; width: 100%; box-sizing: border-box; }
  tr { border: 1px solid #bbb; border-radius: 4px; margin: .6rem 0; padding: .2rem 0; }
  td, td.number { display: flex; align-items: baseline; gap: .5rem; border: 0; text-align: right; }
  td:empty { display: none; }
  td::before { content: attr(data-label); color: #444; text-align: left; white-space: normal; margin-right: auto; }
}
@page { size: A4 landscape; margin: 12mm; }
@media print {
  body { font-size: 9pt; max-width: none; margin: 0; padding: 0; }
  th, td { padding: .1rem .3rem; }
  td small { font-size: 7.5pt; }
  tr { break-inside: avoid; }
  thead { display: table-header-group; }
  img { max-height: 88mm; max-width: 100%; }
  th[aria-sort]::after { content: none; }
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.className === "number" ? parseFloat(cell.textContent.replace(/,(?=\\d{3})/g, "")) : cell.textContent;
  };
  const compare = (a, b, sign) => typeof a !== "number" ? sign * a.localeCompare(b, undefined, { numeric: true })
    : (Number.isNaN(a) - Number.isNaN(b)) || sign * (a - b);
  heads.forEach((head, column) => {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "none" ? head.className === "number"
        : head.getAttribute("aria-sort") === "ascending";
      for (const each of heads) each.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = [...body.rows].sort((a, b) => compare(value(a, column), value(b, column), down ? -1 : 1));
      body.append(...sorted);
    };
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    head.title = "sort";
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
}
"""
