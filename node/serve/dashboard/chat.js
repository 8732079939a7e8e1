// The chat: asks through the node's OpenAI API. The conversation is kept in this browser alone.
const KEPT = "chat", MAX_TURNS = 200, MAX_KEPT_CHARS = 2_000_000, MAX_ANSWER_CHARS = 1_000_000, MAX_PROMPT_PX = 240;
const BROKEN = "The connection to the node broke before the answer ended.";

// A turn: a prompt with its answer. `state` is waiting, done, length (the answer was cut), stopped or failed.
let turns = readTurns(), running = null, isOpen = false, isDue = false;
const articles = new Map(); // turn -> its elements

// --- what is kept ---
function readTurns() {
  let kept = [];
  try { kept = JSON.parse(stored(localStorage, KEPT) || "[]"); } catch { /* not ours */ }
  const text = (value) => (typeof value === "string" ? value : "");
  return (Array.isArray(kept) ? kept : []).filter((turn) => turn && text(turn.prompt)).slice(-MAX_TURNS).map((turn) => ({
    prompt: text(turn.prompt), model: text(turn.model), answer: text(turn.answer), thoughts: text(turn.thoughts),
    thought_ms: Number(turn.thought_ms) || 0, state: turn.state === "waiting" ? "stopped" : text(turn.state),
    problem: text(turn.problem), facts: turn.facts && typeof turn.facts === "object" ? turn.facts : {},
  }));
}

function keepTurns() {
  let kept = turns.slice(-MAX_TURNS);
  for (; ; kept = kept.slice(Math.ceil(kept.length / 4))) { // (the oldest quarter goes)
    const text = JSON.stringify(kept);
    try {
      if (!kept.length) localStorage.removeItem(KEPT);
      else if (text.length > MAX_KEPT_CHARS && kept.length > 1) continue;
      else localStorage.setItem(KEPT, text);
      return;
    } catch {
      if (!kept.length) return; // (this browser keeps nothing: the conversation ends with the page)
    }
  }
}

// --- asking ---
class Problem extends Error {}

async function answer(turn) {
  const aborted = new AbortController();
  running = { turn, aborted };
  Object.assign(turn, { answer: "", thoughts: "", thought_ms: 0, state: "waiting", problem: "", facts: {} });
  setBusy(true);
  drawTurn(turn);
  toEnd();
  try {
    turn.state = await followAnswer(turn, aborted.signal);
  } catch (error) {
    turn.state = aborted.signal.aborted ? "stopped" : "failed";
    turn.problem = aborted.signal.aborted ? "" : error instanceof Problem ? error.message : turn.answer ? BROKEN : "The node does not answer. Is it still running?";
  }
  running = null;
  setBusy(false);
  drawTurn(turn);
  by("chat-says").textContent = turn.state === "failed" ? turn.problem : turn.state === "stopped" ? "Stopped." : "The answer is complete.";
  keepTurns();
}

// Reads the answer into `turn`; returns the turn's state at the end.
async function followAnswer(turn, signal) {
  const before = turns.slice(0, turns.indexOf(turn)).filter((one) => one.answer);
  const messages = before.flatMap((one) => [{ role: "user", content: one.prompt }, { role: "assistant", content: one.answer }]);
  messages.push({ role: "user", content: turn.prompt });
  const response = await fetch("/v1/chat/completions", {
    method: "POST", signal, cache: "no-store",
    headers: { ...credentials(), "content-type": "application/json" },
    body: JSON.stringify({ model: turn.model, messages, stream: true, stream_options: { include_usage: true } }),
  });
  if (response.status === 401) { await unlock(); return followAnswer(turn, signal); }
  if (!response.ok) throw await problemOf(response);
  const head = (name) => response.headers.get(name) || "", number = (name) => (head(name) ? Number(head(name)) : null);
  Object.assign(turn.facts, { id: head("x-request-id"), served_by: head("x-mycelia-served-by"), reason: head("x-mycelia-route"),
    cached_tokens: number("x-mycelia-cached-tokens"), ttft_ms: number("x-mycelia-ttft-ms") });
  if (requests.has(turn.facts.id)) onAnswerRow(requests.get(turn.facts.id));
  let reason = null, thinkingSince = 0;
  for await (const block of blocks(response)) {
    if (!block.startsWith("data: ")) continue; // (a comment: the node is still there)
    if (block === "data: [DONE]") return reason === "length" ? "length" : "done";
    const told = JSON.parse(block.slice(6));
    if (told.error) throw new Problem(sentence(told.error.message));
    if (told.usage) noteUsage(turn, told.usage);
    const choice = (told.choices || [])[0];
    if (!choice) continue;
    reason = choice.finish_reason || reason;
    const { content, reasoning_content: thought } = choice.delta || {};
    if (thought) {
      thinkingSince ||= performance.now();
      turn.thoughts += thought;
    }
    if (content) {
      if (thinkingSince && !turn.answer) turn.thought_ms = performance.now() - thinkingSince;
      turn.answer += content;
    }
    if (turn.answer.length + turn.thoughts.length > MAX_ANSWER_CHARS) throw new Problem("The answer is too long to be shown.");
    drawSoon();
  }
  throw new Problem(BROKEN);
}

