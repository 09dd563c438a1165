// The usage and the limits of keys; administrators also create, change and revoke keys.

import { addChoices, confirmed, find, make, setRows, setText } from "./elements.js";
import { number, words } from "./formats.js";
import { json } from "./server.js";

// Usage -----------------------------------------------------------------------------------------

const WINDOWS = { last_minute: "Minute", last_hour: "Hour", last_day: "Day", total: "Total" };
const COUNTS = ["requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens"];
let shownWindow = "last_hour";
let latest = null;

addChoices("windows", Object.entries(WINDOWS), shownWindow, (name) => {
  shownWindow = name;
  if (latest) showUsage(latest);
});

export function showUsage(data) {
  latest = data;
  const { keys, keys_used, key_id, sees_all, usage_since } = data;
  const shown = [shownWindow, keys.map((key) => [key.key_id, key[shownWindow], key.budgets, key.requests_per_minute])];
  setRows("keys", JSON.stringify(shown), () => keys.map((account) => {
    const name = account.key_id === "-" ? "(no key required)" : account.key_id;
    return make("tr", {},
      make("th", { scope: "row" }, account.key_id === key_id && sees_all ? `${name} (you)` : name),
      ...COUNTS.map((count) => countCell(account[shownWindow][count], count)),
      limitsCell(account));
  }));
  const unknown = keys.reduce((sum, key) => sum + key[shownWindow].responses_without_usage, 0);
  setText("keys-note", [
    sees_all && keys.length < keys_used ? `The last used ${number(keys.length)} of ${number(keys_used)} keys.` : "",
    sees_all ? "" : "Only your key is shown; keys in ADMIN_KEY_IDS see and manage all keys.",
    unknown ? `${number(unknown)} responses without complete token usage.` : "",
    `Counted since ${new Date(usage_since).toLocaleString()}.`,
  ].filter(Boolean).join(" "));
}

function countCell(value, name) {
  const mood = !value ? "none" : name === "errors" ? "wrong" : "";
  return make("td", { class: mood }, number(value));
}

function limitsCell({ budgets, requests_per_minute: rate }) {
  const entries = Object.entries({ ...(rate && { requests_per_minute: rate }), ...budgets });
  const isUsedUp = entries.some(([, { remaining }]) => remaining <= 0);
  const lines = entries.map(([name, { used, limit, remaining }]) =>
    make("div", {}, `${number(used)} of ${number(limit)} ${words(name)}, ${number(remaining)} left`));
  return make("td", { class: isUsedUp ? "wrong" : lines.length ? "" : "none" }, ...(lines.length ? lines : ["none"]));
}

// Management ------------------------------------------------------------------------------------

const FIELDS = [
  { name: "rate_limit", label: "Requests per minute", hint: "empty: the server's default" },
  { name: "tokens_per_minute", label: "Tokens per minute" },
  { name: "tokens_per_day", label: "Tokens per day" },
  { name: "tokens_per_month", label: "Tokens per month" },
  { name: "engine_seconds_per_day", label: "Engine-seconds per day" },
  { name: "expires", label: "Expires", hint: "such as 30d, 24h or 2027-01-31", isText: true },
  { name: "routes", label: "Routes", isText: true },
  { name: "from", label: "Networks", hint: "such as 10.0.0.0/8", isText: true },
  { name: "weight", label: "Weight in the queue", hint: "1 to 100" },
  { name: "priority", label: "Priority", hint: "normal or low", isText: true },
];
let isLoaded = false;
let edited = null;

export function showManagement({ sees_all }) {
  find("manage").hidden = !sees_all;
  if (sees_all && !isLoaded) {
    isLoaded = true;
    loadKeys();
  }
}

async function loadKeys() {
  try {
    const { keys, total, scopes } = await json("dashboard/keys");
    find("hint-routes").textContent = `names of: ${scopes.join(", ")}; separated by commas`;
    setRows("managed", JSON.stringify(keys), () => keys.map(managedRow));
    setText("managed-note", keys.length < total ? `The first ${number(keys.length)} of ${number(total)} keys.` : "");
  } catch (error) {
    isLoaded = false;
    setText("manage-result", `The keys cannot be listed: ${error.message}`);
  }
}

