// Requests to this server with the key, which is kept until the tab is closed. All paths are
// relative, so that the page works below a path of a proxy.

const KEY_NAME = "llama-gguf-key";

export const key = {
  get: () => sessionStorage.getItem(KEY_NAME),
  set: (text) => sessionStorage.setItem(KEY_NAME, text),
  forget: () => sessionStorage.removeItem(KEY_NAME),
  isNeeded: () => document.documentElement.dataset.keys === "needed",
};

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function request(path, options = {}) {
  const secret = key.get();
  const headers = { ...options.headers, ...(secret ? { Authorization: `Bearer ${secret}` } : {}) };
  const response = await fetch(path, { cache: "no-store", ...options, headers });
  if (!response.ok) throw new Refused(response.status, await reason(response));
  return response;
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `status ${response.status}`;
  }
}

export async function json(path, options) {
  return (await request(path, options)).json();
}
