// The list of films: one row for each job, changed in place so that focus and pictures stay.

import { ask } from "./api.js";
import { $, ago, clock, el, say, took } from "./dom.js";
import { farm, act, may } from "./app.js";

const rows = new Map();
const OPEN = new Set(["queued", "preparing", "rendering", "assembling", "paused"]);
export const isOpen = (job) => OPEN.has(job.state);
let older = null;

export const query = { filter: "", batch: "", text: "" };

export async function load(more = false) {
  const wanted = new URLSearchParams({ limit: "50" });
  if (query.filter) wanted.append("state", query.filter);
  if (query.batch) wanted.set("batch", query.batch);
  if (query.text) wanted.set("q", query.text);
  if (more && older) wanted.set("before", older);
  const asked = JSON.stringify(query);
  const page = await ask(`/v1/jobs?${wanted}`);
  if (asked !== JSON.stringify(query)) return; // a newer question is under way
  if (!more) farm.jobs.clear();
  for (const job of page.data) farm.jobs.set(job.id, job);
  older = page.next_before;
  $("more").hidden = older === null;
  draw();
}

export async function loadBatches() {
  const { data } = await ask("/v1/batches?limit=100");
  const select = $("batch"), chosen = select.value;
  select.replaceChildren(el("option", { value: "" }, "Every batch"),
    ...data.map((batch) => el("option", { value: batch.id }, `${batch.name} (${sum(batch.jobs)})`)));
  select.value = chosen;
}
const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

function belongs(job) {
  if (query.filter === "open" && !isOpen(job)) return false;
  if (query.filter && query.filter !== "open" && job.state !== query.filter) return false;
  if (query.batch && String(job.batch_id) !== query.batch) return false;
  return !query.text || job.name.toLowerCase().includes(query.text.toLowerCase());
}

/** Takes jobs that changed; new ones come on top. */
export function take(changed) {
  for (const job of changed) {
    const before = farm.jobs.get(job.id);
    if (belongs(job)) farm.jobs.set(job.id, job);
    else farm.jobs.delete(job.id);
    if (before && isOpen(before) && !isOpen(job)) farm.told(job);
  }
  draw();
}

export function draw() {
  const list = $("jobs");
  const shown = [...farm.jobs.values()].sort((a, b) => Number(b.id) - Number(a.id));
  for (const [id, row] of rows) if (!farm.jobs.has(id)) { row.node.remove(); rows.delete(id); }
  shown.forEach((job, index) => {
    let row = rows.get(job.id);
    if (!row) { row = makeRow(job); rows.set(job.id, row); }
    row.update(job);
    if (list.children[index] !== row.node) list.insertBefore(row.node, list.children[index] ?? null);
  });
  const asked = query.filter || query.batch || query.text;
  $("empty").hidden = shown.length > 0;
  say($("empty-title"), asked ? "Nothing here" : "No films yet");
  say($("empty-text"), asked ? "No film matches what you look for."
    : "Drop a portrait and a recording anywhere on this page, or a batch CSV with its files.");
  $("empty-new").hidden = Boolean(asked) || !may("submit");
}

/** Where a picture of this job is, and only if there is one. */
export function picture(job) {
  if (job.state === "succeeded") return `/v1/jobs/${job.id}/poster`;
  if (job.segments_done) return `/v1/jobs/${job.id}/last-frame?v=${job.segments_done}`;
  return job.has_portrait ? `/v1/jobs/${job.id}/portrait` : null;
}

export function line(job) {
  if (job.state === "failed") return job.reason ?? "Failed.";
  if (job.state === "cancelled") return "Cancelled.";
  if (job.state === "succeeded") {
    const cost = job.device_seconds ? `${took(job.device_seconds)} of device time` : "";
    return [`ready ${ago(job.finished_at)}`, cost, job.times_real_time && `${job.times_real_time.toFixed(1)}× real time`]
      .filter(Boolean).join(" · ");
  }
  const left = job.seconds_left !== null ? `${clock(job.seconds_left)} left` : "";
  const speed = job.times_real_time && job.workers.length ? `${job.times_real_time.toFixed(1)}× real time` : "";
  return [`${Math.round(job.share * 100)} %`, job.doing, left, speed].filter(Boolean).join(" · ");
}

function makeRow(job) {
  const id = job.id;
  const thumb = el("div", { class: "thumb", "aria-hidden": "true" });
  const name = el("button", { type: "button", class: "job-name", onclick: () => { location.hash = `#/films/${id}`; } });
  const pill = el("span", { class: "pill" });
  const meta = el("p", { class: "job-meta" });
  const fill = el("i");
  const meter = el("div", { class: "meter", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  const text = el("p", { class: "job-line" });
  const tools = el("div", { class: "job-tools" });
  const node = el("li", { class: "job", "data-job": id }, thumb,
    el("div", {}, el("div", { class: "job-title" }, name, pill), meta, meter, text), tools);
  let shownPicture, shownTools = "";

  function update(now) {
    say(name, now.name);
    name.setAttribute("aria-label", `${now.name}, ${now.state}; open`);
    say(pill, now.state);
    pill.dataset.state = now.state;
    say(meta, [now.model, now.preset, clock(now.seconds), farm.me?.scope === "admin" && now.owner].filter(Boolean).join(" · "));
    meter.hidden = !isOpen(now);
    meter.setAttribute("aria-label", `Progress of ${now.name}`);
    meter.setAttribute("aria-valuenow", Math.round(now.share * 100));
    fill.style.width = `${now.share * 100}%`;
    text.classList.toggle("problem", now.state === "failed");
    say(text, line(now));
    const source = picture(now);
    if (source !== shownPicture) {
      shownPicture = source;
      thumb.replaceChildren(source ? el("img", { src: source, alt: "", loading: "lazy" }) : now.name.slice(0, 1).toUpperCase());
    }
    const wanted = `${now.state}${may("submit")}`;
    if (wanted !== shownTools) {
      shownTools = wanted;
      tools.replaceChildren(...controls(now));
    }
  }
  update(job);
  return { node, update };
}

/** The buttons that make sense for a job in this state. */
export function controls(job) {
  if (!may("submit")) return [];
  const button = (label, action, extra = "") => el("button", {
    type: "button", class: `ghost ${extra}`, "aria-label": `${label} ${job.name}`, onclick: () => act(job, action),
  }, label);
  if (job.state === "paused") return [button("Resume", "resume"), button("Cancel", "cancel", "danger")];
  if (isOpen(job)) return [button("Pause", "pause"), button("Cancel", "cancel", "danger")];
  if (job.state === "failed" || job.state === "cancelled") return [button("Retry", "retry")];
  return [];
}
