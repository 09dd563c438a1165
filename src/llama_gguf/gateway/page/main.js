// Requests the data every two seconds while the page is visible, and shows it.

import { showAccess } from "./access.js";
import { drawCharts } from "./charts.js";
import { setModel } from "./chat.js";
import { addChoices, find, setText } from "./elements.js";
import { showEngine, showTiles } from "./engine.js";
import { duration } from "./formats.js";
import { showManagement, showUsage } from "./keys.js";
import { showErrors, showEvents, showRequests } from "./requests.js";
import { Refused, json, key } from "./server.js";

const EVERY_MS = 2000;
const COMPLAINT_NAME = "llama-gguf-complaint";
const RANGES = [
  ["300", "5 min"], ["900", "15 min"], ["3600", "1 h"], ["21600", "6 h"], ["86400", "1 day"],
];

let range = "900";
let latest = null;
let timer = 0;

// The key --------------------------------------------------------------------------------------

function askForKey(complaint) {
  clearTimeout(timer);
  find("notice").hidden = true;
  find("sign-in").hidden = false;
  setText("sign-in-error", complaint);
  find("key").value = "";
  find("key").focus();
}

find("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("key").value.trim();
  // A header field takes nothing else, and no key has anything else.
  if (!/^[\x21-\x7e]+$/.test(text)) {
    askForKey("A key contains only letters, digits, - and _.");
    return;
  }
  key.set(text);
  look();
});

// What the page has shown, a conversation included, is gone with the page.
function signOut(complaint) {
  key.forget();
  if (!latest) {
    askForKey(complaint);
    return;
  }
  sessionStorage.setItem(COMPLAINT_NAME, complaint);
  location.reload();
}

find("sign-out").addEventListener("click", () => signOut(""));

// Requests -------------------------------------------------------------------------------------

async function look() {
  clearTimeout(timer);
  if (!key.get() && key.isNeeded()) {
    askForKey(lastComplaint);  // a request without one would count as an invalid key
    return;
  }
  const wanted = range;
  try {
    const data = await json(`dashboard/data?range=${wanted}`);
    find("notice").hidden = true;
    if (wanted === range) show(data);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      signOut("This key is invalid or has expired.");
      return;
    }
    const isRefused = error instanceof Refused;
    setText("notice", isRefused ? error.message : `The server does not respond (${error.message}). Retrying …`);
    find("notice").hidden = false;
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, EVERY_MS);
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden && (latest || key.get())) look();
});

window.addEventListener("resize", () => {
  if (latest) drawCharts(latest);
});

// Showing --------------------------------------------------------------------------------------

function show(data) {
  const hadFocus = find("sign-in").contains(document.activeElement);
  latest = data;
  find("sign-in").hidden = true;
  find("numbers").hidden = find("sections").hidden = false;
  find("sign-out").hidden = !key.get();
  if (hadFocus) find("main").focus();  // the field that had it is gone
  showEngine(data);
  showTiles(data);
  drawCharts(data);
  showErrors(data);
  showEvents(data);
  showRequests(data);
  showUsage(data);
  showManagement(data);
  showAccess(data);
  setModel(data);
  setText("about", `llama-gguf ${data.version}, up for ${duration(data.uptime_seconds)}`);
}

const lastComplaint = sessionStorage.getItem(COMPLAINT_NAME) || "";
sessionStorage.removeItem(COMPLAINT_NAME);

addChoices("ranges", RANGES, range, (value) => {
  range = value;
  look();
});

look();
