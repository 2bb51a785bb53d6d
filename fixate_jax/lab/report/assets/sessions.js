// The page viewer: choose a user and a session, look at overlays and slots.

const viewer = data.viewer;
const WIDE = window.innerWidth > 900;
const layers = viewer === null ? [] : ["Human", ...viewer.methods].map((name, index) => ({
  name, index, opacity: 0.8,
  // One over the other, three are too many to begin with.
  on: WIDE || index !== 1,
  what: index === 0 ? `share of ${viewer.signal} time, by slot` : "relevance, by token",
}));
const options = {
  side: { key: "v", label: "Side by side", on: WIDE },
  smooth: { key: "s", label: "Smooth relevance", on: true },
  grey: { key: "g", label: "Page in grey", on: true },
  boxes: { key: "b", label: "Slot boxes", on: true },
};
let current = 0;

const sessionsOf = (user) => viewer.sessions.flatMap((session, at) => (session.user === user ? [at] : []));

function decoded(look) {
  const bytes = Uint8Array.from(atob(look.relevance), (letter) => letter.charCodeAt(0));
  return { rows: look.rows, columns: look.columns, values: bytes };
}

/** Value between the centres of the tokens' cells, linear; flat beyond the outermost centres. */
function between({ rows, columns, values }, x, y) {
  const [u, v] = [clamp(x * columns - 0.5, 0, columns - 1), clamp(y * rows - 0.5, 0, rows - 1)];
  const [left, top] = [Math.floor(u), Math.floor(v)];
  const [right, below] = [Math.min(left + 1, columns - 1), Math.min(top + 1, rows - 1)];
  const at = (row, column) => values[row * columns + column];
  const upper = at(top, left) + (u - left) * (at(top, right) - at(top, left));
  const lower = at(below, left) + (u - left) * (at(below, right) - at(below, left));
  return upper + (v - top) * (lower - upper);
}

/** One overlay: its colour, denser where the value is high. */
function paint(canvas, session, layer) {
  const page = viewer.pages[session.page];
  canvas.width = 360;
  canvas.height = Math.max(1, Math.round((360 * page.height) / page.width));
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  const colour = getComputedStyle(canvas).getPropertyValue(`--ink-${layer.index % 4}`).split(" ").map(Number);
  const most = Math.max(...session.gaze, 1e-9);
  const grid = layer.index === 0 ? null : decoded(session.looks[layer.index - 1]);
  const value = (x, y) => {
    if (grid === null) {
      const slot = session.boxes.findIndex(([x0, y0, x1, y1]) => x >= x0 && x < x1 && y >= y0 && y < y1);
      return slot < 0 ? 0 : (255 * session.gaze[slot]) / most;
    }
    if (options.smooth.on) return between(grid, x, y);
    return grid.values[Math.floor(y * grid.rows) * grid.columns + Math.floor(x * grid.columns)];
  };
  for (let row = 0, i = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1, i += 4) {
      picture.data.set(colour, i);
      picture.data[i + 3] = value((column + 0.5) / width, (row + 0.5) / height);
    }
  }
  context.putImageData(picture, 0, 0);
}

/** Share of each slot in one layer: g of the person, a of a method. */
const shares = (session, layer) => (layer.index === 0 ? session.gaze : session.looks[layer.index - 1].attention);

