// Keys, and the start. The files are joined into the report's one script, which loads nothing.

const anywhere = { d: () => showTheme(theme + 1), "?": () => byId("help").showModal() };
const keys = viewer === null ? anywhere : {
  ...anywhere,
  ...Object.fromEntries(layers.map((layer) => [String(layer.index + 1), () => setLayer(layer, !layer.on)])),
  ...Object.fromEntries(Object.values(options).map((option) => [option.key, () => setOption(option, !option.on)])),
  ArrowLeft: (event) => (event.shiftKey ? stepUser(-1) : step(-1)),
  ArrowRight: (event) => (event.shiftKey ? stepUser(1) : step(1)),
};

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || byId("help").open) return;
  // These need the keys themselves: a slider or a box that scrolls the arrows, a choice its letters too.
  const arrow = event.key.startsWith("Arrow");
  if (event.target.closest("select") && event.key !== "?") return;
  if (arrow && event.target.closest("input[type=range], .wide")) return;
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act === undefined) return;
  event.preventDefault();
  act(event);
}

showTheme(0);
document.querySelectorAll("table.sortable").forEach(sortable);
for (const line of document.querySelectorAll(".for-viewer")) line.hidden = viewer === null;
if (data.improvement.length > 0) startUsers();
if (viewer !== null) startViewer();
byId("theme").addEventListener("click", () => showTheme(theme + 1));
byId("help-open").addEventListener("click", () => byId("help").showModal());
document.addEventListener("keydown", onKey);
