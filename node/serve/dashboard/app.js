"use strict";
// All displayed text may come from strangers: it is inserted as text, never as markup, and its length is limited.
const MAX_DRAWN = 16, MAX_PEERS = 100, MAX_REQUESTS = 200, MAX_ROWS = 12, MAX_EDGES = 40, MAX_TEXT = 300;
const MAX_BLOCK = 16_777_216, TRAFFIC_MS = 600_000, LINKS_MS = 10_000, TREE_MS = 4_000, MODELS_MS = 10_000;
const SVG = "http://www.w3.org/2000/svg";
const VIEWS = ["chat", "swarm"];
const by = (id) => document.getElementById(id);

let state = null, links = [], requests = new Map(), traffic = [];

// --- small tools ---
const clip = (text) => String(text ?? "").slice(0, MAX_TEXT);
const short = (peer) => (peer ? "…" + clip(peer).slice(-8) : "");
const ms = (value) => (value === null || value === undefined ? "–" : value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");
const bytes = (value) => (value < 1000 ? `${Math.round(value)} B/s` : `${(value / 1000).toFixed(1)} kB/s`);
function el(name, content, className) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (content !== undefined) made.append(...[content].flat());
  return made;
}
function shape(name, attributes, content) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== undefined) made.textContent = content;
  return made;
}
function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : null;
}

// Replaces rows only when they have changed, so that a reader's selection stays.
const drawn = new WeakMap();
function replace(parent, what, make) {
  const said = JSON.stringify(what);
  if (drawn.get(parent) === said) return;
  drawn.set(parent, said);
  parent.replaceChildren(...make());
}

// --- the node ---
const stored = (area, name) => { try { return area.getItem(name) || ""; } catch { return ""; } };
let key = stored(sessionStorage, "key");
const credentials = () => (key ? { authorization: `Bearer ${key}` } : {});
async function get(path, signal) {
  const response = await fetch(path, { headers: credentials(), cache: "no-store", signal });
  if (response.status === 401) throw new Locked();
  if (!response.ok) throw Object.assign(new Error(path), { status: response.status });
  return response;
}
class Locked extends Error {}

// The blocks of an event stream, without the empty lines between them.
async function* blocks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const ended = (rest + value).split("\n\n");
    rest = ended.pop();
    yield* ended;
    if (rest.length > MAX_BLOCK) throw new Error("a block of an event stream does not end");
  }
}

async function* events() {
  const aborted = new AbortController();
  let silence;
  const heard = () => { clearTimeout(silence); silence = setTimeout(() => aborted.abort(), 6000); };
  heard();
  try {
    for await (const block of blocks(await get("/api/events", aborted.signal))) {
      heard();
      const [kind, data] = block.split("\n");
      yield [kind.replace("event: ", ""), JSON.parse(data.replace("data: ", ""))];
    }
  } finally {
    clearTimeout(silence);
    aborted.abort();
  }
}

async function follow() {
  for (let wait = 500; ; wait = Math.min(wait * 2, 5000)) {
    let isLoading = false;
    try {
      for (const row of await (await get("/api/requests")).json()) keep(row);
      for await (const [kind, value] of events()) {
        wait = 500;
        if (kind === "state") onState(value);
        else if (kind === "request") onRequest(value);
      }
    } catch (error) {
      if (error instanceof Locked) { await unlock(); wait = 250; continue; }
      isLoading = error.status === 503;
    }
    if (isLoading) { tell("connecting", "loading the model"); wait = 500; } else tell("gone", state ? "the node is gone" : "no answer");
    by("main").classList.add("stale");
    await new Promise((done) => setTimeout(done, wait));
  }
}

// Asks for a key. Several callers wait for the same one.
let unlocking = null;
function unlock() {
  return (unlocking ??= askKey().finally(() => { unlocking = null; }));
}

function askKey() {
  const form = by("unlock");
  by("main").hidden = true;
  by("unlock-says").textContent = key ? "This is not a key of this node." : "";
  tell("locked", "locked");
  form.hidden = false;
  by("key").focus();
  return new Promise((done) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      key = by("key").value.trim();
      try { sessionStorage.setItem("key", key); } catch { /* the page asks for it again */ }
      by("key").value = "";
      form.hidden = true;
      done();
    };
  });
}

function tell(name, text) {
  by("link").dataset.state = name;
  by("link").textContent = text;
}

function onState(value) {
  state = value;
  const strangers = (state.public ? state.public.peers : []).map((peer) => ({ ...peer, swarm: "public" }));
  state.peers = [...state.peers, ...strangers].slice(0, MAX_PEERS);
  traffic.push([Date.now(), value.traffic.received_bytes_per_s.digests || 0]);
  traffic = traffic.filter(([at]) => at > Date.now() - TRAFFIC_MS);
  const isFirst = by("main").hidden;
  by("main").hidden = false;
  by("main").classList.remove("stale");
  tell("live", "live");
  if (isFirst) show();
  if (!document.hidden) draw();
}

