// One film: the player beside its portrait and waveform, segments, cost, what went wrong.

import { ask } from "./api.js";
import { $, ago, clock, el, open, say, took } from "./dom.js";
import { farm } from "./app.js";
import { controls, isOpen, line, picture } from "./jobs.js";

let shown = null; // { id, update }

export async function show(id) {
  let job = farm.jobs.get(id);
  if (!job) job = (await ask(`/v1/jobs/${id}`)).farm;
  const dialog = $("detail");
  if (shown?.id === id && dialog.open) return;
  shown = build(dialog, job);
  open(dialog, () => {
    dialog.querySelector("video")?.pause();
    shown = null;
    if (location.hash.startsWith("#/films/")) location.hash = "#/films";
  });
}

export function hide() {
  if ($("detail").open) $("detail").close();
}

export function take(changed) {
  const job = shown && changed.find((one) => one.id === shown.id);
  if (job) shown.update(job);
}

function build(dialog, first) {
  let job = first;
  const id = job.id;
  const title = el("h2", { id: "detail-title" }, job.name);
  const pill = el("span", { class: "pill" });
  const close = el("button", { type: "button", class: "ghost icon", "aria-label": "Close", onclick: () => dialog.close() }, "✕");
  const screen = el("div", { class: "screen" });
  const aside = el("div", { class: "aside" });
  const wave = el("canvas", { class: "wave", role: "img", "aria-label": "Waveform of the speech; click to go there", hidden: true });
  const fill = el("i");
  const meter = el("div", { class: "meter", role: "progressbar", "aria-label": `Progress of ${job.name}`, "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  const text = el("p", { class: "job-line" });
  const alarm = el("div", { class: "alarm", role: "alert", hidden: true });
  const strip = el("div", { class: "strip", role: "img", "aria-label": "Segments" });
  const facts = el("dl", { class: "facts" });
  const actions = el("div", { class: "actions" });
  const sheet = el("div");
  const table = el("div", { class: "scroll" });
  dialog.replaceChildren(
    el("div", { class: "sheet-head" }, title, pill, close),
    el("div", { class: "sheet-body" },
      alarm,
      el("div", { class: "stage" }, screen, aside),
      wave, el("div", {}, strip, meter, text),
      actions, facts, sheet,
      el("details", {}, el("summary", {}, "Segments and attempts"), table)));

  let stage = "", drawn = "", peaks = null, segmentsAt = -1;

  async function drawWave() {
    if (peaks || !job.total_frames) return;
    peaks = []; // asked once
    try {
      peaks = (await ask(`/v1/jobs/${id}/waveform`)).peaks;
      wave.hidden = false;
      paintWave(wave, peaks, 0);
    } catch { peaks = []; }
  }

  function place(now) {
    const source = picture(now);
    const wanted = now.state === "succeeded" ? "film" : source ?? "none";
    if (wanted === stage) return;
    stage = wanted;
    if (wanted === "film") {
      const video = el("video", { controls: true, playsInline: true, preload: "metadata", poster: `/v1/jobs/${id}/poster`,
        src: `/v1/jobs/${id}/film`, "aria-label": `Film ${now.name}` });
      const tick = () => { paintWave(wave, peaks ?? [], video.currentTime / (video.duration || 1)); };
      for (const name of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(name, tick);
      wave.onclick = (event) => { if (video.duration) video.currentTime = (event.offsetX / wave.clientWidth) * video.duration; };
      screen.replaceChildren(video);
      sheet.replaceChildren(el("details", {}, el("summary", {}, "Contact sheet"),
        el("img", { class: "contact", src: `/v1/jobs/${id}/sheet`, loading: "lazy", alt: `Twelve frames of ${now.name}` })));
    } else if (source) {
      screen.replaceChildren(el("img", { src: source, alt: `Newest frame of ${now.name}` }));
    } else {
      screen.replaceChildren(el("p", {}, isOpen(now) ? "The first picture comes with the first segment." : "There is no picture."));
    }
    if (now.has_portrait && !aside.firstChild) {
      aside.replaceChildren(el("img", { src: `/v1/jobs/${id}/portrait`, alt: "The portrait as the model gets it" }), el("h3", {}, "Portrait"));
    }
  }

  async function drawSegments(now) {
    if (now.segments_done === segmentsAt && now.state !== "rendering") return;
    segmentsAt = now.segments_done;
    let segments;
    try { segments = await ask(`/v1/jobs/${id}/segments`); } catch { return; }
    const renders = segments.filter((segment) => segment.kind === "render");
    strip.hidden = renders.length < 2;
    strip.setAttribute("aria-label", `${now.segments_done} of ${renders.length} segments are ready`);
    strip.replaceChildren(...renders.map((segment) => {
      const part = el("b");
      part.style.width = segment.state === "leased" ? `${(100 * segment.frames_now) / segment.frames}%` : "0";
      const bar = el("i", { "data-state": segment.state, title: `Segment ${segment.number + 1}: ${segment.state}` }, part);
      bar.style.flexGrow = segment.frames;
      return bar;
    }));
    table.replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, ...["Segment", "Attempt", "Worker", "Began", "Took", "Ended"].map((word) => el("th", { scope: "col" }, word)))),
      el("tbody", {}, ...segments.flatMap((segment) => segment.attempts.map((a) => el("tr", {},
        el("td", {}, segment.kind === "render" ? `${segment.number + 1}` : segment.kind), el("td", {}, String(a.number)), el("td", {}, a.worker),
        el("td", {}, new Date(a.started_at * 1000).toLocaleTimeString()), el("td", {}, a.ended_at ? took(a.ended_at - a.started_at) : ""),
        el("td", { class: a.failure ? "problem" : "" }, a.reason ?? a.outcome ?? "runs")))))));
  }

  function update(now) {
    job = now;
    say(title, now.name);
    say(pill, now.state);
    pill.dataset.state = now.state;
    place(now);
    drawWave();
    drawSegments(now);
    meter.hidden = !isOpen(now);
    meter.setAttribute("aria-valuenow", Math.round(now.share * 100));
    fill.style.width = `${now.share * 100}%`;
    text.hidden = now.state === "failed";
    say(text, line(now));
    const wanted = `${now.state}|${now.reason}|${now.last_error}`;
    if (wanted !== drawn) {
      drawn = wanted;
      const said = now.state === "failed" ? now.reason : isOpen(now) ? now.last_error : null;
      alarm.hidden = !said;
      alarm.replaceChildren(el("p", {}, said ?? ""));
      const buttons = controls(now);
      if (now.state === "failed") { alarm.append(...buttons); actions.replaceChildren(); }
      else actions.replaceChildren(...buttons);
      if (now.state === "succeeded") actions.prepend(el("a", { class: "button", href: `/v1/jobs/${id}/film?download=true`, download: "" }, "Download film"));
    }
    const rows = [
      ["Length", `${clock(now.seconds)}${now.total_frames ? `, ${now.total_frames} frames` : ""}`],
      ["Picture", `${now.width}×${now.height}, ${now.fps} fps`],
      ["Model", `${now.model}, ${now.preset}`],
      ["Seed", String(now.seed)],
      ["Device time", now.device_seconds ? took(now.device_seconds) : "none yet"],
      ["Per minute of film", now.device_seconds_per_minute ? took(now.device_seconds_per_minute) : ""],
      ["Speed", now.times_real_time ? `${now.times_real_time.toFixed(2)}× real time` : ""],
      ["Attempts", now.failed_attempts ? `${now.attempts}, ${now.failed_attempts} failed` : String(now.attempts)],
      ["Submitted", `${ago(now.created_at)} by ${now.owner}`],
      ["Priority", now.priority ? String(now.priority) : ""],
      ["Notes", now.notes.join(" ")],
    ].filter(([, value]) => value);
    facts.replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }
  update(job);
  return { id, update };
}

function paintWave(canvas, peaks, share) {
  if (canvas.hidden || !peaks.length) return;
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth * ratio, height = canvas.clientHeight * ratio;
  if (canvas.width !== Math.round(width)) { canvas.width = width; canvas.height = height; }
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  pen.clearRect(0, 0, width, height);
  const top = Math.max(...peaks, 0.05), step = 3 * ratio, columns = Math.floor(width / step);
  for (let x = 0; x < columns; x++) {
    const from = Math.floor((x * peaks.length) / columns), to = Math.max(from + 1, Math.floor(((x + 1) * peaks.length) / columns));
    const peak = Math.max(...peaks.slice(from, to)) / top;
    const tall = Math.max(ratio * 2, peak * height * 0.84);
    pen.fillStyle = x / columns < share ? style.getPropertyValue("--played") || "#3b5bdb" : style.getPropertyValue("--unplayed") || "#999";
    pen.beginPath();
    pen.roundRect(x * step, (height - tall) / 2, 2 * ratio, tall, ratio);
    pen.fill();
  }
}
