// The farm's page: who is looking, which view, what changes.

import { ask } from "./api.js";
import { $, el, open, say, toast } from "./dom.js";
import * as detail from "./detail.js";
import * as fleet from "./fleet.js";
import * as jobs from "./jobs.js";
import * as submit from "./submit.js";

export const farm = {
  me: null,
  jobs: new Map(),
  state: null,
  told(job) {
    if (job.state === "succeeded") toast(`${job.name} is ready.`);
    if (job.state === "failed") toast(`${job.name} failed: ${job.reason}`, "bad");
  },
};

const ORDER = ["read", "submit", "admin"];
export const may = (scope) => ORDER.indexOf(farm.me?.scope) >= ORDER.indexOf(scope);

/** Steers a job or a worker and shows at once what came of it. */
export async function act(job, action, worker = null) {
  try {
    if (worker) {
      farm.state = await ask(`/v1/workers/${encodeURIComponent(worker)}/${action}`, { method: "POST" });
      fleet.drawWorkers();
      return;
    }
    const answer = action === "cancel" ? await ask(`/v1/jobs/${job.id}`, { method: "DELETE" })
      : await ask(`/v1/jobs/${job.id}/${action}`, { method: "POST" });
    changed([answer.farm]);
  } catch (error) {
    toast(error.message, "bad");
  }
}

function changed(list) {
  jobs.take(list);
  detail.take(list);
}

// Views

function route() {
  const [, view = "films", id] = location.hash.match(/^#\/(\w+)(?:\/(\d+))?$/) ?? [];
  const known = ["films", "workers", "timeline"].includes(view) ? view : "films";
  for (const name of ["films", "workers", "timeline"]) $(name).hidden = name !== known;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === known) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (known === "workers") fleet.drawWorkers();
  if (known === "timeline") fleet.drawTimeline().catch((error) => toast(error.message, "bad"));
  if (id) detail.show(id).catch((error) => { toast(error.message, "bad"); location.hash = "#/films"; });
  else detail.hide();
}

function pulse() {
  const counts = farm.state?.jobs ?? {};
  const busy = (counts.rendering ?? 0) + (counts.preparing ?? 0) + (counts.assembling ?? 0);
  const parts = [busy && `${busy} rendering`, counts.queued && `${counts.queued} waiting`, counts.paused && `${counts.paused} paused`].filter(Boolean);
  say($("pulse"), parts.join(", ") || "all quiet");
  document.title = busy ? `(${busy}) farm` : "farm";
  $("notices").replaceChildren(...(farm.state?.stuck ?? []).map((one) => el("div", { class: "notice" }, el("span", { "aria-hidden": "true" }, "⚠"), el("p", {}, one.reason))));
}

// What happens in the farm

let stream = null;
function listen() {
  stream?.close();
  stream = new EventSource("/v1/feed");
  let lost = false;
  stream.onopen = () => {
    $("pulse").dataset.live = "yes";
    if (lost) jobs.load().catch(() => {}); // what happened meanwhile was not told
    lost = false;
  };
  stream.onerror = () => { $("pulse").dataset.live = "no"; lost = true; };
  stream.addEventListener("jobs", (event) => changed(JSON.parse(event.data)));
  stream.addEventListener("farm", (event) => {
    farm.state = JSON.parse(event.data);
    pulse();
    if (!$("workers").hidden) fleet.drawWorkers();
  });
}
setInterval(() => { if (!$("timeline").hidden && !document.hidden && farm.me) fleet.drawTimeline().catch(() => {}); }, 5000);
addEventListener("pagehide", () => stream?.close());

// Who is looking

async function signIn(key) {
  farm.me = await ask("/v1/session", { method: "POST", json: { key } });
}

async function enter() {
  const given = location.hash.match(/^#key=(.+)$/)?.[1];
  if (given) {
    history.replaceState(null, "", "#/films"); // the key must not stay in the address
    await signIn(decodeURIComponent(given)).catch(() => {});
  }
  if (!farm.me) {
    const answer = await fetch("/v1/whoami", { credentials: "same-origin" });
    farm.me = answer.status === 200 ? await answer.json() : null;
  }
  if (!farm.me) {
    open($("login"));
    $("login").addEventListener("cancel", (event) => event.preventDefault());
    $("login").onclick = null;
    $("key").focus();
    return;
  }
  await start();
}

async function start() {
  $("leave").hidden = farm.me.open;
  $("new").hidden = !may("submit");
  await Promise.all([jobs.load(), jobs.loadBatches()]);
  listen();
  route();
}

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("login-problem").hidden = true;
  try {
    await signIn($("key").value.trim());
    $("key").value = "";
    $("login").close();
    await start();
  } catch (error) {
    $("login-problem").hidden = false;
    $("login-problem").textContent = error.status === 401 ? "This is not a key of this farm, or it was revoked." : error.message;
    $("key").select();
  }
});
$("leave").addEventListener("click", async () => {
  await ask("/v1/session", { method: "DELETE" });
  location.reload();
});

// Controls

const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", dark ? "light" : "dark");
});

$("new").addEventListener("click", () => submit.begin());
$("empty-new").addEventListener("click", () => submit.begin());
$("more").addEventListener("click", () => jobs.load(true));
$("batch").addEventListener("change", () => { jobs.query.batch = $("batch").value; jobs.load(); });
let typing;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => { jobs.query.text = $("search").value.trim(); jobs.load(); }, 200);
});
document.querySelector(".filters .segmented").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
  jobs.query.filter = button.dataset.filter;
  jobs.load();
});

addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea, dialog") || event.metaKey || event.ctrlKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); location.hash = "#/films"; $("search").focus(); }
  if (event.key === "n" && may("submit")) { event.preventDefault(); submit.begin(); }
  if (event.key === "j" || event.key === "k" || event.key === "ArrowDown" || event.key === "ArrowUp") {
    const names = [...document.querySelectorAll(".job-name")];
    const at = names.indexOf(document.activeElement);
    const next = names[at + (event.key === "j" || event.key === "ArrowDown" ? 1 : -1)];
    if ((at >= 0 || event.key === "j") && next) { event.preventDefault(); next.focus(); }
  }
});

let depth = 0;
const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => { if (hasFiles(event) && farm.me) { depth++; $("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (hasFiles(event) && --depth <= 0) { depth = 0; $("drop").hidden = true; } });
addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  if (farm.me) submit.begin([...event.dataTransfer.files]);
});

addEventListener("hashchange", () => farm.me && route());
fleet.begin();
enter().catch((error) => toast(error.message, "bad"));
