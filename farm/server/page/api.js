// Talking to the farm.

export class Refused extends Error {
  constructor(status, detail, problems) {
    super(detail);
    this.status = status;
    this.problems = problems ?? [];
  }
}

export async function ask(path, { method = "GET", json, body, headers = {} } = {}) {
  const init = { method, headers: { ...headers }, body, credentials: "same-origin" };
  if (json !== undefined) {
    init.body = JSON.stringify(json);
    init.headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, init);
  } catch {
    throw new Refused(0, "The farm does not answer.");
  }
  const text = await answer.text();
  let data = null;
  try { data = text ? JSON.parse(text) : null; } catch { /* an error page of something between us */ }
  if (!answer.ok) {
    const detail = typeof data?.detail === "string" ? data.detail : `The farm answered ${answer.status}.`;
    throw new Refused(answer.status, detail, data?.problems);
  }
  return data;
}

/** Sends one file; `onshare` is told how much is sent, 0 to 1. */
export function upload(file, onshare) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/v1/uploads?name=${encodeURIComponent(file.name)}`);
    request.upload.onprogress = (event) => event.lengthComputable && onshare(event.loaded / event.total);
    request.onload = () => {
      let data = null;
      try { data = JSON.parse(request.responseText); } catch { /* told below */ }
      if (request.status === 201) resolve(data);
      else reject(new Refused(request.status, data?.detail ?? `The farm answered ${request.status}.`));
    };
    request.onerror = () => reject(new Refused(0, "The farm does not answer."));
    request.send(file);
  });
}
