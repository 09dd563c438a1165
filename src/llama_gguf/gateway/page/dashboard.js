// Requests /dashboard/data every two seconds and draws it. Nothing else is ever fetched, and
// nothing from the server is inserted into the page as markup.
"use strict";

const KEY_NAME = "llama-gguf-key";
const EVERY_MS = 2000;
const WINDOWS = { last_minute: "Minute", last_hour: "Hour", last_day: "Day", total: "Total" };
const STATES = {
  starting: ["Starting", ""], loading: ["Loading the model", ""], ready: ["Ready", "good"],
  asleep: ["Asleep", "good"], draining: ["Draining", ""], backoff: ["Crashed, restarting", "bad"],
  failed: ["Failed", "bad"], stopping: ["Stopping", ""], stopped: ["Stopped", "bad"],
  unreachable: ["Engine unreachable", "bad"],
};
const CHARTS = [
  { title: "Requests per second", lines: [["requests_per_second", ""]], text: number },
  { title: "Tokens per second", text: number,
    lines: [["completion_tokens_per_second", "out"], ["prompt_tokens_per_second", "in"]] },
  { title: "Time to first token", text: seconds,
    lines: [["first_token_p50", "median"], ["first_token_p95", "95 %"]] },
  { title: "Requests in progress", text: number, whole: true,
    lines: [["running", "running"], ["waiting", "waiting"]] },
];
const HEIGHT = 160, LEFT = 50, RIGHT = 8, TOP = 10, BOTTOM = 20, STEPS = 180;

const find = (id) => document.getElementById(id);
let shownWindow = "last_hour";
let latest = null;
let timer = 0;

// Number formats --------------------------------------------------------------------------------

function number(value) {
  if (value === null || value === undefined) return "–";
  const digits = value === 0 || value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

function duration(value) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = Math.max(units.findIndex(([, size]) => value >= size), 0);
  const [unit, size] = value < 1 ? ["s", 1] : units[at];
  const text = `${Math.floor(value / size)} ${unit}`;
  const next = value < 60 ? null : units[at + 1];
  const rest = next ? Math.floor((value % size) / next[1]) : 0;
  return rest ? `${text} ${rest} ${next[0]}` : text;
}

// Elements -------------------------------------------------------------------------------------

function make(tag, attributes, ...children) {
  const isShape = ["svg", "path", "line", "text", "circle", "g"].includes(tag);
  const element = isShape
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function say(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}

// The key --------------------------------------------------------------------------------------

function askForKey(complaint) {
  find("numbers").hidden = true;
  find("state").hidden = true;
  find("sign-out").hidden = true;
  find("notice").hidden = true;
  find("sign-in").hidden = false;
  say("sign-in-error", complaint);
  find("key").value = "";
  find("key").focus();
}

find("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = find("key").value.trim();
  // A header field takes nothing else, and no key has anything else.
  if (!/^[\x21-\x7e]+$/.test(key)) {
    askForKey("A key contains only letters, digits, - and _.");
    return;
  }
  sessionStorage.setItem(KEY_NAME, key);
  look();
});

find("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem(KEY_NAME);
  clearTimeout(timer);
  askForKey("");
});

// Requests -------------------------------------------------------------------------------------

async function look() {
  clearTimeout(timer);
  const key = sessionStorage.getItem(KEY_NAME);
  if (!key && document.documentElement.dataset.keys === "needed") {
    askForKey("");  // a request without one would count as an invalid key
    return;
  }
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await fetch("dashboard/data", { headers, cache: "no-store" });
    if (sessionStorage.getItem(KEY_NAME) !== key) return;
    if (response.status === 401) {
      sessionStorage.removeItem(KEY_NAME);
      askForKey("This key is invalid or has expired.");
      return;
    }
    if (!response.ok) throw new Error(`status ${response.status}`);
    latest = await response.json();
    find("notice").hidden = true;
    show(latest);
  } catch (error) {
    say("notice", `The server does not respond (${error.message}). Retrying …`);
    find("notice").hidden = false;
  }
  timer = setTimeout(look, document.hidden ? 5 * EVERY_MS : EVERY_MS);
}

window.addEventListener("resize", () => {
  if (latest) charts.forEach((chart) => chart.draw(latest.history));
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && latest) look();
});

// Showing --------------------------------------------------------------------------------------

function show(data) {
  find("sign-in").hidden = true;
  find("numbers").hidden = false;
  find("sign-out").hidden = !sessionStorage.getItem(KEY_NAME);
  showEngine(data);
  showTiles(data);
  charts.forEach((chart) => chart.draw(data.history));
  showKeys(data);
  showErrors(data.errors);
  say("about", `llama-gguf ${data.version}, up for ${duration(data.uptime_seconds)}`);
}

