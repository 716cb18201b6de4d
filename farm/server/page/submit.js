// New films: files are dropped or chosen, paired, sent, submitted.

import { ask, upload } from "./api.js";
import { $, clock, el, open, size, toast } from "./dom.js";
import { may } from "./app.js";
import { loadBatches } from "./jobs.js";

const PICTURE = /\.(jpe?g|png|webp|bmp|tiff?|heic|avif|gif)$/i;
const SOUND = /\.(wav|mp3|m4a|aac|flac|ogg|oga|opus|webm|mp4|mov|mkv|wma|amr|aiff?|caf)$/i;
const BATCH = /\.(csv|jsonl|ndjson|tsv)$/i;
const stem = (name) => name.replace(/\.[^.]+$/, "");
let models = null, files = null, sending = null;

export function begin(dropped = []) {
  if (!may("submit")) { toast("Your key may look at films and not make them.", "bad"); return; }
  // What is being sent is complete: files that come meanwhile are films of their own.
  if (!files || files === sending) files = { portraits: [], sounds: [], batches: [] };
  add(dropped);
  draw();
  open($("submit"), () => {
    for (const portrait of files?.portraits ?? []) URL.revokeObjectURL(portrait.url);
    files = null;
  });
}

function add(dropped) {
  const odd = [];
  for (const file of dropped) {
    if (BATCH.test(file.name)) files.batches.push(file);
    else if (file.type.startsWith("image/") || PICTURE.test(file.name)) files.portraits.push({ file, url: URL.createObjectURL(file) });
    else if (/^(audio|video)\//.test(file.type) || SOUND.test(file.name)) files.sounds.push({ file, portrait: null });
    else odd.push(file.name);
  }
  if (odd.length) toast(`${odd.join(", ")}: neither a picture, a sound nor a batch file.`, "bad");
  for (const sound of files.sounds) {
    sound.portrait ??= files.portraits.find((p) => stem(p.file.name) === stem(sound.file.name)) ?? files.portraits[0] ?? null;
  }
}

async function draw() {
  const dialog = $("submit");
  models ??= (await ask("/v1/models")).data;
  if (!files) return;
  const input = el("input", { type: "file", id: "files", multiple: true, hidden: true, accept: "image/*,audio/*,video/*,.csv,.jsonl",
    onchange: () => { add(input.files); draw(); } });
  const isBatch = files.batches.length > 0;
  const pairs = el("ul", { class: "pairs", "aria-label": "Films to make" }, ...files.sounds.map((sound) => {
    const choose = el("select", { "aria-label": `Portrait for ${sound.file.name}`, onchange: () => {
      sound.portrait = files.portraits[Number(choose.value)]; draw();
    } }, ...files.portraits.map((p, index) => el("option", { value: index, selected: p === sound.portrait }, p.file.name)));
    return el("li", {},
      el("div", { class: "thumb" }, sound.portrait ? el("img", { src: sound.portrait.url, alt: "" }) : "?"),
      el("div", {}, el("strong", {}, stem(sound.file.name)), el("span", {}, `${sound.file.name}, ${size(sound.file.size)}`)),
      files.portraits.length ? choose : el("span", { class: "problem" }, "no portrait yet"),
      el("button", { type: "button", class: "ghost icon", "aria-label": `Leave out ${sound.file.name}`, onclick: () => {
        files.sounds = files.sounds.filter((other) => other !== sound); draw();
      } }, "✕"));
  }));
  const waiting = files.portraits.length && !files.sounds.length && !isBatch
    ? el("p", { class: "help" }, `${files.portraits.map((p) => p.file.name).join(", ")}: now add a recording.`) : null;
  const batch = isBatch ? el("p", {}, `Batch ${files.batches.map((f) => f.name).join(", ")} with ${files.portraits.length + files.sounds.length} files`) : null;

  const model = el("select", { id: "model" }, ...models.map((m) => el("option", { value: m.id }, m.name)));
  const preset = el("select", { id: "preset" }), shape = el("select", { id: "shape" }), help = el("p", { class: "help" });
  const prompt = el("input", { id: "prompt", maxLength: 2000 });
  const promptLabel = el("label", {}, "Prompt", prompt);
  const describe = () => {
    const spec = models.find((m) => m.id === model.value);
    help.textContent = `${spec.summary}. ${spec.presets[preset.value] ?? ""}.`;
  };
  const fit = () => {
    const spec = models.find((m) => m.id === model.value);
    preset.replaceChildren(...Object.keys(spec.presets).map((name) => el("option", { value: name, selected: name === spec.default_preset }, name)));
    const sizes = spec.size.choices.length ? spec.size.choices : [spec.size.default, [720, 720], [720, 1280], [1280, 720], [256, 256]];
    shape.replaceChildren(...sizes.map(([w, h]) => el("option", { value: `${w}x${h}`, selected: w === spec.size.default[0] && h === spec.size.default[1] }, `${w} × ${h}`)));
    promptLabel.hidden = !spec.inputs.includes("prompt");
    describe();
  };
  model.onchange = fit;
  preset.onchange = describe;
  if (models.length) fit();
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const status = el("p", { class: "help", role: "status" });
  const count = files.sounds.length;
  const ready = isBatch || (count > 0 && files.sounds.every((sound) => sound.portrait));
  const go = el("button", { type: "button", class: "primary", disabled: !ready, id: "go", onclick: () => send({
    model: model.value, preset: preset.value, size: shape.value, ...(prompt.value && !promptLabel.hidden ? { prompt: prompt.value } : {}),
  }, { go, status, problem }) }, isBatch ? "Submit batch" : count > 1 ? `Make ${count} films` : "Make film");

  dialog.replaceChildren(
    el("div", { class: "sheet-head" }, el("h2", { id: "submit-title" }, "New film"),
      el("button", { type: "button", class: "ghost icon", "aria-label": "Close", onclick: () => dialog.close() }, "✕")),
    el("div", { class: "sheet-body" },
      el("div", { class: "picker" }, el("p", {}, "Drop portraits and recordings here, or a batch CSV with its files."),
        input, el("button", { type: "button", class: "ghost", onclick: () => input.click() }, "Choose files")),
      waiting, batch, isBatch ? null : pairs,
      isBatch ? null : el("div", {}, el("div", { class: "form" },
        el("label", {}, "Model", model), el("label", {}, "Preset", preset), el("label", {}, "Size", shape), promptLabel), help),
      problem, status, el("div", { class: "actions" }, go)));
}

async function send(settings, { go, status, problem }) {
  const sent = sending = files;
  go.disabled = true;
  problem.hidden = true;
  try {
    const ids = new Map();
    const all = [...sent.portraits.map((p) => p.file), ...sent.sounds.map((s) => s.file)];
    for (const [index, file] of all.entries()) {
      const taken = await upload(file, (share) => { status.textContent = `Sending ${file.name} (${index + 1} of ${all.length}), ${Math.round(share * 100)} %`; });
      ids.set(file, taken.id);
    }
    status.textContent = "Checking";
    const answers = sent.batches.length ? await sendBatches(sent.batches) : [await ask("/v1/batches", { method: "POST", json: {
      name: sent.sounds.length > 1 ? `${sent.sounds.length} films` : stem(sent.sounds[0].file.name),
      rows: sent.sounds.map((s) => ({ portrait: `upload:${ids.get(s.portrait.file)}`, audio: `upload:${ids.get(s.file)}`, name: stem(s.file.name), ...settings })),
    } })];
    const fresh = answers.reduce((n, a) => n + a.new, 0), known = answers.reduce((n, a) => n + a.known, 0);
    toast(fresh ? `${fresh} ${fresh === 1 ? "film is" : "films are"} on the way.` : `${known === 1 ? "This film was" : "These films were"} submitted before.`);
    if (files === sent) $("submit").close();
    else for (const portrait of sent.portraits) URL.revokeObjectURL(portrait.url);
    loadBatches().catch(() => {});
  } catch (error) {
    const said = error.problems?.length ? error.problems.map((p) => `Row ${p.row}: ${p.sentence}`).join("\n") : error.message;
    if (files !== sent) toast(said, "bad");
    status.textContent = "";
    problem.hidden = false;
    problem.textContent = said;
    go.disabled = false;
  } finally {
    if (sending === sent) sending = null;
  }
}

async function sendBatches(batches) {
  const answers = [];
  for (const file of batches) {
    const type = /\.(jsonl|ndjson)$/i.test(file.name) ? "application/x-ndjson" : "text/csv";
    answers.push(await ask(`/v1/batches?name=${encodeURIComponent(stem(file.name))}`, { method: "POST", body: file, headers: { "content-type": type } }));
  }
  return answers;
}