function keep(row) {
  requests.delete(row.id);
  requests.set(row.id, row);
  if (requests.size > MAX_REQUESTS) requests.delete(requests.keys().next().value);
}

function onRequest(row) {
  const before = requests.get(row.id);
  if (before) requests.set(row.id, row); else keep(row);
  if (row.served_by && (!before || before.served_by !== row.served_by)) pulse(row.served_by);
  if (!document.hidden) { drawRequests(); drawCharts(); drawFacts(); }
  onAnswerRow(row);
}

async function every(period, path, use) {
  for (;;) {
    if (state && !document.hidden && by("link").dataset.state === "live") {
      try { use(await (await get(path)).json()); } catch { /* next time */ }
    }
    await new Promise((done) => setTimeout(done, state ? period : 300));
  }
}

// --- drawing ---
function draw() {
  const swarm = state.swarm ? `${clip(state.swarm)}${state.public ? " and public" : ""} · ` : "";
  by("who").textContent = `${swarm}${short(state.peer)} · ${clip(state.model)} · ${clip(state.version)} · up ${since(state.uptime_s)}${state.paused ? ` · ${clip(state.paused)}` : ""}`;
  by("who").title = state.peer;
  drawFacts(); drawMap(); drawPeers(); drawCharts(); drawRequests(); drawWelcome();
}

