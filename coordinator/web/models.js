// The table of models: one row a model, kept while the model is, so that the focus stays where it is.
import { el, seconds, size, text } from "./words.js";

const PHASES = ["resident", "restoring", "starting", "draining", "offloaded", "stopped", "failed", "lost"];

export class Models {
  // act(what, model): "wake", "sleep", "pin", "unpin", "drain", "resume" or "why".
  constructor(body, act) {
    this.body = body;
    this.act = act;
    this.rows = new Map();
  }

  show(state, wakes, ttft, filter) {
    const engines = Map.groupBy ? Map.groupBy(state.engines, (one) => one.model) : grouped(state.engines);
    const names = new Set();
    for (const model of state.models) {
      const own = engines.get(model.id) ?? [];
      const phase = own.map((one) => one.phase ?? "silent").sort((a, b) => PHASES.indexOf(a) - PHASES.indexOf(b))[0] ?? "stopped";
      if (filter && !`${model.id} ${phase}`.toLowerCase().includes(filter.toLowerCase())) continue;
      names.add(model.id);
      const row = this.rows.get(model.id) ?? this.make(model.id);
      this.fill(row, model, own, phase, wakes.get(model.id), ttft[model.id]);
    }
    for (const [name, row] of this.rows) {
      if (!names.has(name)) { row.tr.remove(); this.rows.delete(name); }
    }
    return names.size;
  }

  make(name) {
    const cells = Object.fromEntries(["phase", "size", "runs", "waits", "wake", "ttft"].map((key) => [key, el("td", { "data-l": key === "wake" ? "last wake" : key === "ttft" ? "first byte" : key, class: ["size", "runs", "waits", "ttft"].includes(key) ? "n" : "" })]));
    const badge = el("span", { class: "badge" });
    const error = el("span", { class: "error" });
    cells.phase.append(badge, " ", error);
    const button = (word, label) => el("button", { type: "button", "aria-label": `${label ?? word} ${name}`, on: { click: (event) => this.act(event.currentTarget.dataset.act ?? word, name) } }, word);
    const move = button("wake");
    const pin = button("pin");
    const drain = button("drain");
    const why = button("why", "why is it so with");
    const tr = el("tr", { "data-model": name }, el("td", {}, el("strong", {}, name)), ...Object.values(cells), el("td", {}, el("div", { class: "do" }, move, pin, drain, why)));
    const after = [...this.rows].filter(([other]) => other > name).sort()[0];
    this.body.insertBefore(tr, after ? after[1].tr : null);
    const row = { tr, cells, badge, error, move, pin, drain };
    this.rows.set(name, row);
    return row;
  }

  fill(row, model, engines, phase, wake, ttft) {
    text(row.badge, phase);
    row.badge.className = `badge ${phase}`;
    text(row.error, [model.refused, ...engines.map((one) => one.error || (one.why && phase !== "resident" ? one.why : ""))].filter(Boolean).join("; "));
    text(row.cells.size, size(engines.reduce((sum, one) => sum + total(one.footprint) * one.devices.length, 0)));
    text(row.cells.runs, String(engines.reduce((sum, one) => sum + one.running, 0) || "–"));
    text(row.cells.waits, String(model.waiting || "–"));
    text(row.cells.wake, wake ? `${seconds(wake.waited + wake.seconds)} ${wake.path}${wake.bytes ? `, ${size(wake.bytes)}` : ""}` : "–");
    text(row.cells.ttft, ttft ? `${seconds(ttft.p50)} / ${seconds(ttft.p95)}` : "–");
    toggle(row.move, ["resident", "restoring", "starting"].includes(phase) ? "sleep" : "wake", model.id);
    toggle(row.pin, model.settings.pin ? "unpin" : "pin", model.id, model.settings.pin);
    toggle(row.drain, model.settings.drained ? "resume" : "drain", model.id, model.settings.drained);
    row.move.disabled = !engines.length || (model.settings.drained && row.move.dataset.act === "wake");
  }
}

function toggle(button, act, name, pressed) {
  text(button, act);
  button.dataset.act = act;
  button.setAttribute("aria-label", `${act} ${name}`);
  if (pressed !== undefined) button.setAttribute("aria-pressed", String(Boolean(pressed)));
}

function total(bytes) {
  return bytes.weights + bytes.kv + bytes.overhead + bytes.cached;
}

function grouped(engines) {
  const found = new Map();
  for (const one of engines) found.set(one.model, [...(found.get(one.model) ?? []), one]);
  return found;
}
