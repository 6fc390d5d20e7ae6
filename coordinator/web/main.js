// What the page knows, and how it stays live: one stream of events, drawn at most once a frame.
import { call, follow, key, Refused } from "./api.js";
import { histogram, memory } from "./charts.js";
import { Decisions } from "./decisions.js";
import { Models } from "./models.js";
import { el, text } from "./words.js";

const at = (id) => document.getElementById(id);
const seen = { state: null, samples: [], switches: [], decisions: [], ttft: {}, skew: 0 };
const models = new Models(at("rows"), act);
const decisions = new Decisions(at("decisions"));
let drawing = false;
let keyed = () => {};
let stream = null;

// ---- drawing

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; if (seen.state) paint(seen.state); });
}

function paint(state) {
  text(at("role"), state.leading ? "this coordinator leads" : "this coordinator stands by; switches are recorded by the leader");
  paintDevices(state);
  const last = new Map(seen.switches.filter((one) => one.path).map((one) => [one.model, one]));
  at("none").hidden = models.show(state, last, seen.ttft, at("filter").value) > 0;
  const of = at("of").value;
  at("wakes").replaceChildren(...histogram(seen.switches.filter((one) => one.path && (!of || one.model === of)), wide(at("wakes"))));
  const about = at("about").value;
  decisions.show(seen.decisions, about, new Set(state.engines.filter((one) => one.model === about).map((one) => one.id)));
  for (const select of [at("of"), at("about")]) choices(select, state.models.map((one) => one.id));
}

function paintDevices(state) {
  const now = Date.now() / 1000 + seen.skew;
  const shown = state.devices.map((device) => {
    const samples = seen.samples.filter((one) => one.device === device.id);
    const doing = device.open ? `${device.open.order} ${device.open.holder.engine}` : device.present ? "at rest" : "its daemon is away";
    const head = el("div", { class: "head" }, el("h3", {}, device.id), el("p", { class: device.open ? "restoring" : "quiet" }, doing));
    return el("div", { class: "device", "data-device": device.id }, head, ...memory(samples, at("by").value, Number(at("span").value), now, wide(at("devices"))));
  });
  if (shown.length) at("devices").replaceChildren(...shown);
}

function wide(box) {
  return Math.max(240, box.clientWidth);
}

function choices(select, names) {
  const had = [...select.options].slice(1).map((one) => one.value).join("\n");
  if (had === names.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...names.map((name) => el("option", { value: name }, name)));
  select.value = names.includes(chosen) ? chosen : "";
}

function status(kind, words) {
  at("status").className = `badge ${kind}`;
  text(at("status"), words);
}

function notice(words) {
  at("notice").hidden = !words;
  text(at("notice"), words);
}

// ---- staying live

const hear = {
  state: (state) => { seen.state = state; },
  sample: (sample) => { seen.samples.push(sample); seen.skew = sample.at - Date.now() / 1000; },
  switch: (one) => { seen.switches.push(one); refresh(); },
  decision: (decision) => { seen.decisions = [decision, ...seen.decisions.filter((one) => one.n !== decision.n)]; },
};

// What the server remembers replaces what it can tell better; older samples of an earlier life of it are kept.
async function recall() {
  const [history, decided] = await Promise.all([call("GET", "/v1/history"), call("GET", "/v1/decisions?limit=200")]);
  seen.samples = merged(seen.samples, history.samples).slice(-8192);
  seen.switches = merged(seen.switches, history.switches).slice(-2048);
  seen.ttft = history.ttft;
  const newest = decided.decisions[0]?.n ?? -1;
  seen.decisions = [...seen.decisions.filter((one) => one.n > newest), ...decided.decisions];
}

function merged(old, fresh) {
  if (!fresh.length) return old;
  const [first, last] = [fresh[0].at, fresh[fresh.length - 1].at];
  return [...old.filter((one) => one.at < first), ...fresh, ...old.filter((one) => one.at > last)];
}

let refreshing = 0;
function refresh() {
  clearTimeout(refreshing);
  refreshing = setTimeout(async () => { try { seen.ttft = (await call("GET", "/v1/history")).ttft; draw(); } catch { /* the stream says what is wrong */ } }, 1000);
}

async function live() {
  let pause = 500;
  for (;;) {
    stream = new AbortController();
    let recalled = false;
    try {
      await follow("/v1/events?kinds=state,sample,switch,decision", (kind, value) => {
        pause = 500;
        status("live", "live");
        notice("");
        hear[kind]?.(value);
        draw();
        if (recalled) return;
        recalled = true;  // after the stream stands, so that nothing falls between the two
        recall().then(draw, (error) => notice(error.message));
      }, stream.signal);
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        status("lost", "no key");
        if (!(await askKey())) await new Promise((done) => { keyed = done; });
        continue;
      }
      if (error instanceof Refused) notice(error.message);
    }
    status("wait", "reconnecting");
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(pause * 2, 8000);
  }
}

// ---- doing

const SURE = {
  sleep: (name) => `Send ${name} out of device memory? Requests that run are frozen and go on when it is back.`,
  drain: (name) => `Drain ${name}? It takes no new requests until you resume it.`,
};

async function act(what, name) {
  const path = `/v1/models/${encodeURIComponent(name)}`;
  try {
    if (what === "why") return showWhy(name, await call("GET", `${path}/why?limit=5`));
    if (SURE[what] && !(await sure(SURE[what](name), what))) return;
    await call("POST", `${path}/${what}`);
    notice("");
  } catch (error) {
    if (error.status === 401) { await askKey(); stream?.abort(); } else notice(`${what} ${name}: ${error.message}`);
  }
}

function closed(dialog) {
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue), { once: true }));
}

async function sure(words, yes) {
  text(at("ask-text"), words);
  text(at("ask-yes"), yes);
  at("ask").returnValue = "no";
  at("ask").showModal();
  return (await closed(at("ask"))) === "yes";
}

async function askKey() {
  at("key-text").value = "";
  at("key-box").returnValue = "no";
  if (!at("key-box").open) at("key-box").showModal();
  if ((await closed(at("key-box"))) !== "yes") return false;
  key.set(at("key-text").value.trim());
  keyed();
  return true;
}

function showWhy(name, answer) {
  text(at("why-title"), `Why ${name} is where it is`);
  const told = answer.told.map((one) => el("div", {}, el("h3", {}, one.what), el("p", {}, `because ${one.because}`),
    el("ul", {}, ...one.looked_at.map((line) => el("li", {}, line)))));
  at("why-text").replaceChildren(...(told.length ? told : [el("p", {}, "Nothing has been decided about it yet.")]));
  at("why").showModal();
}

// ---- colours

function theme() {
  const chosen = localStorage.getItem("vnpu-theme") || "";
  at("theme").value = chosen;
  document.documentElement.dataset.theme = chosen || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

at("theme").addEventListener("change", () => { localStorage.setItem("vnpu-theme", at("theme").value); theme(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
at("key").addEventListener("click", async () => { await askKey(); stream?.abort(); });
for (const id of ["by", "span", "of", "about"]) at(id).addEventListener("change", draw);
at("filter").addEventListener("input", draw);
addEventListener("resize", draw);
setInterval(draw, 1000);
theme();
live();
