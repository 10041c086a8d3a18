// The table of verdicts, sorted by a click on a heading and filtered by words, report and verdict. Reads nothing.
document.addEventListener("DOMContentLoaded", () => {
  const table = document.querySelector(".verdicts table");
  if (!table) return;
  const [VERDICT, REPORT] = [1, 6];
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const cell = (row, i) => row.cells[i].textContent.trim();
  const number = (text) => {
    const found = text.replace(/\u2212/g, "-").replace(/,/g, "").match(/^-?[\d.]+/);
    return found ? Number(found[0]) : NaN;
  };

  const tools = document.createElement("div");
  tools.className = "verdicts-tools";
  const field = (label, control) => {
    const element = document.createElement("label");
    element.append(label, control);
    tools.append(element);
    return control;
  };
  const choice = (label, values) => {
    const select = document.createElement("select");
    for (const value of ["all", ...new Set(values)]) select.add(new Option(value, value));
    return field(label, select);
  };
  const words = field("words", Object.assign(document.createElement("input"), { type: "search" }));
  const kind = (row) => cell(row, VERDICT).replace(" (under revision)", "");
  const report = choice("report", rows.map((row) => cell(row, REPORT).split(",")[0]));
  const verdict = choice("verdict", rows.map(kind));
  const count = document.createElement("output");
  tools.append(count);
  (table.closest(".scroll") || table).before(tools);

  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        wanted.every((word) => text.includes(word)) &&
        (report.value === "all" || cell(row, REPORT).split(",")[0] === report.value) &&
        (verdict.value === "all" || kind(row) === verdict.value)
      );
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} claims`;
  };
  for (const control of [words, report, verdict]) control.addEventListener("input", filter);
  filter();

  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => {
        const [x, y] = [cell(a, i), cell(b, i)];
        const [p, q] = [number(x), number(y)];
        if (Number.isNaN(p) !== Number.isNaN(q)) return Number.isNaN(p) ? 1 : -1; // what is no number comes last
        return (up ? 1 : -1) * (Number.isNaN(p) ? x.localeCompare(y) : p - q);
      };
      body.append(...rows.sort(order));
    });
  });
});
