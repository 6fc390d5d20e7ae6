// The way to the admin API: the key goes into a header, never into a URL or a cookie, so no other site can use it.

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

export const key = {
  get: () => sessionStorage.getItem("vnpu-key") || "",
  set: (text) => (text ? sessionStorage.setItem("vnpu-key", text) : sessionStorage.removeItem("vnpu-key")),
};

function headers() {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

async function refusal(answer) {
  const told = await answer.json().catch(() => null);
  return new Refused(answer.status, told?.error?.message ?? `HTTP ${answer.status}`);
}

export async function call(method, path, body) {
  const options = { method, headers: headers(), cache: "no-store" };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// Server-sent events by fetch: EventSource can send no header. Calls `on(kind, value)`; ends with the stream.
export async function follow(path, on, signal) {
  const answer = await fetch(path, { headers: headers(), cache: "no-store", signal });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) deliver(frame, on);
  }
}

function deliver(frame, on) {
  let kind = "";
  let data = "";
  for (const line of frame.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  on(kind, data ? JSON.parse(data) : null);
}
