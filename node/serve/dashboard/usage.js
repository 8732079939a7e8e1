// What each API key used: the sums of today and of the last days, and the tokens of each day.
const USAGE_MS = 30_000, USAGE_DAYS = 30, MAX_USAGE_ROWS = 40;
const tokensOf = (row) => row.prompt_tokens + row.completion_tokens;
const counted = (value) => (value < 10_000 ? String(value) : value < 1e6 ? `${Math.round(value / 1e3)} k` : `${(value / 1e6).toFixed(1)} M`);

function drawUsage(rows) {
  const dayOf = (ago) => new Date(Date.now() - 86_400_000 * ago).toISOString().slice(0, 10);
  const today = dayOf(0), days = new Map();
  for (let ago = USAGE_DAYS - 1; ago >= 0; ago -= 1) days.set(dayOf(ago), 0);
  const sums = new Map();
  for (const row of rows) {
    days.set(row.day, (days.get(row.day) || 0) + tokensOf(row));
    const name = JSON.stringify([row.key, row.model]);
    const sum = sums.get(name) || { key: row.key, model: row.model, today: 0, tokens: 0, requests: 0, refused: 0, prompt: 0, cached: 0 };
    sums.set(name, sum);
    if (row.day === today) sum.today += tokensOf(row);
    sum.tokens += tokensOf(row);
    sum.requests += row.requests;
    sum.refused += row.refused;
    sum.prompt += row.prompt_tokens;
    sum.cached += row.cached_tokens;
  }
  const most = [...sums.values()].sort((a, b) => b.tokens - a.tokens || (a.key < b.key ? -1 : 1));
  by("no-usage").hidden = most.length > 0;
  by("usage").hidden = most.length === 0;
  by("usage-days").parentElement.hidden = most.length === 0;
  replace(by("usage").tBodies[0], most, () => most.slice(0, MAX_USAGE_ROWS).map((sum) => el("tr", [
    el("td", clip(sum.key)), el("td", clip(sum.model) || "–"), el("td", counted(sum.today), "num"), el("td", counted(sum.tokens), "num"),
    el("td", percent(sum.cached, sum.prompt), "num"), el("td", counted(sum.requests), "num"), el("td", sum.refused ? counted(sum.refused) : "–", "num"),
  ])));
  const points = [...days.values()].slice(-USAGE_DAYS), top = Math.max(100, ...points);
  plot(by("usage-days"), points.map((tokens, n) => [n / (USAGE_DAYS - 1), tokens / top]), (y) => counted(Math.round(y * top)));
  by("usage-now").textContent = `${counted(points.at(-1))} today`;
}
