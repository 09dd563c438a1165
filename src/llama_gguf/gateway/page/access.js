// How to use the server from elsewhere: its base URL, and a command.

import { setText } from "./elements.js";

export function showAccess({ model }) {
  const base = new URL("v1", location.href).href;
  const body = JSON.stringify({
    model: model.name || "default",
    messages: [{ role: "user", content: "Hello!" }],
    stream: true,
  });
  setText("base-url", base);
  // A name with a quote would end the shell's.
  const quoted = body.replaceAll("'", "'\\''");
  setText("curl", [
    `curl -N ${base}/chat/completions \\`,
    `  -H "Authorization: Bearer $LLAMA_GGUF_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '${quoted}'`,
  ].join("\n"));
}
