// The log of decisions: what, for whom, why, and what every candidate scored.
import { clock, el } from "./words.js";

const DONE = { restore: "wake", offload: "sleep", reclaim: "reclaim" };
const MOST = 200;

export function concerns(decision, model, own) {
  return !model || decision.wanted === model || own.has(decision.engine) || decision.candidates.some((one) => own.has(one.engine));
}

export class Decisions {
  constructor(list) {
    this.list = list;
    this.known = new Map();
  }

  // Newest first; entries that are open stay open.
  show(decisions, model, own) {
    const shown = decisions.filter((one) => concerns(one, model, own)).slice(0, MOST);
    const wanted = new Set(shown.map((one) => one.n));
    for (const [n, item] of this.known) if (!wanted.has(n)) { item.remove(); this.known.delete(n); }
    let before = null;
    for (const decision of [...shown].reverse()) {
      const item = this.known.get(decision.n) ?? entry(decision);
      this.known.set(decision.n, item);
      if (item.nextSibling !== before || !item.parentNode) this.list.insertBefore(item, before);
      before = item;
    }
    this.list.hidden = !shown.length;
  }
}

function entry(decision) {
  const what = `${DONE[decision.order]} ${decision.engine} on ${decision.devices.join(", ")}`;
  const body = [el("p", {}, decision.cause)];
  if (decision.candidates.length) body.push(scores(decision.candidates));
  if (decision.policy) body.push(el("p", { class: "quiet" }, `policy ${decision.policy}${decision.shadow ? `; shadow ${decision.shadow}` : ""}`));
  return el("li", {}, el("details", {}, el("summary", {}, el("time", {}, clock(decision.at)), el("strong", {}, what), decision.wanted && decision.order !== "restore" ? ` for ${decision.wanted}` : ""), ...body));
}

function scores(candidates) {
  const sorted = [...candidates].sort((a, b) => a.score - b.score);
  const rows = sorted.map((one) => el("tr", {}, el("td", {}, one.engine), el("td", { class: "n" }, one.score.toPrecision(4)), el("td", {}, one.why)));
  const head = el("tr", {}, el("th", { scope: "col" }, "candidate"), el("th", { scope: "col", class: "n" }, "score"), el("th", { scope: "col" }, "why"));
  return el("table", {}, el("caption", { class: "quiet" }, "the lowest leaves first"), el("thead", {}, head), el("tbody", {}, ...rows));
}
