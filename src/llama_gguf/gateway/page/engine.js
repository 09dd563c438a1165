// The engine: its state, the tiles, the replicas, memory, the last crash and the log.

import { find, make, setRows, setText } from "./elements.js";
import { bytes, duration, number, percent, seconds, words } from "./formats.js";
import { json } from "./server.js";

const LOG_EVERY_MS = 5000;
const STATES = {
  starting: ["Starting", ""], loading: ["Loading the model", ""], ready: ["Ready", "good"],
  asleep: ["Asleep", "good"], draining: ["Draining", ""], backoff: ["Crashed, restarting", "bad"],
  failed: ["Failed", "bad"], stopping: ["Stopping", ""], stopped: ["Stopped", "bad"],
  unreachable: ["Engine unreachable", "bad"],
};

const stateOf = (name) => STATES[name] || [words(name), ""];

export function showEngine(data) {
  const [label, mood] = stateOf(data.engine.state);
  const progress = data.engine.progress;
  const text = progress === null ? label : `${label}: ${Math.floor(progress * 100)} %`;
  const since = (Date.now() - Date.parse(data.engine.since)) / 1000;
  const state = find("state");
  state.hidden = false;
  state.className = `state ${mood}`;
  state.title = data.engine.detail;
  // The seconds are left out, so that a screen reader announces only changes.
  setText("state", since >= 60 ? `${text} for ${duration(since - (since % 60))}` : text);
  const name = data.model.name || "llama-gguf";
  setText("model", name);
  setText("facts", factsOf(data).filter(Boolean).join(" · "));
  document.title = `${text} · ${name}`;
  showReplicas(data.replicas);
  showMemory(data);
  showCrash(data);
  find("log").hidden = !data.sees_all;
}

function factsOf({ model, engine }) {
  const size = model.size_bytes && bytes(model.size_bytes);
  const parameters = model.parameters >= 1e9 ? `${(model.parameters / 1e9).toFixed(1)} B parameters`
    : model.parameters && `${Math.round(model.parameters / 1e6)} M parameters`;
  return [
    model.architecture, parameters, model.quantization, size,
    model.context && `context ${number(model.context)}`,
    engine.restarts ? `${engine.restarts} restarts` : "",
    engine.detail,
  ];
}

export function showTiles({ slots, queue, recent }) {
  setText("slots", `${slots.used} of ${slots.total}`);
  setText("slots-note", slots.total && slots.used >= slots.total ? "all in use" : "in use");
  fill("slots-bar", slots.used, slots.total);
  setText("queue", number(queue.length));
  setText("queue-note", `room for ${number(queue.size)}`);
  fill("queue-bar", queue.length, queue.size);
  setText("requests-rate", number(recent.requests_per_second));
  setText("tokens", number(recent.completion_tokens_per_second));
  setText("tokens-in", number(recent.prompt_tokens_per_second));
  setText("p50", seconds(recent.first_token_p50));
  setText("p95", seconds(recent.first_token_p95));
}

function fill(id, value, whole) {
  const share = whole ? Math.min(value / whole, 1) : 0;
  find(id).style.width = `${100 * share}%`;
  find(id).className = share >= 1 ? "full" : "";
}

function showReplicas(replicas) {
  setRows("replicas", JSON.stringify(replicas), () => replicas.map((replica) => {
    const [label, mood] = stateOf(replica.state);
    return make("tr", {},
      make("th", { scope: "row" }, replica.replica),
      make("td", { class: mood === "bad" ? "wrong left" : "left", title: replica.detail || "" }, label),
      make("td", {}, `${number(replica.slots_busy)} of ${number(replica.slots)}`),
      make("td", {}, number(replica.tokens_per_second)),
      make("td", {}, percent(replica.cached_ratio)));
  }));
}

function promptsOf(cache) {
  if (!cache) return [];
  const spared = `${number(cache.spared_tokens)} tokens, ${duration(cache.spared_seconds)}`;
  return [
    ["Saved prompts", `${number(cache.files)}, ${bytes(cache.bytes)}`],
    ["Spared by restored prompts", spared],
  ];
}

function showMemory({ gpus, engine_memory, prompt_cache }) {
  const gpuRows = gpus.map(({ index, name, used, total, busy }) => [
    `GPU ${index}: ${name}`,
    `${bytes(used)} of ${bytes(total)}${busy === null ? "" : `, ${percent(busy)} busy`}`,
  ]);
  const ownRows = engine_memory.map(({ name, value }) =>
    [words(name), name.endsWith("ratio") ? percent(value) : number(value)]);
  const rows = [...gpuRows, ...ownRows, ...promptsOf(prompt_cache)];
  find("memory").hidden = !rows.length;
  setRows("memory", JSON.stringify(rows), () => rows.map(([label, value]) =>
    make("li", {}, make("span", {}, label), make("b", {}, value))));
}

function showCrash({ engine, last_advice, sees_all }) {
  find("crash").hidden = !(sees_all && engine.last_exit);
  setText("crash-reason", engine.last_exit);
  setText("crash-advice", last_advice || "");
}

// The log ---------------------------------------------------------------------------------------

let timer = 0;

async function showLog() {
  clearTimeout(timer);
  if (!find("log").open || document.hidden) return;
  try {
    const { file, lines } = await json("dashboard/log");
    const box = find("log-lines");
    const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
    setText("log-file", file || "There is no log of an engine here.");
    setText("log-lines", lines.join("\n"));
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  } catch (error) {
    setText("log-file", `The log cannot be shown: ${error.message}`);
  }
  timer = setTimeout(showLog, LOG_EVERY_MS);
}

find("log").addEventListener("toggle", showLog);
document.addEventListener("visibilitychange", showLog);
