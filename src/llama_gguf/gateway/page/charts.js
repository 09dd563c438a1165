// Line charts over time, of which each can be read out with the arrow keys.

import { find, make } from "./elements.js";
import { clock, duration, number, seconds } from "./formats.js";

const CHARTS = [
  { title: "Requests per second", lines: [["requests_per_second", ""]], text: number },
  { title: "Tokens per second", text: number,
    lines: [["completion_tokens_per_second", "out"], ["prompt_tokens_per_second", "in"]] },
  { title: "Time to first token", text: seconds,
    lines: [["first_token_p50", "median"], ["first_token_p95", "95 %"]] },
  { title: "Requests in progress", text: number, whole: true,
    lines: [["running", "running"], ["waiting", "waiting"]] },
];
const HEIGHT = 160, LEFT = 50, RIGHT = 8, TOP = 14, BOTTOM = 20;
const LEAST_SECONDS = 60;  // that the time axis covers

class Chart {
  constructor({ title, lines, text, whole }) {
    Object.assign(this, { title, lines, text, whole, series: [], times: [], at: null });
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

  get length() { return this.times.length; }

  x(time) {
    return LEFT + ((time - this.begin) / (this.end - this.begin)) * (this.width - LEFT - RIGHT);
  }

  y(value) { return HEIGHT - BOTTOM - (value / this.top) * (HEIGHT - TOP - BOTTOM); }

  draw({ history, events, now }) {
    this.width = this.svg.clientWidth;
    this.times = history.times;
    this.series = this.lines.map(([name]) => history[name]);
    this.end = now;
    // From the first value on: shortly after the first start, there is little to show.
    const first = (this.times[0] ?? now) - history.step_seconds;
    this.begin = Math.max(now - history.range_seconds, Math.min(first, now - LEAST_SECONDS));
    this.top = niceTop(Math.max(0, ...this.series.flat().map((value) => value || 0)), this.whole);
    this.svg.replaceChildren(
      ...this.frame(), ...this.marks(events), ...this.series.flatMap((s, n) => this.line(s, n)));
    this.moveTo(this.at);
  }

  frame() {
    const values = this.whole && this.top % 2 ? [0, this.top] : [0, this.top / 2, this.top];
    const lines = values.flatMap((value) => [
      make("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(value), y2: this.y(value) }),
      make("text", { x: LEFT - 6, y: this.y(value) + 4, "text-anchor": "end" }, this.text(value)),
    ]);
    const middle = (this.begin + this.end) / 2;
    const withSeconds = this.end - this.begin < 600;
    const times = [
      [this.begin, "start", clock(this.begin, withSeconds)],
      [middle, "middle", clock(middle, withSeconds)],
      [this.end, "end", "now"],
    ];
    return [...lines, ...times.map(([time, anchor, text]) =>
      make("text", { x: this.x(time), y: HEIGHT - 5, "text-anchor": anchor }, text))];
  }

  marks(events) {
    return events.filter(({ at }) => at >= this.begin && at <= this.end).map(({ at, kind, text }) =>
      make("g", { class: `event ${kind}` },
        make("title", {}, `${clock(at, true)} ${text}`),
        make("line", { x1: this.x(at), x2: this.x(at), y1: TOP - 6, y2: HEIGHT - BOTTOM }),
        make("circle", { cx: this.x(at), cy: TOP - 8, r: 4 })));
  }

  line(series, n) {
    // A step without a value is a gap, and one alone is a dot: round caps draw it.
    let path = "", isPenDown = false;
    series.forEach((value, step) => {
      if (value !== null) {
        const to = `${this.x(this.times[step]).toFixed(1)} ${this.y(value).toFixed(1)}`;
        path += isPenDown ? `L${to}` : `M${to}h0`;
      }
      isPenDown = value !== null;
    });
    return [make("path", { class: n ? "line two" : "line", d: path })];
  }

  point(event) {
    if (!this.length) return;
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const share = (x - LEFT) / (this.width - LEFT - RIGHT);
    const time = this.begin + share * (this.end - this.begin);
    const far = (step) => Math.abs(this.times[step] - time);
    this.moveTo(this.times.reduce((best, _, step) => (far(step) < far(best) ? step : best), 0));
  }

  onKey(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -this.length, End: this.length };
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
    const ago = this.length ? Math.round(this.times[this.length - 1] - this.times[shown]) : 0;
    const when = ago ? `${duration(ago)} ago` : "now";
    const spoken = this.lines.map(([, label], n) => `${label} ${this.values[n].textContent}`.trim());
    this.svg.setAttribute("aria-label", `${this.title}, ${when}: ${spoken.join(", ")}`);
    if (this.at === null) return;
    const x = this.x(this.times[this.at]);
    const anchor = x > this.width / 2 ? "end" : "start";
    this.cursor = make("g", {},
      make("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
      make("text", { x: x + (anchor === "end" ? -5 : 5), y: TOP + 8, "text-anchor": anchor }, when));
    this.svg.append(this.cursor);
  }
}

// The least of these steps, times a power of ten, that is not below the value.
function niceTop(value, whole) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10];
  const top = steps.map((step) => step * power).find((step) => step >= value * 0.999);
  return whole ? Math.max(Math.ceil(top), 1) : top;
}

const charts = CHARTS.map((about) => new Chart(about));
find("charts").append(...charts.map((chart) => chart.figure));

export function drawCharts(data) {
  charts.forEach((chart) => chart.draw(data));
}
