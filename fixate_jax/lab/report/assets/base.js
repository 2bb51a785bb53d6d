// Elements, colours and tables: what every report has.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
document.documentElement.classList.add("with-script");

/** A new element with attributes, and with children that are elements or plain text. */
function make(tag, attributes = {}, ...children) {
  // Elements of a drawing live in the namespace of the drawing in the page.
  const space = SHAPES.has(tag) ? byId("points").namespaceURI : document.documentElement.namespaceURI;
  const made = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
const SHAPES = new Set(["g", "path", "circle", "text", "rect", "title"]);

/** A share of 1 in per cent; small ones with a digit after the point, unless told otherwise. */
const percent = (share, digits = share < 0.0995 ? 1 : 0) => (share === null ? "–" : `${(100 * share).toFixed(digits)} %`);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

const THEMES = ["system", "light", "dark"];
let theme = 0;

function showTheme(next) {
  theme = next % THEMES.length;
  document.documentElement.dataset.theme = THEMES[theme];
  byId("theme").textContent = `Colours: ${THEMES[theme]}`;
}

/** Numbers by value, texts as people sort them, and what is missing always last. */
function compare(a, b, direction) {
  const missing = (text) => text === "" || text === "–";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const [x, y] = [Number(a), Number(b)];
  const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  return direction * order;
}

function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", class: "sort" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (before === "descending") return body.append(...original);
      const direction = before === "ascending" ? -1 : 1;
      head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent;
      return body.append(...[...original].sort((a, b) => compare(text(a), text(b), direction)));
    });
  });
}