async function problemOf(response) {
  let told = {};
  try { told = (await response.json()).error || {}; } catch { /* no JSON */ }
  const wait = Number(response.headers.get("retry-after")) || 0;
  if (told.code === "context_length_exceeded") return new Problem("The conversation has become longer than this model can read. Delete it and begin a new one.");
  const message = sentence(told.message || `the node answered with status ${response.status}`);
  return new Problem(wait && !/again/.test(message) ? `${message} Try again in ${wait} s.` : message);
}

const sentence = (text) => clip(text).replace(/^./, (first) => first.toUpperCase()).replace(/([^.!?…])$/, "$1.");

function noteUsage(turn, usage) {
  const cached = (usage.prompt_tokens_details || {}).cached_tokens;
  Object.assign(turn.facts, { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens });
  if (cached !== undefined) turn.facts.cached_tokens = cached;
}

// The node's own row of a request knows more than the headers, which leave before the answer.
function onAnswerRow(row) {
  const turn = turns.findLast((one) => one.facts.id && one.facts.id === row.id);
  if (!turn) return;
  for (const name of ["served_by", "reason", "ttft_ms", "prompt_tokens", "completion_tokens"]) if (row[name]) turn.facts[name] = row[name];
  if (row.status === "answered") turn.facts.cached_tokens = row.cached_tokens;
  if (running) { drawSoon(); return; }
  drawTurn(turn);
  keepTurns();
}

// --- drawing ---
function drawSoon() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    if (running) drawTurn(running.turn);
  });
}

function drawTurn(turn) {
  const atEnd = document.scrollingElement.scrollHeight - innerHeight - scrollY < 80;
  if (!articles.has(turn)) addArticle(turn);
  const { article, thoughts, summary, thought, said, problem, facts, copy, again } = articles.get(turn);
  const isWaiting = turn.state === "waiting";
  article.setAttribute("aria-busy", String(isWaiting));
  article.dataset.state = turn.state;
  thoughts.hidden = !turn.thoughts;
  summary.textContent = isWaiting && !turn.answer ? "Thinking …" : turn.thought_ms ? `Thought for ${ms(turn.thought_ms)}` : "Thoughts";
  if (thought.textContent !== turn.thoughts) thought.textContent = turn.thoughts;
  drawMarkdown(said, turn.answer);
  problem.textContent = turn.problem || { stopped: "Stopped.", length: "The answer was cut: the model can hold no more." }[turn.state] || "";
  problem.hidden = !problem.textContent;
  facts.textContent = factsOf(turn);
  facts.title = clip(turn.facts.reason);
  copy.hidden = isWaiting || !turn.answer;
  again.hidden = isWaiting || turn !== turns.at(-1);
  if (atEnd && isOpen) toEnd();
}

function factsOf(turn) {
  const { served_by: peer, cached_tokens: cached, prompt_tokens: prompt, completion_tokens: tokens, ttft_ms: first } = turn.facts;
  const where = !peer ? "" : state && peer === state.peer ? "this node" : `node ${short(peer)}`;
  if (turn.state === "waiting" && !turn.answer && !turn.thoughts) return where ? `${where} reads the prompt …` : "looking for a node …";
  const known = (value) => value !== null && value !== undefined;
  return [
    where && `served by ${where}`,
    known(cached) && (prompt ? `${cached} of ${prompt} prompt tokens cached` : `${cached} prompt tokens cached`),
    first && `first token after ${ms(first)}`,
    tokens && `${tokens} tokens`,
    turn.model,
  ].filter(Boolean).join(" · ");
}

