// A conversation with the model, streamed, to try it. It is kept only by this page.

import { find, make, setText } from "./elements.js";
import { number, seconds } from "./formats.js";
import { request } from "./server.js";

let model = "default";
let messages = [];
let running = null;

export function setModel(data) {
  model = data.model.name || model;
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function bubble(role, text) {
  const content = make("div", { class: "text" }, text);
  const who = role === "user" ? "You" : "Model";
  find("chat-log").append(make("div", { class: `message ${role}` }, make("strong", {}, who), content));
  return content;
}

async function send(text) {
  const conversation = messages;  // "New conversation" begins another one meanwhile
  bubble("user", text);
  conversation.push({ role: "user", content: text });
  const thought = make("span", { class: "thought" });
  const spoken = make("span");
  const output = bubble("assistant", "");
  output.append(thought, spoken);
  setRunning(new AbortController());
  const begin = performance.now();
  let first = null, usage = null;
  setText("chat-note", "Waiting for the first token …");
  try {
    const response = await request("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model, messages: conversation, stream: true, stream_options: { include_usage: true } }),
      signal: running.signal,
    });
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message || "the stream was broken off");
      const delta = event.choices?.[0]?.delta || {};
      const piece = delta.content || "", thinking = delta.reasoning_content || delta.reasoning || "";
      if ((piece || thinking) && first === null) {
        first = (performance.now() - begin) / 1000;
        setText("chat-note", "Receiving …");
      }
      thought.append(thinking);
      spoken.append(piece);
      usage = event.usage || usage;
      keepAtEnd();
    }
    setText("chat-note", [
      first === null ? "No text" : `First token after ${seconds(first)}`,
      usage && `${number(usage.prompt_tokens)} tokens in, ${number(usage.completion_tokens)} out`,
    ].filter(Boolean).join(", "));
  } catch (error) {
    const isStopped = error.name === "AbortError";
    setText("chat-note", isStopped ? "Stopped." : `It failed: ${error.message}`);
  }
  // Without a response, the message can be sent again.
  if (spoken.textContent) conversation.push({ role: "assistant", content: spoken.textContent });
  else conversation.pop();
  setRunning(null);
}

function keepAtEnd() {
  const log = find("chat-log");
  log.scrollTop = log.scrollHeight;
}

function setRunning(controller) {
  running = controller;
  if (document.activeElement === find("chat-stop")) find("chat-text").focus();
  find("chat-stop").disabled = !controller;
  // Announced as a whole once it is complete, and not piece by piece.
  find("chat-log").setAttribute("aria-busy", String(Boolean(controller)));
}

find("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("chat-text").value.trim();
  if (!text || running) return;
  find("chat-text").value = "";
  send(text);
});

// Enter sends, and Shift with Enter begins a line, as in other chats.
find("chat-text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find("chat-form").requestSubmit();
});

find("chat-stop").addEventListener("click", () => running?.abort());

find("chat-new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  find("chat-log").replaceChildren();
  setText("chat-note", "");
  find("chat-text").focus();
});
