// The field for phrases: each is a chip in the colour of its boxes.

import {$, announce, make} from "./dom.js";
import {colour} from "./drawing.js";

const ENDS = /[.,;\n]/;

// Calls onChange() after each change. Returns {phrases, set(list), commit()}; commit adds the text still in the field.
export function phraseField(onChange) {
  const input = $("phrase");
  let phrases = [];

  function set(list) {
    phrases = list;
    $("chips").replaceChildren(...phrases.map((phrase, i) => chip(phrase, i, () => remove(i))));
    input.placeholder = phrases.length ? "another phrase" : "such as: a red star";
    $("chips").parentNode.scrollTop = $("chips").parentNode.scrollHeight;
    onChange();
  }

  function remove(i) {
    announce(`Removed ${phrases[i]}`);
    set(phrases.filter((_, other) => other !== i));
    input.focus();
  }

  // Adds the phrases of a text, without those that are there already.
  function add(texts) {
    const cleaned = texts.map((text) => text.replace(/\s+/g, " ").trim()).filter(Boolean);
    const known = new Set(phrases.map((phrase) => phrase.toLowerCase()));
    const added = cleaned.filter((text) => !known.has(text.toLowerCase()) && known.add(text.toLowerCase()));
    if (!added.length) return;
    set([...phrases, ...added]);
    announce(`Added ${added.join(", ")}`);
  }

  function commit() {
    const text = input.value;
    input.value = "";
    add(text.split(ENDS));
  }

  input.addEventListener("input", (event) => {
    if (event.isComposing || !ENDS.test(input.value)) return;
    const texts = input.value.split(ENDS);
    input.value = texts.pop().trimStart();  // not finished yet
    add(texts);
  });
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && input.value.trim()) {
      event.preventDefault();  // Enter in an empty field submits the form
      commit();
    } else if (event.key === "Backspace" && !input.value && phrases.length) {
      remove(phrases.length - 1);
    }
  });
  input.addEventListener("paste", (event) => {  // a text field would drop the line breaks of a list
    const text = event.clipboardData.getData("text");
    if (!text.includes("\n")) return;
    event.preventDefault();
    add((input.value + text).split(ENDS));
    input.value = "";
  });
  return {get phrases() { return phrases; }, set, commit};
}

function chip(phrase, i, onRemove) {
  const item = make("li", {className: "chip"});
  item.style.background = colour(i);
  make("span", {textContent: phrase}, item);
  const button = make("button", {type: "button", textContent: "×"}, item);
  button.setAttribute("aria-label", `Remove ${phrase}`);
  button.addEventListener("click", onRemove);
  return item;
}