function since(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  return hours >= 48 ? `${Math.floor(hours / 24)} d` : hours ? `${hours} h ${minutes % 60} min` : minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

function drawFacts() {
  if (!state) return;
  const stats = state.stats, answered = stats.entered.answered || 0;
  const failed = Object.entries(stats.entered).reduce((sum, [name, count]) => sum + (name === "answered" || name === "cancelled" ? 0 : count), 0);
  const waiting = state.waiting_requests ? `, ${state.waiting_requests} waiting` : "";
  const facts = [
    ["Peers", state.peers.length, ""],
    ["Hit ratio", percent(stats.entered_cached_tokens, stats.entered_prompt_tokens), ""],
    ["First token, median", ms(stats.ttft_ms_p50), stats.ttft_ms_p99 === null ? "" : `p99 ${ms(stats.ttft_ms_p99)}`],
    ["Slots in use", state.active_requests, `of ${state.slots}${waiting}`],
    ["KV cache", percent(state.cached_tokens, state.cells), `${state.cached_tokens} tokens`],
    ["Answered", answered, failed ? `${failed} failed` : ""],
    ...(state.served.length > 1 ? state.served.map((row) => [clip(row.model), row.state, row.memory_bytes ? `${Math.round(row.memory_bytes / 1e6)} MB` : ""]) : []),
  ];
  by("facts").replaceChildren(...facts.map(([name, value, more]) => {
    const box = el("div", [el("dt", name), el("dd", [String(value), " ", el("small", more)])]);
    box.dataset.fact = name;
    return box;
  }));
}

const narrow = matchMedia("(max-width: 520px)");
const HEIGHT = 410, MIDDLE_Y = 190;
const width = () => (narrow.matches ? 360 : 640);

// Places follow the order of ids, so they stay while the peers stay the same.
function places() {
  const peers = [...state.peers].sort((a, b) => (a.peer < b.peer ? -1 : 1)).slice(0, MAX_DRAWN);
  return new Map(peers.map((peer, n) => {
    const angle = (2 * Math.PI * (n + 0.5)) / peers.length - Math.PI / 2;
    const away = width() / 2 - 55;
    return [peer.peer, { peer, x: width() / 2 + away * Math.cos(angle), y: MIDDLE_Y + 150 * Math.sin(angle) }];
  }));
}

function node(x, y, radius, used, slots, name, sub, className) {
  const group = shape("g", { class: className, transform: `translate(${x} ${y})` });
  const share = slots ? Math.min(used / slots, 1) : 0, round = 2 * Math.PI * (radius + 5);
  group.append(shape("circle", { class: "track", r: radius + 5 }), shape("circle", { class: "body", r: radius }));
  if (share) group.append(shape("circle", { class: "ring", r: radius + 5, transform: "rotate(-90)", "stroke-dasharray": `${share * round} ${round}` }));
  group.append(shape("text", { class: "name", y: radius + 22 }, name), shape("text", { class: "sub", y: radius + 36 }, sub));
  return group;
}

function drawMap() {
  const at = places(), under = [], edges = [], nodes = [], labels = [];
  const drawn = new Set(), middle = width() / 2;
  for (const row of links) {
    for (const link of row.links) {
      const pair = [row.peer, link.peer].sort().join();
      const one = at.get(row.peer), other = at.get(link.peer);
      if (!one || !other || drawn.has(pair)) continue;
      drawn.add(pair);
      under.push(shape("line", { class: "theirs", x1: one.x, y1: one.y, x2: other.x, y2: other.y }));
    }
  }
  for (const { peer, x, y } of at.values()) {
    const rtt = peer.round_trip_ms;
    const thick = rtt === null ? 1 : Math.max(1.2, 6 - 2 * Math.log10(Math.max(rtt, 1)));
    const edge = shape("line", { class: "edge", x1: middle, y1: MIDDLE_Y, x2: x, y2: y, "stroke-width": thick.toFixed(1) });
    if (pulsed.get(peer.peer) > Date.now() - 1400) edge.classList.add("used");
    edges.push(edge);
    if (rtt !== null) labels.push(shape("text", { class: "rtt", x: middle + (x - middle) * 0.56, y: MIDDLE_Y + (y - MIDDLE_Y) * 0.56 + 4 }, ms(rtt)));
    const busy = peer.active_requests + peer.waiting_requests;
    nodes.push(node(x, y, 15, busy, peer.slots, short(peer.peer), busy ? `${busy} request${busy > 1 ? "s" : ""}` : peer.swarm || "idle", "peer"));
  }
  const me = node(middle, MIDDLE_Y, 21, state.active_requests + state.waiting_requests, state.slots, "this node", "", "me");
  by("map").replaceChildren(...under, ...edges, ...labels, ...nodes, me);
  by("map").setAttribute("viewBox", `0 0 ${width()} ${HEIGHT}`);
  by("map").setAttribute("aria-label", `This node and ${state.peers.length} peers; the table of peers has the same facts`);
  by("no-peers").hidden = state.peers.length > 0;
  by("address").textContent = clip(state.addresses[0] || "no address");
  const tried = (state.attempts || []).map(({ what, says, fix }) => el("li", clip(`${what}: ${says}${fix ? ` (${fix})` : ""}`)));
  by("tried").replaceChildren(...tried);
  by("tried").hidden = !tried.length;
}

const pulsed = new Map();
function pulse(peer) {
  if (pulsed.size > MAX_PEERS) pulsed.clear();
  pulsed.set(peer, Date.now());
  if (state && !document.hidden) drawMap();
}

function drawPeers() {
  const told = state.peers.map((peer) => ({ ...peer, connected_s: 0 }));
  replace(by("peers").tBodies[0], told, () => told.map((peer) => {
    const name = el("td", peer.swarm ? [short(peer.peer), el("small", ` ${peer.swarm}`)] : short(peer.peer), "id");
    name.title = peer.peer;
    const load = `${peer.active_requests + peer.waiting_requests}${peer.slots ? ` / ${peer.slots}` : ""}`;
    const path = el("td", peer.relay ? `via ${short(peer.relay)}` : peer.path);
    path.title = peer.relay ? `relayed by ${peer.relay}` : peer.address;
    return el("tr", [name, path, el("td", clip(peer.models.join(", "))), el("td", peer.round_trip_ms === null ? "–" : `${peer.round_trip_ms} ms`, "num"),
      el("td", load, "num"), el("td", String(peer.digest_blocks), "num"), el("td", peer.digest)]);
  }));
  const hidden = state.peers.length - MAX_DRAWN;
  by("more-peers").hidden = hidden <= 0;
  by("more-peers").textContent = `${hidden} of them are not in the picture.`;
}

function drawRequests() {
  const rows = [...requests.values()].slice(-MAX_ROWS).reverse();
  by("no-requests").hidden = rows.length > 0;
  by("requests").hidden = rows.length === 0;
  replace(by("requests").tBodies[0], rows, () => rows.map((row) => {
    const bar = el("span", el("i"), "bar");
    bar.firstChild.style.width = `${row.prompt_tokens ? (100 * row.cached_tokens) / row.prompt_tokens : 0}%`;
    const where = row.served_by === (state && state.peer) ? "this node" : short(row.served_by);
    const says = row.status === "failed" ? clip(row.code) : row.status;
    const id = el("td", row.id.slice(0, 8), "id");
    id.title = `mycelia trace ${row.id}`;
    const made = el("tr", [el("td", new Date(1000 * row.started_at).toLocaleTimeString()), id, el("td", says, `status-${row.status}`),
      el("td", where, "id"), el("td", [bar, `${row.cached_tokens} / ${row.prompt_tokens}`]), el("td", ms(row.ttft_ms), "num"),
      el("td", row.completion_tokens ? String(row.completion_tokens) : "", "num"), el("td", clip(row.reason), "why")]);
    made.dataset.id = row.id;
    return made;
  }));
}

function plot(svg, points, format, dots) {
  const X = 44, W = 252, Y = 6, H = 78;
  const at = ([x, y]) => `${(X + x * W).toFixed(1)} ${(Y + H - Math.min(y, 1) * H).toFixed(1)}`;
  const parts = [0, 0.5, 1].flatMap((y) => [
    shape("line", { class: "axis", x1: X, x2: X + W, y1: Y + H - y * H, y2: Y + H - y * H }),
    shape("text", { class: "tick", x: X - 4, y: Y + H - y * H + 3, "text-anchor": "end" }, format(y)),
  ]);
  if (points.length && !dots) {
    parts.push(shape("path", { class: "area", d: `M${at([points[0][0], 0])} L${points.map(at).join(" L")} L${at([points.at(-1)[0], 0])} Z` }));
    parts.push(shape("path", { class: "line", d: `M${points.map(at).join(" L")}` }));
  }
  for (const [x, y, kind] of dots ? points : []) parts.push(shape("circle", { class: kind, cx: X + x * W, cy: Y + H - Math.min(y, 1) * H, r: 3.2 }));
  svg.replaceChildren(...parts);
}

function drawCharts() {
  const ended = [...requests.values()].filter((row) => row.status === "answered" && row.prompt_tokens).slice(-60);
  const place = (n) => (ended.length > 1 ? n / (ended.length - 1) : 0.5);
  const ratios = ended.map((_, n) => {
    const lately = ended.slice(Math.max(0, n - 9), n + 1), sum = (name) => lately.reduce((total, row) => total + row[name], 0);
    return [place(n), sum("cached_tokens") / sum("prompt_tokens")];
  });
  plot(by("hit"), ratios, (y) => `${100 * y} %`);
  by("hit-now").textContent = ratios.length ? `${Math.round(100 * ratios.at(-1)[1])} %` : "–";

  const times = ended.map((row) => row.ttft_ms || 1), most = Math.max(100, ...times);
  const scale = Math.log10(most) - 1, high = (value) => Math.max(0, Math.log10(Math.max(value, 10)) - 1) / scale;
  const warmth = (row) => (2 * row.cached_tokens >= row.prompt_tokens ? "warm" : "cold");
  plot(by("ttft"), ended.map((row, n) => [place(n), high(times[n]), warmth(row)]), (y) => ms(10 ** (1 + y * scale)), true);
  by("ttft-now").textContent = ms(median(times.slice(-20)));

  const now = Date.now(), top = Math.max(100, ...traffic.map(([, rate]) => rate));
  plot(by("traffic"), traffic.map(([when, rate]) => [1 - (now - when) / TRAFFIC_MS, rate / top]), (y) => bytes(y * top));
  by("traffic-now").textContent = traffic.length ? bytes(traffic.at(-1)[1]) : "–";
}

function drawTree(rows) {
  by("no-tree").hidden = rows.length > 0;
  replace(by("tree"), rows, () => branches(rows));
}

function branches(rows) {
  const root = el("ul"), open = [root];
  for (const row of rows.slice(0, MAX_EDGES)) {
    const level = Math.min(row.level, 24, open.length - 1);
    open.length = level + 1;
    const text = el("code", clip(row.text).replace(/\s+/g, " "));
    const item = el("li", el("div", [el("b", `${row.tokens} tok`), text], "edge-row"));
    item.title = `${row.depth_tokens} tokens from the root`;
    open[level].append(item);
    const children = el("ul");
    item.append(children);
    open.push(children);
  }
  for (const list of root.querySelectorAll("ul")) if (!list.children.length) list.remove();
  if (rows.length > MAX_EDGES) root.append(el("li", `… and ${rows.length - MAX_EDGES} more edges`, "more"));
  return root.children;
}

// --- the two views ---
function show() {
  const wanted = location.hash.slice(1);
  const view = VIEWS.includes(wanted) ? wanted : VIEWS.find((name) => name === stored(localStorage, "view")) || VIEWS[0];
  try { if (view === wanted) localStorage.setItem("view", view); } catch { /* the next visit begins with the chat */ }
  for (const name of VIEWS) by(`${name}-view`).hidden = name !== view;
  for (const link of by("views").children) {
    if (link.hash.slice(1) === view) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  if (view === "chat") openChat(); else scrollTo(0, 0);
}
addEventListener("hashchange", show);

// --- light and dark ---
const system = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  document.documentElement.dataset.theme = stored(localStorage, "theme") || (system.matches ? "dark" : "light");
}
by("theme").onclick = () => {
  try { localStorage.setItem("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark"); } catch { return; }
  paint();
};
system.addEventListener("change", paint);
narrow.addEventListener("change", () => { if (state) drawMap(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && state) draw(); });
