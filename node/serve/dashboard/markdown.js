// Shows the Markdown of answers. Their text may come from strangers: it becomes text nodes, never markup, and links stay
// text. Every step takes time linear in the text, so that no answer can freeze the page. ([^]* and not .*, which a line
// separator inside a line stops, so that each of the blanks before would be tried as the end.)
const MAX_DEPTH = 3, MAX_LEVEL = 3;
const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]{0,24})/, HEADING = /^(#{1,6})\s+([^]*)$/, QUOTE = /^\s{0,3}>\s?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+([^]*)$/, RULE = /^\s*(?:\*{3,}|-{3,}|_{3,})\s*$/;
const TABLE_RULE = /^[\s|:-]{0,400}$/;

// Draws `text` into `parent`. Blocks that have not changed stay, so that a reader's selection stays.
const shown = new WeakMap();
function drawMarkdown(parent, text) {
  const before = shown.get(parent) || [], now = blocksOf(text);
  let same = 0;
  while (same < before.length && same < now.length && before[same] === now[same].source) same += 1;
  while (parent.children.length > same) parent.lastChild.remove();
  for (const block of now.slice(same)) parent.append(block.make());
  shown.set(parent, now.map((block) => block.source));
}

function blocksOf(text) {
  const lines = text.split("\n"), found = [];
  let at = 0;
  // Lines from here on while `holds`; at least one.
  const take = (holds) => {
    const from = at;
    do at += 1; while (at < lines.length && holds(lines[at], at));
    return lines.slice(from, at);
  };
  const add = (from, make) => found.push({ source: lines.slice(from, at).join("\n") + (at < lines.length ? "\n" : ""), make });
  while (at < lines.length) {
    const line = lines[at], from = at, fence = FENCE.exec(line);
    if (!line.trim()) { at += 1; continue; }
    if (fence) {
      const code = take((one) => !isEnd(one, fence[1])).slice(1);
      at += 1; // (the end of the block, or past the end of the text)
      add(from, () => codeBlock(code.join("\n"), fence[2]));
    } else if (RULE.test(line)) {
      at += 1;
      add(from, () => el("hr"));
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(take(() => false)[0]);
      add(from, () => el(`h${Math.min(marks.length + 2, 6)}`, inline(title)));
    } else if (ITEM.test(line)) {
      const items = take((one) => ITEM.test(one) || (/^\s+\S/.test(one) && !FENCE.test(one)));
      add(from, () => list(items));
    } else if (QUOTE.test(line)) {
      const quoted = take((one) => QUOTE.test(one)).map((one) => one.replace(QUOTE, ""));
      add(from, () => el("blockquote", inline(quoted.join("\n"))));
    } else if (isTable(line, lines[at + 1])) {
      const rows = take((one) => one.includes("|"));
      add(from, () => table(rows));
    } else {
      const words = take((one, n) => one.trim() && !begins(one) && !isTable(one, lines[n + 1]));
      add(from, () => el("p", inline(words.join("\n"))));
    }
  }
  return found;
}

const begins = (line) => FENCE.test(line) || RULE.test(line) || HEADING.test(line) || ITEM.test(line) || QUOTE.test(line);
const isEnd = (line, fence) => line.trim().length >= fence.length && line.trim() === fence[0].repeat(line.trim().length);
const isTable = (line, next) => line.includes("|") && next !== undefined && next.includes("-") && next.includes("|") && TABLE_RULE.test(next);

function codeBlock(code, language) {
  const copy = el("button", "Copy", "copy");
  copy.type = "button";
  copy.onclick = () => copyText(code, copy);
  return el("div", [el("div", [el("span", language || "code"), copy], "code-head"), el("pre", el("code", code))], "code-block");
}

function list(lines) {
  const made = el(/^\s*\d/.test(lines[0]) ? "ol" : "ul");
  const outer = ITEM.exec(lines[0])[1].length;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (!item) { made.lastChild.append("\n", ...inline(line.trim())); continue; }
    const one = el("li", inline(item[3]));
    const level = Math.min(Math.max(0, Math.floor((item[1].length - outer) / 2)), MAX_LEVEL);
    one.className = `level-${level}${/\d/.test(item[2]) ? " numbered" : " dotted"}`;
    if (/\d/.test(item[2])) one.value = parseInt(item[2], 10);
    made.append(one);
  }
  return made;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());
  const row = (name, line) => el("tr", cells(line).map((cell) => el(name, inline(cell))));
  const made = el("table", [el("thead", row("th", lines[0])), el("tbody", lines.slice(2).map((line) => row("td", line)))]);
  return el("div", made, "scroll");
}

// Code, bold and italic inside a block: a list of texts and elements.
function inline(text, depth = 0) {
  const out = [], without = new Set(); // (`without`: marks that do not come again)
  let plain = 0, at = 0;
  const end = (mark, from) => {
    if (without.has(mark)) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) without.add(mark);
    return found;
  };
  const put = (until, element, next) => {
    if (until > plain) out.push(text.slice(plain, until));
    out.push(element);
    plain = at = next;
  };
  while (at < text.length) {
    const mark = text[at];
    if (mark !== "`" && mark !== "*") { at += 1; continue; }
    let past = at;
    while (text[past] === mark) past += 1;
    const run = text.slice(at, past), close = run.length <= 3 && text[past] !== undefined ? end(run, past) : -1;
    const inner = close < 0 ? "" : text.slice(past, close);
    if (mark === "`" && inner) {
      put(at, el("code", inner), close + run.length);
    } else if (mark === "*" && inner && depth < MAX_DEPTH && inner === inner.trim() && (run.length > 1 || !inner.includes("\n"))) {
      put(at, el(run.length === 1 ? "em" : "strong", inline(inner, depth + 1)), close + run.length);
    } else {
      at = past;
    }
  }
  if (plain < text.length) out.push(text.slice(plain));
  return out;
}

// Copies a text. Pages that come over plain HTTP from another machine have no clipboard of their own.
async function copyText(text, button) {
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", text, "unseen");
    document.body.append(area);
    area.select();
    isCopied = document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = isCopied ? "Copied" : "Not copied";
  setTimeout(() => { button.textContent = before; }, 1500);
}
