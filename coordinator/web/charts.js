// Two charts as SVG: memory over time as stacked steps, and wakes as a histogram on a logarithmic axis.
import { clock, el, seconds, size, svg } from "./words.js";

const HEIGHT = 170;
const TALL = 250;  // of the histogram, beside the decisions
const LEFT = 62;
const INSET = 4;
const LEAST = 30;
const FOOT = 20;
const KINDS = ["weights", "kv", "overhead", "cached"];
const COLOURS = 8;

// Which of the eight colours a name has: the same for as long as the page is open.
const known = new Map();
export function colour(name) {
  if (!known.has(name)) known.set(name, known.size);
  return known.get(name) < COLOURS ? `s${known.get(name)}` : "rest";
}

// samples: of one device, oldest first; each holds until the next. by: "models" or "kinds"; most: seconds shown, less
// where less is known; width: in pixels, so that letters keep their size.
export function memory(samples, by, most, now, width) {
  const span = Math.min(most, Math.max(LEAST, now - (samples[0]?.at ?? now)));
  const from = now - span;
  const shown = samples.filter((one, n) => one.at >= from || !samples[n + 1] || samples[n + 1].at > from);
  const capacity = Math.max(1, ...shown.map((one) => one.capacity));
  const names = by === "kinds" ? KINDS : [...new Set(shown.flatMap((one) => Object.keys(one.models)))].sort();
  const x = (at) => LEFT + (width - LEFT) * (Math.max(at, from) - from) / span;
  const y = (bytes) => HEIGHT - FOOT - (HEIGHT - FOOT - 8) * bytes / capacity;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": describe(samples, by) });
  const floor = shown.map(() => 0);
  for (const name of names) {
    const top = shown.map((one, n) => floor[n] + (one[by][name] ?? 0));
    picture.append(svg("path", { class: colour(name), d: band(shown, floor, top, x, y, now) }));
    top.forEach((value, n) => { floor[n] = value; });
  }
  picture.append(svg("path", { class: "grid", d: `M${LEFT} ${y(0)}H${width}M${LEFT} ${y(capacity / 2)}H${width}` }));
  picture.append(svg("path", { class: "cap", d: `M${LEFT} ${y(capacity)}H${width}` }));
  for (const [bytes, where] of [[capacity, 4], [capacity / 2, 4], [0, 0]]) {
    picture.append(svg("text", { x: LEFT - 6, y: y(bytes) + where, "text-anchor": "end" }, size(bytes)));
  }
  for (const part of [0, 0.5, 1]) {
    const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
    picture.append(svg("text", { x: x(from + span * part), y: HEIGHT - 5, "text-anchor": anchor }, clock(from + span * part)));
  }
  return [picture, legend(names.filter((name) => shown.some((one) => one[by][name])))];
}

function band(shown, floor, top, x, y, now) {
  const until = (n) => x(shown[n + 1]?.at ?? now);
  const there = shown.map((one, n) => `${x(one.at)} ${y(top[n])}H${until(n)}`);
  const back = shown.map((one, n) => `L${until(n)} ${y(floor[n])}H${x(one.at)}`).reverse();
  return shown.length ? `M${there.join("L")}${back.join("")}Z` : "";
}

function describe(samples, by) {
  const last = samples[samples.length - 1];
  if (!last) return "nothing is known yet";
  const parts = Object.entries(last[by]).filter(([, bytes]) => bytes).map(([name, bytes]) => `${name} ${size(bytes)}`);
  return `Memory now: ${parts.join(", ") || "empty"}, of ${size(last.capacity)}`;
}

function legend(names) {
  return el("ul", { class: "legend" }, ...names.map((name) =>
    el("li", {}, svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, rx: 2, class: colour(name) })), ` ${name}`)));
}

const PATHS = ["hot", "warm", "cold"];
const PATH_COLOUR = { hot: "s1", warm: "s0", cold: "s2" };
const EDGES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100];

// wakes: restores that ended; their time is what a request waits: from the first request to resident.
export function histogram(wakes, width) {
  if (!wakes.length) return [el("p", { class: "quiet" }, "No wake was seen since this coordinator began to lead.")];
  const bins = EDGES.map(() => ({ hot: 0, warm: 0, cold: 0 }));
  for (const wake of wakes) {
    const found = EDGES.findIndex((edge) => wake.waited + wake.seconds <= edge);
    bins[found < 0 ? EDGES.length - 1 : found][wake.path] += 1;
  }
  const most = Math.max(...bins.map((bin) => bin.hot + bin.warm + bin.cold));
  const step = (width - INSET) / EDGES.length;
  const height = width > 420 ? TALL : HEIGHT;
  const scale = (height - FOOT - 20) / most;
  const times = wakes.map((wake) => wake.waited + wake.seconds).sort((a, b) => a - b);
  const rank = (share) => times[Math.min(times.length - 1, Math.floor(times.length * share))];
  const told = `${wakes.length} wakes: half within ${seconds(rank(0.5))}, 95 % within ${seconds(rank(0.95))}`;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told });
  bins.forEach((bin, n) => {
    let y = height - FOOT;
    for (const path of PATHS) {
      const tall = bin[path] * scale;
      y -= tall;
      if (tall) picture.append(svg("rect", { x: INSET + n * step + 2, y, width: step - 4, height: tall, class: PATH_COLOUR[path] }));
    }
    const all = bin.hot + bin.warm + bin.cold;
    if (all) picture.append(svg("text", { x: INSET + (n + 0.5) * step, y: y - 4, "text-anchor": "middle" }, String(all)));
    if (n % 3 === 2) picture.append(svg("text", { x: INSET + (n + 1) * step, y: height - 5, "text-anchor": "middle" }, seconds(EDGES[n]).replace(".0", "")));
  });
  picture.append(svg("path", { class: "grid", d: `M${INSET} ${height - FOOT}H${width}` }));
  const names = PATHS.filter((path) => wakes.some((wake) => wake.path === path));
  const words = { hot: "hot: pages still held it", warm: "warm: from the host's copy", cold: "cold: from a start" };
  return [el("p", {}, told), picture, el("ul", { class: "legend" }, ...names.map((path) =>
    el("li", {}, svg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("rect", { width: 10, height: 10, rx: 2, class: PATH_COLOUR[path] })), ` ${words[path]}`)))];
}