function drawStage(session, shown, caption) {
  const page = viewer.pages[session.page];
  const frame = make("div", { class: "frame" });
  frame.append(make("img", {
    src: page.src, width: page.width, height: page.height, alt: `Page of session ${session.id}`,
    class: options.grey.on && shown.length > 0 ? "grey" : "",
  }));
  // The person's slots are few and plain, so they lie on top.
  for (const layer of [...shown].reverse()) {
    const canvas = make("canvas", { class: "layer", "data-layer": layer.index, "aria-hidden": "true" });
    frame.append(canvas);
    canvas.style.opacity = layer.opacity;
    canvas.layer = layer;
  }
  if (options.boxes.on) {
    session.boxes.forEach(([x0, y0, x1, y1], slot) => {
      const share = shown.length === 1 ? ` ${percent(shares(session, shown[0])[slot], 0)}` : "";
      const clicked = slot === session.click;
      const text = `${session.labels[slot]}${share}`;
      const box = make("div", { class: clicked ? "slot clicked" : "slot", "data-slot": slot });
      box.append(make("span", {}, clicked ? `✓ ${text}` : text));
      Object.assign(box.style, {
        left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%`,
      });
      frame.append(box);
    });
  }
  return make("figure", { class: "stage" }, frame, make("figcaption", {}, caption));
}

function drawStages() {
  const session = viewer.sessions[current];
  const on = layers.filter((layer) => layer.on);
  const separate = options.side.on && on.length > 1;
  const groups = separate ? on.map((layer) => [layer]) : [on];
  const box = byId("stages");
  box.className = separate ? "several" : "";
  box.replaceChildren(...groups.map((shown) => drawStage(
    session, shown, shown.map((layer) => layer.name).join(", ") || "The page alone",
  )));
  for (const canvas of box.querySelectorAll("canvas")) paint(canvas, session, canvas.layer);
}

function bar(index, share, most, note = "") {
  const fill = make("span", { class: "fill" });
  fill.style.width = `${share === null ? 0 : (100 * share) / most}%`;
  const text = make("span", { class: "value" }, `${percent(share)}${note}`);
  return make("div", { class: `bar ink-${index}` }, make("span", { class: "track" }, fill), text);
}

function drawSlots() {
  const session = viewer.sessions[current];
  const largest = (rows) => Math.max(1e-9, ...rows.flat().filter((share) => share !== null));
  const mostLooks = largest([session.gaze, ...session.looks.map((look) => look.attention)]);
  const mostClicks = largest(session.looks.map((look) => look.probabilities));
  const rows = session.labels.map((label, slot) => {
    const clicked = slot === session.click;
    const head = make("th", { scope: "row" }, label);
    if (clicked) head.append(" ", make("span", { class: "mark" }, "✓ clicked"));
    const looks = make("td", {}, ...layers.map((layer) => bar(layer.index, shares(session, layer)[slot], mostLooks)));
    const clicks = make("td", {}, ...session.looks.map((look, method) => bar(
      method + 1, look.probabilities[slot], mostClicks, look.answer === slot ? " ◂" : "",
    )));
    return make("tr", { class: clicked ? "clicked" : "", "data-slot": slot }, head, looks, clicks);
  });
  byId("slots").tBodies[0].replaceChildren(...rows);
  const names = layers.map((layer) => make("span", { class: `name ink-${layer.index}` }, layer.name));
  byId("slots").caption.replaceChildren(...names, " ◂ the method's own answer");
}

/** What the session comes to, for eyes and for screen readers. */
function say() {
  const session = viewer.sessions[current];
  const own = sessionsOf(session.user);
  const answers = session.looks.map((look, method) => {
    const scores = Object.entries(look.scores).map(([name, value]) => `${name} ${value === null ? "–" : value.toFixed(2)}`);
    const right = look.answer === session.click ? "right" : "wrong";
    const click = `clicks ${session.labels[look.answer]} (${right})`;
    return `${viewer.methods[method]}: ${[click, ...scores].join(", ")}.`;
  });
  const { total } = viewer.users[session.user];
  const shown = total > own.length ? ` shown, of ${total}` : "";
  const place = `Session ${own.indexOf(current) + 1} of ${own.length}${shown}`;
  const lines = [`${place}. The person clicked ${session.labels[session.click]}.`, ...answers];
  byId("said").replaceChildren(...lines.map((line) => make("span", {}, line)));
}

const addressOf = (session) => `#${new URLSearchParams({ user: viewer.users[session.user].name, session: session.id })}`;

function choose(index, { keep = true } = {}) {
  current = index;
  const session = viewer.sessions[index];
  const own = sessionsOf(session.user);
  byId("user").value = session.user;
  byId("session").replaceChildren(...own.map((at) => {
    const { id, labels, click } = viewer.sessions[at];
    return make("option", { value: at }, `${id}, clicked ${labels[click]}`);
  }));
  byId("session").value = index;
  byId("previous").disabled = own[0] === index;
  byId("next").disabled = own.at(-1) === index;
  byId("link").setAttribute("href", addressOf(session));
  if (keep) history.replaceState(null, "", addressOf(session));
  drawStages();
  drawSlots();
  say();
  markUser();
}

function step(by) {
  const own = sessionsOf(viewer.sessions[current].user);
  choose(own[clamp(own.indexOf(current) + by, 0, own.length - 1)]);
}

function stepUser(by) {
  const users = viewer.users.length;
  choose(sessionsOf((viewer.sessions[current].user + by + users) % users)[0]);
}

/** The session that the address names, or -1. */
function named() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const fits = ({ id, user }) => id === wanted.get("session") && viewer.users[user].name === wanted.get("user");
  return viewer.sessions.findIndex(fits);
}

function chooseNamed() {
  const found = named();
  if (found >= 0) choose(found, { keep: false });
}

function setLayer(layer, on) {
  layer.on = on;
  layer.box.checked = on;
  drawStages();
}

function setOption(option, on) {
  option.on = on;
  option.box.checked = on;
  drawStages();
}

function layerControl(layer) {
  layer.box = make("input", { type: "checkbox", "aria-keyshortcuts": layer.index + 1 });
  layer.box.checked = layer.on;
  layer.box.addEventListener("change", () => setLayer(layer, layer.box.checked));
  const slider = make("input", { type: "range", min: 0, max: 100, step: 5, value: 100 * layer.opacity });
  slider.setAttribute("aria-label", `Opacity of ${layer.name}`);
  slider.addEventListener("input", () => {
    layer.opacity = slider.value / 100;
    for (const canvas of document.querySelectorAll(`canvas[data-layer="${layer.index}"]`)) {
      canvas.style.opacity = layer.opacity;
    }
  });
  const label = make("label", {}, layer.box, make("span", { class: `swatch ink-${layer.index}` }), layer.name);
  return make("div", { class: "layer-control" }, label, make("span", { class: "what" }, layer.what), slider);
}

function optionControl(option) {
  option.box = make("input", { type: "checkbox", "aria-keyshortcuts": option.key.toUpperCase() });
  option.box.checked = option.on;
  option.box.addEventListener("change", () => setOption(option, option.box.checked));
  return make("label", {}, option.box, option.label);
}

/** A slot under the pointer is shown on every page and in the table. */
function markSlots(event) {
  const slot = event.type === "pointerover" ? event.target.closest("[data-slot]")?.dataset.slot : undefined;
  for (const part of byId("viewer").querySelectorAll("[data-slot]")) {
    part.classList.toggle("marked", part.dataset.slot === slot);
  }
}

function startViewer() {
  byId("layers").append(...layers.map(layerControl));
  byId("options").append(...Object.values(options).map(optionControl));
  byId("user").append(...viewer.users.map((user, at) => make("option", { value: at }, user.name)));
  byId("user").addEventListener("change", (event) => choose(sessionsOf(Number(event.target.value))[0]));
  byId("session").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("viewer").addEventListener("pointerover", markSlots);
  byId("viewer").addEventListener("pointerleave", markSlots);
  window.addEventListener("hashchange", chooseNamed);
  choose(Math.max(named(), 0), { keep: false });
}
