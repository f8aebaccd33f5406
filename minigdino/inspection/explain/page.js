// Data of the page, helpers, and start(). Each figure is a function draw[slug], in the file of its stage.
"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const draw = {};  // slug -> function(root, data) that fills the figure and returns its repaint function, if any
const painters = [];

// Decodes the result of encode.packed(). at(i, j, ...) gives the values with the first indices fixed.
function tensor({shape, bits, data, low, high}) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const Encoded = {8: Uint8Array, 16: Uint16Array, 32: Float32Array}[bits];
  const values = Float32Array.from(new Encoded(bytes.buffer));
  if (low) {
    const size = values.length / low.length;
    for (let i = 0; i < values.length; i++) {
      const row = Math.floor(i / size);
      values[i] = low[row] + values[i] / (2 ** bits - 1) * (high[row] - low[row]);
    }
  }
  const at = (...index) => {
    const size = shape.slice(index.length).reduce((a, b) => a * b, 1);
    const start = index.reduce((sum, i, axis) => sum * shape[axis] + i, 0) * size;
    return values.subarray(start, start + size);
  };
  return {shape, values, at};
}

const range = (n) => Array.from({length: n}, (_, i) => i);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const largest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
const percent = (x) => `${(100 * x).toFixed(x > 0 && x < 0.0995 ? 1 : 0)} %`;

// Creates an element: make("p", {className: "readout"}, parent)
function make(tag, properties = {}, parent = null) {
  const element = Object.assign(document.createElement(tag), properties);
  if (parent) parent.append(element);
  return element;
}

const readout = (root) => make("output", {className: "readout"}, root);
const row = (root, minWidth = "16rem") => {
  const element = make("div", {className: "row"}, root);
  element.style.setProperty("--min-width", minWidth);
  return element;
};
const HALVES = "max(8.5rem, 34%)";  // two cells side by side, even on a phone
const controls = (root) => make("div", {className: "controls"}, root);

// The image in colour, and pale as a background; both empty until it is decoded.
const photo = Object.fromEntries(["colour", "pale"].map((name) =>
  [name, make("canvas", {width: page.width, height: page.height})]));

async function start() {
  for (const [slug, data] of Object.entries(page.figures)) {
    const paint = draw[slug](document.querySelector(`#${slug} .drawing`), data);
    if (paint) painters.push(paint);
  }
  const wide = matchMedia("(min-width: 76rem)");
  const contents = document.querySelector("nav details");
  contents.open = wide.matches;
  wide.addEventListener("change", () => { contents.open = wide.matches; });
  followContents();
  const image = new Image();
  image.src = page.image;
  await image.decode();
  prepare(image);
  const paintAll = () => painters.forEach((paint) => paint());
  paintAll();
  let width = innerWidth;
  addEventListener("resize", () => {  // ignore changes of height: a phone's address bar causes them
    if (width !== innerWidth) paintAll();
    width = innerWidth;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAll);
  document.documentElement.dataset.ready = "yes";
}

function prepare(image) {
  photo.colour.getContext("2d").drawImage(image, 0, 0, page.width, page.height);
  const context = photo.pale.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0, page.width, page.height);
  const pixels = context.getImageData(0, 0, page.width, page.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [r, g, b] = pixels.data.subarray(i, i + 3);
    const light = 0.3 * r + 0.59 * g + 0.11 * b;
    for (const c of range(3)) pixels.data[i + c] = 60 + 0.28 * light + 0.27 * pixels.data[i + c];
  }
  context.putImageData(pixels, 0, 0);
}

// Highlights the visible figures in the contents.
function followContents() {
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) links.get(entry.target.id).classList.toggle("here", entry.isIntersecting);
  }, {rootMargin: "-20% 0px -60% 0px"});
  for (const figure of document.querySelectorAll("figure")) watcher.observe(figure);
}
