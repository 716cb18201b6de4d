// Workers and the timeline.

import { ask } from "./api.js";
import { $, el, size, svg, took } from "./dom.js";
import { act, farm, may } from "./app.js";

export function drawWorkers() {
  const workers = farm.state?.workers ?? [];
  $("no-workers").hidden = workers.length > 0;
  const held = document.activeElement?.closest?.("[data-worker]")?.dataset.worker;
  $("fleet").replaceChildren(...workers.map((worker) => {
    const job = [...farm.jobs.values()].find((one) => one.workers.includes(worker.name));
    const gone = ["stopped", "lost"].includes(worker.state);
    const said = worker.reason ?? (job ? `${job.name}: ${job.doing}` : gone ? `silent for ${took(worker.silent_seconds)}` : "waits for work");
    const memory = Object.entries(worker.info).filter(([key, value]) => /memory|version|model/.test(key) && typeof value !== "object")
      .map(([key, value]) => key.endsWith("_bytes") ? `${key.slice(0, -6).replaceAll("_", " ")} ${size(value)}` : `${key.replaceAll("_", " ")} ${value}`).join(" · ");
    const tools = !may("admin") || gone ? [] : worker.drain
      ? [el("button", { type: "button", class: "ghost", "aria-label": `Resume ${worker.name}`, onclick: () => act(null, "resume", worker.name) }, "Resume")]
      : [el("button", { type: "button", class: "ghost", "aria-label": `Drain ${worker.name}`, onclick: () => act(null, "drain", worker.name) }, "Drain")];
    return el("li", { class: "worker", "data-worker": worker.name },
      el("header", {}, el("h2", {}, worker.name), el("span", { class: "pill", "data-state": worker.drain ? "draining" : worker.state }, worker.drain ? "draining" : worker.state)),
      el("p", {}, `${worker.queue} on ${worker.device}`), el("p", {}, said), memory ? el("p", {}, memory) : null,
      worker.host_restarts ? el("p", {}, `host restarted ${worker.host_restarts} times`) : null,
      el("div", { class: "actions" }, ...tools));
  }));
  if (held) document.querySelector(`[data-worker="${CSS.escape(held)}"] button`)?.focus();
}

let hours = 0.25;
export function begin() {
  $("span").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    hours = Number(button.dataset.hours);
    for (const other of $("span").children) other.setAttribute("aria-pressed", String(other === button));
    drawTimeline();
  });
}

const WIDTH = 1080, LEFT = 130, RIGHT = 12;

export async function drawTimeline() {
  const data = await ask(`/v1/timeline?hours=${hours}`);
  const x = (at) => LEFT + ((at - data.since) / (data.until - data.since)) * (WIDTH - LEFT - RIGHT);
  $("busy").replaceChildren(busyChart(data, x));
  $("gantt").replaceChildren(data.spans.length ? gantt(data, x) : el("p", { class: "help" }, "Nothing was rendered in this time."));
  $("legend").replaceChildren(...[["prepare", "Prepare"], ["render", "Render"], ["assemble", "Assemble"], ["bad", "Failed or given back"]].map(([kind, text]) =>
    el("span", {}, svg("svg", { viewBox: "0 0 11 11", "aria-hidden": "true" }, svg("rect", { width: 11, height: 11, rx: 3, class: `k-${kind}` })), text)));
}

function axis(data, x, height) {
  const marks = [];
  for (let i = 0; i <= 6; i++) {
    const at = data.since + ((data.until - data.since) * i) / 6;
    const text = hours > 30 ? new Date(at * 1000).toLocaleDateString(undefined, { weekday: "short", day: "numeric" })
      : new Date(at * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
    marks.push(svg("line", { x1: x(at), x2: x(at), y1: 0, y2: height - 20, class: "grid" }),
      svg("text", { x: x(at), y: height - 4, "text-anchor": i === 6 ? "end" : i === 0 ? "start" : "middle" }, text));
  }
  return marks;
}

function busyChart(data, x) {
  const height = 170, floor = height - 22;
  const top = Math.max(1, ...data.busy.map((m) => Math.max(m.devices, m.open_jobs)));
  const y = (value) => floor - (value / top) * (floor - 12);
  const path = (key) => data.busy.map((m, i) => `${i ? "L" : "M"}${x(m.at).toFixed(1)} ${y(m[key]).toFixed(1)}`).join("");
  const now = data.busy.at(-1);
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img",
    "aria-label": `Up to ${Math.max(...data.busy.map((m) => m.devices)).toFixed(1)} workers busy; ${now.open_jobs} films open now` }, ...axis(data, x, height));
  for (const value of [0, top / 2, top]) {
    chart.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }),
      svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, String(Math.round(value * 10) / 10)));
  }
  chart.append(svg("path", { d: `${path("devices")}L${x(data.busy.at(-1).at)} ${floor}L${x(data.busy[0].at)} ${floor}Z`, class: "area" }),
    svg("path", { d: path("devices"), class: "line" }), svg("path", { d: path("open_jobs"), class: "line2" }),
    svg("text", { x: 4, y: 16 }, "━ workers busy"), svg("text", { x: 4, y: 34 }, "┅ films open"));
  return chart;
}

function gantt(data, x) {
  const workers = [...new Set(data.spans.map((span) => span.worker))].sort();
  const row = 30, height = workers.length * row + 26;
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "group", "aria-label": "Attempts by worker" }, ...axis(data, x, height));
  workers.forEach((worker, index) => {
    chart.append(svg("text", { x: 4, y: index * row + 19 }, worker.length > 20 ? `${worker.slice(0, 19)}…` : worker));
  });
  for (const span of data.spans) {
    const from = Math.max(x(span.started_at), LEFT), to = x(span.ended_at ?? data.until);
    const bad = span.ended_at && span.outcome !== "succeed";
    const what = span.kind === "render" ? `segment ${span.number + 1}` : span.kind;
    const label = `${span.job_name ?? "another owner's film"}, ${what}, ${took((span.ended_at ?? data.until) - span.started_at)}${bad ? `: ${span.reason ?? span.outcome}` : ""}`;
    const bar = svg("rect", { x: from, y: workers.indexOf(span.worker) * row + 4, width: Math.max(2, to - from - 0.5), height: row - 9,
      class: `span ${bad ? "k-bad" : `k-${span.kind}`}`, role: "button", "aria-label": label, tabindex: data.spans.length < 80 ? 0 : -1 }, svg("title", {}, ""));
    bar.firstChild.textContent = label;
    if (span.job_id) {
      bar.addEventListener("click", () => { location.hash = `#/films/${span.job_id}`; });
      bar.addEventListener("keydown", (event) => { if (event.key === "Enter") location.hash = `#/films/${span.job_id}`; });
    }
    chart.append(bar);
  }
  return chart;
}
