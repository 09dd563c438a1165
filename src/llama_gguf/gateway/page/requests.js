// The latest requests, and the errors and events of the charts' range.

import { make, setRows } from "./elements.js";
import { clock, number, seconds, words } from "./formats.js";

export function showRequests({ requests }) {
  setRows("requests", requests[0]?.request_id || "none", () => requests.length
    ? requests.map(row)
    : [make("tr", {}, make("td", { colspan: "9" }, "None since the start of the gateway."))]);
}

function row(request) {
  const isError = request.status >= 400 || request.outcome !== "done";
  return make("tr", {},
    make("th", { scope: "row" }, clock(request.ended_at, true)),
    make("td", { class: "left" }, request.key_id),
    make("td", { class: "left" }, request.route),
    make("td", { class: request.status >= 400 ? "wrong" : "" }, request.status ? String(request.status) : "–"),
    make("td", {}, number(request.prompt_tokens)),
    make("td", {}, number(request.completion_tokens)),
    make("td", {}, seconds(request.first_token)),
    make("td", {}, seconds(request.duration)),
    make("td", { class: isError ? "wrong left" : "left", title: request.request_id }, words(request.outcome)));
}

export function showErrors({ errors }) {
  const entries = Object.entries(errors);
  setRows("errors", JSON.stringify(entries), () => entries.length
    ? entries.map(([reason, count]) =>
      make("li", {}, make("span", {}, words(reason)), make("b", {}, number(count))))
    : [make("li", {}, "None.")]);
}

export function showEvents({ events }) {
  setRows("events", JSON.stringify(events), () => events.length
    ? events.toReversed().map(({ at, kind, text }) =>
      make("li", {}, make("span", {}, make("i", { class: `mark ${kind}` }), text), make("time", {}, clock(at))))
    : [make("li", {}, "None.")]);
}
