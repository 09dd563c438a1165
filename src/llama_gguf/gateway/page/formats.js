// Numbers and times as texts.

export function number(value) {
  if (value === null || value === undefined) return "–";
  const digits = value === 0 || value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${Math.round(value * 100)} %`;
}

export function bytes(value) {
  return value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : `${Math.round(value / 1e6)} MB`;
}

export function duration(value) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = Math.max(units.findIndex(([, size]) => value >= size), 0);
  const [unit, size] = value < 1 ? ["s", 1] : units[at];
  const text = `${Math.floor(value / size)} ${unit}`;
  const next = value < 60 ? null : units[at + 1];
  const rest = next ? Math.floor((value % size) / next[1]) : 0;
  return rest ? `${text} ${rest} ${next[0]}` : text;
}

// The time of day of POSIX seconds, in the browser's zone.
export function clock(posix, withSeconds = false) {
  const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (withSeconds) options.second = "2-digit";
  return new Date(posix * 1000).toLocaleTimeString("en", options);
}

export function words(name) {
  return name.replaceAll("_", " ");
}