function addArticle(turn) {
  const summary = el("summary"), thought = el("p"), thoughts = el("details", [summary, thought], "thoughts");
  const said = el("div", [], "answer"), problem = el("p", "", "problem"), facts = el("span", "", "facts");
  const copy = el("button", "Copy", "quiet"), again = el("button", "Try again", "quiet");
  for (const button of [copy, again]) button.type = "button";
  copy.setAttribute("aria-label", "Copy the answer");
  copy.onclick = () => copyText(turn.answer, copy);
  again.onclick = () => { if (!running) { turn.model = model(); answer(turn); } };
  const article = el("article", [el("div", turn.prompt, "prompt"), thoughts, said, problem, el("div", [facts, copy, again], "below")], "turn");
  by("log").append(article);
  articles.set(turn, { article, thoughts, summary, thought, said, problem, facts, copy, again });
}

function drawAll() {
  articles.clear();
  by("log").replaceChildren();
  for (const turn of turns) drawTurn(turn);
  drawWelcome();
}

function drawWelcome() {
  by("welcome").hidden = turns.length > 0;
  by("forget").hidden = turns.length === 0;
  if (!state || turns.length) return;
  const peers = state.peers.length;
  by("welcome-says").textContent = `Answers come from this node${peers ? `, or from one of its ${peers} peer${peers > 1 ? "s" : ""}: the one that has computed most of your prompt already, or is least busy` : ""}.`;
}

function drawModels(rows) {
  const chosen = model(), names = rows.map((row) => row.model);
  const talking = rows.filter((row) => row.model === chosen || !row.kind || row.kind === "text");
  const all = names.includes(chosen) ? talking : [{ model: chosen }, ...talking];
  replace(by("model"), all, () => all.map((row) => {
    const option = el("option", clip(row.model) + (row.nodes ? ` (${row.nodes === 1 ? "1 node" : `${row.nodes} nodes`})` : ""));
    option.value = row.model;
    return option;
  }));
  by("model").value = chosen;
}

const model = () => by("model").value || stored(localStorage, "model") || (state ? state.model : "");
const toEnd = () => scrollTo(0, document.scrollingElement.scrollHeight);

function openChat() {
  if (!isOpen) { drawModels([{ model: state.model }]); drawAll(); }
  isOpen = true;
  toEnd();
  by("prompt").focus({ preventScroll: true });
}

function setBusy(isBusy) {
  by("send").hidden = isBusy;
  by("stop").hidden = !isBusy;
  by("forget").disabled = isBusy;
}

// --- what the user does ---
function fit() {
  const prompt = by("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, MAX_PROMPT_PX)}px`;
}

by("compose").onsubmit = (event) => {
  event.preventDefault();
  const prompt = by("prompt").value.trim();
  if (!prompt || running) return;
  by("prompt").value = "";
  fit();
  const turn = { prompt, model: model(), facts: {} };
  turns = [...turns, turn].slice(-MAX_TURNS);
  for (const [one, { article, again }] of articles) {
    again.hidden = true;
    if (!turns.includes(one)) { article.remove(); articles.delete(one); }
  }
  answer(turn);
  drawWelcome();
};
by("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  by("compose").requestSubmit();
});
by("prompt").addEventListener("input", fit);
by("stop").onclick = () => { if (running) running.aborted.abort(); by("prompt").focus({ preventScroll: true }); };
addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.aborted.abort(); });
by("forget").onclick = () => {
  if (!confirm("Delete this conversation from this browser?")) return;
  turns = [];
  keepTurns();
  drawAll();
  by("prompt").focus();
};
by("model").onchange = () => {
  try { localStorage.setItem("model", by("model").value); } catch { /* the next visit begins with the node's own */ }
};
addEventListener("pagehide", () => { if (running) keepTurns(); });
addEventListener("storage", (event) => { // (another tab has gone on with the conversation)
  if (event.key !== KEPT || running) return;
  turns = readTurns();
  if (isOpen) drawAll();
});
