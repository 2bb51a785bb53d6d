// A point for each user, before and after; choosing one shows its sessions.

const MARGIN = { left: 56, right: 16, top: 16, bottom: 46 };

/** The drawing's size, as wide as its place, so that its letters are as large as others. */
function plotSize() {
  const width = clamp(byId("points").parentElement.clientWidth, 280, 640);
  const height = Math.round(0.66 * width);
  return { width, height, across: width - MARGIN.left - MARGIN.right, upwards: height - MARGIN.top - MARGIN.bottom };
}

/** Round numbers between two ends, three to eight of them. */
function ticks(low, high) {
  const rough = 10 ** Math.floor(Math.log10((high - low) / 3));
  const step = [5, 2, 1].map((times) => times * rough).find((size) => (high - low) / size >= 3);
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step) - first + 1;
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  return Array.from({ length: count }, (_, i) => [(first + i) * step, ((first + i) * step).toFixed(digits)]);
}

function markUser() {
  const name = viewer.users[viewer.sessions[current].user].name;
  for (const point of document.querySelectorAll("#points .point")) {
    point.classList.toggle("chosen", point.user === name);
  }
}

function showTip(point) {
  const tip = byId("tip");
  tip.textContent = point.getAttribute("aria-label");
  tip.hidden = false;
  const [spot, frame] = [point.getBoundingClientRect(), tip.parentElement.getBoundingClientRect()];
  const most = Math.max(0, frame.width - tip.offsetWidth);
  tip.style.left = `${clamp(spot.left - frame.left - tip.offsetWidth / 2, 0, most)}px`;
  tip.style.top = `${spot.top - frame.top - tip.offsetHeight - 8}px`;
}

function pointOf(points, at, place) {
  const [before, after] = [points.before[at], points.after[at]];
  const better = points.lower ? after < before : after > before;
  const known = viewer === null ? -1 : viewer.users.findIndex((user) => user.name === points.users[at]);
  const kind = before === after ? "same" : better ? "better" : "worse";
  const word = { same: "the same", better: "better", worse: "worse" }[kind];
  const label = `User ${points.users[at]}: ${points.names[0]} ${before.toFixed(3)}, ${points.names[1]} ${after.toFixed(3)}, ${word}`;
  const [x, y] = place(before, after);
  const shape = kind === "worse" ? `M${x - 5} ${y - 5}h10v10h-10z` : `M${x - 6} ${y}a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z`;
  const role = known < 0 ? "img" : "button";
  const point = make("path", { d: shape, class: `point ${kind}`, role, tabindex: -1, "aria-label": label });
  point.user = points.users[at];
  if (known >= 0) point.addEventListener("click", () => choose(sessionsOf(known)[0]));
  point.addEventListener("focus", () => showTip(point));
  point.addEventListener("blur", () => { byId("tip").hidden = true; });
  point.addEventListener("pointerenter", () => showTip(point));
  point.addEventListener("pointerleave", () => { byId("tip").hidden = true; });
  return point;
}

function axisTexts(low, high, points, size, place) {
  const [bottom, right] = [size.height - MARGIN.bottom, size.width - MARGIN.right];
  const made = [];
  const text = (x, y, anchor, value) => made.push(make("text", { x, y, "text-anchor": anchor }, value));
  for (const [value, shown] of ticks(low, high)) {
    const [x, y] = place(value, value);
    made.push(make("path", { class: "grid", d: `M${MARGIN.left} ${y}H${right}M${x} ${MARGIN.top}V${bottom}` }));
    text(x, bottom + 16, "middle", shown);
    text(MARGIN.left - 6, y + 4, "end", shown);
  }
  text(MARGIN.left + size.across / 2, size.height - 8, "middle", `${points.names[0]} →`);
  const up = { transform: `translate(14 ${MARGIN.top + size.upwards / 2}) rotate(-90)`, "text-anchor": "middle" };
  made.push(make("text", up, `${points.names[1]} →`));
  if (points.lower) text(right - 8, bottom - 8, "end", "better below the line");
  else text(MARGIN.left + 8, MARGIN.top + 16, "start", "better above the line");
  return made;
}

function drawPoints() {
  const points = data.improvement[Number(byId("metric").value)];
  const known = points.users.map((_, at) => at).filter((at) => points.before[at] !== null && points.after[at] !== null);
  const values = known.flatMap((at) => [points.before[at], points.after[at]]);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const margin = 0.06 * (most - least) || 0.5;
  const [low, high] = [least - margin, most + margin];
  const size = plotSize();
  const place = (before, after) => [
    MARGIN.left + (size.across * (before - low)) / (high - low),
    size.height - MARGIN.bottom - (size.upwards * (after - low)) / (high - low),
  ];
  const [start, end] = [place(low, low), place(high, high)];
  const diagonal = make("path", { class: "diagonal", d: `M${start.join(" ")}L${end.join(" ")}` });
  const order = known.sort((a, b) => points.before[a] - points.before[b]);
  const drawn = order.map((at) => pointOf(points, at, place));
  byId("points").setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  byId("points").replaceChildren(...axisTexts(low, high, points, size, place), diagonal, ...drawn);
  drawn[0]?.setAttribute("tabindex", 0);
  const better = drawn.filter((point) => point.classList.contains("better")).length;
  byId("points-said").textContent =
    `${better} of ${drawn.length} users are better with ${points.names[1]} (round points; square ones are worse), ` +
    `${points.lower ? "lower" : "higher"} ${points.metric} being better.`;
  if (viewer !== null) markUser();
}

/** One stop for the Tab key; arrow keys go from point to point. */
function movePoint(event) {
  const points = [...byId("points").querySelectorAll(".point")];
  const at = points.indexOf(event.target);
  if (at < 0) return;
  const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
  if (event.key === "Enter" || event.key === " ") event.target.dispatchEvent(new Event("click"));
  else if (by === undefined) return;
  else {
    const next = points[clamp(at + by, 0, points.length - 1)];
    event.target.setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  }
  event.preventDefault();
  event.stopPropagation();
}

function startUsers() {
  const metric = byId("metric");
  metric.append(...data.improvement.map((points, at) => make("option", { value: at }, points.metric)));
  metric.addEventListener("change", drawPoints);
  window.addEventListener("resize", drawPoints);
  byId("points").addEventListener("keydown", movePoint);
  drawPoints();
}
