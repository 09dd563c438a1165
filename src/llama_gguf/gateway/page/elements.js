// Elements of the page. Texts are inserted as text nodes, never as markup.

const SHAPES = ["svg", "path", "line", "text", "circle", "g", "title"];

export const find = (id) => document.getElementById(id);

export function make(tag, attributes, ...children) {
  const element = SHAPES.includes(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Unchanged texts are left alone, so that a screen reader announces only changes.
export function setText(id, text) {
  const element = find(id);
  if (element.textContent !== text) element.textContent = text;
}

// Rows are replaced only if their content changed: else a selection of text would be lost.
export function setRows(id, key, rows) {
  const element = find(id);
  if (element.dataset.content === key) return;
  element.dataset.content = key;
  element.replaceChildren(...rows());
}

// A group of radio buttons: the values with their labels, in this order.
export function addChoices(id, choices, chosen, onChange) {
  for (const [value, label] of choices) {
    const input = make("input", { type: "radio", name: id, value });
    input.checked = value === chosen;
    input.addEventListener("change", () => onChange(value));
    find(id).append(make("label", {}, input, make("span", {}, label)));
  }
}

// Shows a question; resolves to whether it was confirmed.
export function confirmed({ title, text, action }) {
  setText("confirm-title", title);
  setText("confirm-text", text);
  setText("confirm-yes", action);
  find("confirm").showModal();
  find("confirm-no").focus();
  return new Promise((resolve) => {
    decide = resolve;
  });
}

// Of the question that is shown. Not by the event "close", which may come after the next question.
let decide = () => {};

function close(isConfirmed) {
  decide(isConfirmed);
  find("confirm").close();
}

find("confirm-yes").addEventListener("click", () => close(true));
find("confirm-no").addEventListener("click", () => close(false));
find("confirm").addEventListener("cancel", () => decide(false));

// Copying ---------------------------------------------------------------------------------------

async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    // There is no clipboard on a page without TLS: the text is selected, and copied the old way.
    const range = document.createRange();
    range.selectNodeContents(element);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  }
}

for (const button of document.querySelectorAll("button.copy")) {
  const label = button.firstChild;
  button.addEventListener("click", async () => {
    const isCopied = await copy(find(button.dataset.of));
    label.data = isCopied ? "Copied" : "Selected";
    setText("copy-result", isCopied ? "Copied." : "Selected: copy it with the keyboard.");
    setTimeout(() => { label.data = "Copy"; setText("copy-result", ""); }, 2000);
  });
}