function showEngine(data) {
  const [words, mood] = STATES[data.engine.state] || [data.engine.state, ""];
  const progress = data.engine.progress;
  const text = progress === null ? words : `${words}: ${Math.floor(progress * 100)} %`;
  const since = (Date.now() - Date.parse(data.engine.since)) / 1000;
  const state = find("state");
  state.hidden = false;
  state.className = `state ${mood}`;
  state.title = data.engine.detail;
  // The seconds are left out, so that a screen reader announces only changes.
  say("state", since >= 60 ? `${text} for ${duration(since - (since % 60))}` : text);
  const name = data.model.name || "llama-gguf";
  say("model", name);
  say("facts", factsOf(data).filter(Boolean).join(" · "));
  document.title = `${text} · ${name}`;
}

function factsOf({ model, engine }) {
  const size = model.size_bytes >= 1e9 ? `${(model.size_bytes / 1e9).toFixed(1)} GB`
    : model.size_bytes && `${Math.round(model.size_bytes / 1e6)} MB`;
  const parameters = model.parameters >= 1e9 ? `${(model.parameters / 1e9).toFixed(1)} B parameters`
    : model.parameters && `${Math.round(model.parameters / 1e6)} M parameters`;
  return [
    model.architecture, parameters, model.quantization, size,
    model.context && `context ${number(model.context)}`,
    engine.restarts ? `${engine.restarts} restarts` : "",
    engine.detail,
  ];
}

function showTiles({ slots, queue, recent }) {
  say("slots", `${slots.used} of ${slots.total}`);
  say("slots-note", slots.total && slots.used >= slots.total ? "all in use" : "in use");
  fill("slots-bar", slots.used, slots.total);
  say("queue", number(queue.length));
  say("queue-note", `room for ${number(queue.size)}`);
  fill("queue-bar", queue.length, queue.size);
  say("requests", number(recent.requests_per_second));
  say("tokens", number(recent.completion_tokens_per_second));
  say("tokens-in", number(recent.prompt_tokens_per_second));
  say("p50", seconds(recent.first_token_p50));
  say("p95", seconds(recent.first_token_p95));
}

function fill(id, value, whole) {
  const share = whole ? Math.min(value / whole, 1) : 0;
  find(id).style.width = `${100 * share}%`;
  find(id).className = share >= 1 ? "full" : "";
}

function budgetCell(budgets) {
  const entries = Object.entries(budgets);
  const isUsedUp = entries.some(([, { remaining }]) => !remaining);
  const lines = entries.map(([name, { used, limit }]) =>
    make("div", {}, `${number(used)} of ${number(limit)} ${name.replaceAll("_", " ")}`));
  return make("td", { class: isUsedUp ? "wrong" : lines.length ? "" : "none" }, ...lines);
}

function showKeys({ keys, key_id, sees_all, usage_since }) {
  const rows = keys.map((account) => {
    const counts = account[shownWindow];
    const cell = (name) => {
      const value = counts[name];
      const mood = !value ? "none" : name === "errors" ? "wrong" : "";
      return make("td", { class: mood }, number(value));
    };
    const name = account.key_id === "-" ? "(no key required)" : account.key_id;
    return make("tr", {},
      make("th", { scope: "row" }, account.key_id === key_id && sees_all ? `${name} (you)` : name),
      ...["requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens"].map(cell),
      budgetCell(account.budgets));
  });
  find("keys").replaceChildren(...rows);
  const unknown = keys.reduce((sum, key) => sum + key[shownWindow].responses_without_usage, 0);
  say("keys-note", [
    sees_all ? "" : "Only your key is shown; keys in ADMIN_KEY_IDS see all keys.",
    unknown ? `${number(unknown)} responses without complete token usage.` : "",
    `Counted since ${new Date(usage_since).toLocaleString()}.`,
  ].filter(Boolean).join(" "));
}

function showErrors(errors) {
  const rows = Object.entries(errors).map(([reason, count]) =>
    make("li", {}, make("span", {}, reason.replaceAll("_", " ")), make("b", {}, number(count))));
  find("errors").replaceChildren(...(rows.length ? rows : [make("li", {}, "None.")]));
}

// Charts ---------------------------------------------------------------------------------------

