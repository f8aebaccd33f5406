// Helpers for elements.

export const $ = (id) => document.getElementById(id);

// Creates an element: make("p", {className: "message"}, parent)
export function make(tag, properties = {}, parent = null) {
  const element = Object.assign(document.createElement(tag), properties);
  parent?.append(element);
  return element;
}

let pause = 0;

// Reads a text to users of screen readers, once it has not changed for a moment.
export function announce(text) {
  clearTimeout(pause);
  pause = setTimeout(() => { $("live").textContent = text; }, 500);
}

export const plural = (n, noun, nouns = `${noun}s`) => `${n} ${n === 1 ? noun : nouns}`;