function managedRow(key) {
  const limits = { ...(key.rate_limit && { requests_per_minute: key.rate_limit }), ...key.attributes };
  const texts = Object.entries(limits).map(([name, value]) => make("div", {}, `${words(name)}: ${value}`));
  const change = make("button", { type: "button", class: "second" }, "Change", hidden(` ${key.key_id}`));
  change.addEventListener("click", () => openForm(key));
  const revoke = make("button", { type: "button", class: "danger" }, "Revoke", hidden(` ${key.key_id}`));
  revoke.addEventListener("click", () => revokeKey(key));
  return make("tr", {},
    make("th", { scope: "row" }, key.is_admin ? `${key.key_id} (administrator)` : key.key_id),
    make("td", { class: "left" }, make("div", { class: "actions" }, change, revoke)),
    make("td", { class: "left" }, ...(texts.length ? texts : ["defaults"])),
    make("td", { class: "left" }, key.expires || "never"));
}

function hidden(text) {
  return make("span", { class: "unseen" }, text);
}

const change = (parameters) =>
  json(`dashboard/keys?${new URLSearchParams(parameters)}`, { method: "POST" });

async function revokeKey({ key_id }) {
  const isConfirmed = await confirmed({
    title: `Revoke ${key_id}?`,
    text: "Requests with this key are refused from now on. This cannot be undone.",
    action: "Revoke",
  });
  if (!isConfirmed) return;
  try {
    await change({ action: "revoke", name: key_id });
    setText("manage-result", `${key_id} is revoked.`);
  } catch (error) {
    setText("manage-result", `${key_id} is not revoked: ${error.message}`);
  }
  await loadKeys();
  find("key-create").focus();  // the button that was pressed is gone
}

// The form for a new key, and for the limits of an old one.

for (const { name, label, hint, isText } of FIELDS) {
  const attributes = { id: `field-${name}`, autocomplete: "off", "aria-describedby": `hint-${name}` };
  if (!isText) attributes.inputmode = "numeric";
  find("key-fields").append(make("div", {},
    make("label", { for: `field-${name}` }, label),
    make("input", attributes),
    make("span", { id: `hint-${name}`, class: "muted" }, hint || "")));
}
find("key-fields").prepend(make("div", { id: "name-field" },
  make("label", { for: "field-name" }, "Name"),
  make("input", { id: "field-name", autocomplete: "off", autocapitalize: "none", spellcheck: "false", required: "" })));

const valueOf = (key, name) =>
  ({ rate_limit: key.rate_limit, expires: key.expires })[name] ?? key.attributes[name] ?? "";

function openForm(key) {
  edited = key;
  setText("key-dialog-title", key ? `Limits of ${key.key_id}` : "Create a key");
  setText("key-save", key ? "Save" : "Create");
  setText("key-error", "");
  find("name-field").hidden = Boolean(key);
  find("field-name").disabled = Boolean(key);
  find("field-name").value = "";
  for (const { name } of FIELDS) find(`field-${name}`).value = key ? valueOf(key, name) : "";
  find("key-dialog").showModal();
}

async function saveForm() {
  const parameters = { action: edited ? "set" : "create", name: edited ? edited.key_id : find("field-name").value.trim() };
  for (const { name } of FIELDS) {
    const text = find(`field-${name}`).value.trim();
    const isChanged = edited ? text !== String(valueOf(edited, name)) : Boolean(text);
    if (isChanged) parameters[name] = text;
  }
  const { key_id, secret } = await change(parameters);
  find("key-dialog").close();
  setText("manage-result", edited ? `The limits of ${key_id} are changed.` : `${key_id} is created.`);
  if (secret) showSecret(key_id, secret);
  await loadKeys();
}

find("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  find("key-save").disabled = true;
  try {
    await saveForm();
  } catch (error) {
    setText("key-error", error.message);
  }
  find("key-save").disabled = false;
});

find("key-create").addEventListener("click", () => openForm(null));
find("key-cancel").addEventListener("click", () => find("key-dialog").close());

function showSecret(name, secret) {
  setText("secret-title", `The key ${name}`);
  setText("secret", secret);
  find("secret-dialog").showModal();
}

find("secret-done").addEventListener("click", () => find("secret-dialog").close());
find("secret-dialog").addEventListener("close", () => setText("secret", ""));