class Chart {
  constructor({ title, lines, text, whole }) {
    Object.assign(this, { title, lines, text, whole, series: [], at: null });
    this.values = lines.map(() => make("span", {}, ""));
    const legend = lines.map(([, label], n) =>
      make("span", {}, make("i", { class: n ? "two" : "" }), label && `${label} `, this.values[n]));
    this.svg = make("svg", { height: HEIGHT, role: "img", tabindex: "0", "aria-label": title });
    this.figure = make("figure", { class: "card chart" },
      make("figcaption", {}, make("strong", {}, title), ...legend), this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.moveTo(null));
    this.svg.addEventListener("blur", () => this.moveTo(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
  }

  get length() { return this.series[0]?.length || 0; }

  x(step) { return LEFT + ((STEPS - this.length + step) / (STEPS - 1)) * (this.width - LEFT - RIGHT); }

  y(value) { return HEIGHT - BOTTOM - (value / this.top) * (HEIGHT - TOP - BOTTOM); }

  draw(history) {
    this.width = this.svg.clientWidth;
    this.series = this.lines.map(([name]) => history[name]);
    this.seconds = history.step_seconds;
    this.top = niceTop(Math.max(...this.series.flat().map((value) => value || 0)), this.whole);
    this.svg.replaceChildren(...this.frame(), ...this.series.flatMap((s, n) => this.line(s, n)));
    this.moveTo(this.at);
  }

  frame() {
    const marks = this.whole && this.top % 2 ? [0, this.top] : [0, this.top / 2, this.top];
    const lines = marks.flatMap((value) => [
      make("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(value), y2: this.y(value) }),
      make("text", { x: LEFT - 6, y: this.y(value) + 4, "text-anchor": "end" }, this.text(value)),
    ]);
    const times = [[0, "start", "15 min ago"], [STEPS - 1, "end", "now"]].map(([step, anchor, text]) =>
      make("text", {
        x: LEFT + (step / (STEPS - 1)) * (this.width - LEFT - RIGHT), y: HEIGHT - 5, "text-anchor": anchor,
      }, text));
    return [...lines, ...times];
  }

  line(series, n) {
    // A step without a value is a gap, and one alone is a dot: round caps draw it.
    let path = "", isPenDown = false;
    series.forEach((value, step) => {
      if (value !== null) {
        path += `${isPenDown ? "L" : "M"}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`;
        if (!isPenDown) path += "h0";
      }
      isPenDown = value !== null;
    });
    const shapes = [make("path", { class: n ? "line two" : "line", d: path })];
    if (!n && series.length && series.every((value) => value !== null)) {
      const base = this.y(0);
      const area = `${path.replace("h0", "")}V${base}H${this.x(0).toFixed(1)}Z`;
      shapes.unshift(make("path", { class: "area", d: area }));
    }
    return shapes;
  }

  point(event) {
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const step = Math.round(((x - LEFT) / (this.width - LEFT - RIGHT)) * (STEPS - 1));
    this.moveTo(step - (STEPS - this.length));
  }

  onKey(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -STEPS, End: STEPS };
    if (event.key === "Escape") this.moveTo(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.moveTo((this.at ?? this.length) + moves[event.key]);
  }

  moveTo(step) {
    this.at = step === null || !this.length ? null : Math.min(Math.max(step, 0), this.length - 1);
    this.cursor?.remove();
    const shown = this.at ?? this.length - 1;
    this.values.forEach((span, n) => { span.textContent = this.text(this.series[n]?.[shown]); });
    const ago = (this.length - 1 - shown) * this.seconds;
    const when = this.at === null ? "now" : ago ? `${duration(ago)} ago` : "now";
    const spoken = this.lines.map(([, label], n) => `${label} ${this.values[n].textContent}`.trim());
    this.svg.setAttribute("aria-label", `${this.title}, ${when}: ${spoken.join(", ")}`);
    if (this.at === null) return;
    const x = this.x(this.at);
    const anchor = x > this.width / 2 ? "end" : "start";
    this.cursor = make("g", {},
      make("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
      make("text", { x: x + (anchor === "end" ? -5 : 5), y: TOP + 8, "text-anchor": anchor }, when));
    this.svg.append(this.cursor);
  }
}

// The least of 1, 2, 5, 10, 20 … that is not below the value.
function niceTop(value, whole) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const top = [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
  return whole ? Math.max(Math.round(top), 1) : top;
}

// Start ----------------------------------------------------------------------------------------

const charts = CHARTS.map((about) => new Chart(about));
find("charts").append(...charts.map((chart) => chart.figure));

for (const [name, label] of Object.entries(WINDOWS)) {
  const input = make("input", { type: "radio", name: "window", value: name });
  input.checked = name === shownWindow;
  input.addEventListener("change", () => {
    shownWindow = name;
    if (latest) showKeys(latest);
  });
  find("windows").append(make("label", {}, input, make("span", {}, label)));
}

look();
