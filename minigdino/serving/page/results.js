// The boxes of an answer: thresholds, the drawing over the picture, and the table. Row and box are linked.

import {LOWEST, MOST} from "./client.js";
import {$, announce, make, plural} from "./dom.js";
import {boxAt, colour, paint} from "./drawing.js";

const state = {
  phrases: [],  // of the request
  result: null,  // {width, height, detections}
  shown: [],  // detections above their thresholds
  overrides: new Map(),  // phrase -> its own threshold
  near: null,  // the detection under the pointer or with the focus
  chosen: null,  // the detection that was clicked
};

const common = () => Number($("threshold").value);
const thresholdOf = (phrase) => state.overrides.get(phrase) ?? common();
const marked = () => state.near ?? state.chosen;

// Shows the result of a request for some phrases; null removes it. Phrases keep their thresholds.
export function show(result, phrases = []) {
  Object.assign(state, {result, phrases});
  $("results").hidden = !result;
  $("each").hidden = phrases.length < 2;
  $("thresholds").replaceChildren(...phrases.map(phraseSlider));
  select();
}

// Returns {width, height, detections} with the boxes above their thresholds.
export const shown = () => ({...state.result, detections: state.shown});

// Returns [[phrase, threshold], ...] of the request.
export const thresholds = () => state.phrases.map((phrase) => [phrase, thresholdOf(phrase)]);

// Selects the boxes above their thresholds, as detect does: its scores are float32.
function select() {
  const all = state.result?.detections ?? [];
  state.shown = all.filter(({score, label_id}) => score > Math.fround(thresholdOf(state.phrases[label_id])));
  state.near = null;
  if (!state.shown.includes(state.chosen)) state.chosen = null;
  $("rows").replaceChildren(...state.shown.map(row));
  const text = summary(all);
  $("count").textContent = text;
  if (state.result) announce([text, ...counts()].join("; "));
  mark();
}

function summary(all) {
  if (!all.length) return `No box has a score above ${LOWEST}`;
  if (!state.shown.length) return `No box above the threshold; the best score is ${all[0].score.toFixed(2)}`;
  const total = all.length < MOST ? plural(all.length, "box", "boxes") : `the ${MOST} best boxes`;
  return `${state.shown.length} of ${total}`;
}

function counts() {
  const numbers = state.phrases.map((phrase, i) => [phrase, state.shown.filter((d) => d.label_id === i).length]);
  return numbers.filter(([, n]) => n).map(([phrase, n]) => `${phrase}: ${n}`);
}

function phraseSlider(phrase, i) {
  const line = make("div", {className: "slider"});
  const id = `threshold-${i}`;
  make("label", {htmlFor: id, textContent: phrase}, line);
  const range = {type: "range", min: LOWEST, max: 0.95, step: 0.01, value: thresholdOf(phrase)};
  const input = make("input", {id, ...range}, line);
  const output = make("output", {textContent: thresholdOf(phrase).toFixed(2)}, line);
  input.addEventListener("input", () => {
    state.overrides.set(phrase, Number(input.value));
    output.textContent = Number(input.value).toFixed(2);
    select();
  });
  return line;
}

// The common slider sets all thresholds.
function moveAll() {
  state.overrides.clear();
  $("threshold-value").textContent = common().toFixed(2);
  $("thresholds").replaceChildren(...state.phrases.map(phraseSlider));
  select();
}

function row(found) {
  const line = make("tr", {tabIndex: -1});
  const label = make("td", {}, line);
  make("i", {}, label).style.background = colour(found.label_id);
  label.append(found.label);
  make("td", {textContent: found.score.toFixed(2)}, line);
  make("td", {textContent: found.box.map(Math.round).join(", ")}, line);
  line.addEventListener("pointerenter", () => near(found));
  line.addEventListener("pointerleave", () => near(null));
  line.addEventListener("focus", () => near(found));
  line.addEventListener("blur", () => near(null));
  line.addEventListener("click", () => choose(found));
  line.addEventListener("keydown", (event) => move(event, found));
  return line;
}

// Arrow keys move among rows, which are one stop of the Tab key; Enter or the space bar chooses.
function move(event, found) {
  const last = state.shown.length - 1;
  const at = state.shown.indexOf(found);
  const to = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last}[event.key];
  if (to !== undefined) $("rows").children[Math.min(Math.max(to, 0), last)].focus();
  else if (event.key === "Enter" || event.key === " ") choose(found);
  else if (event.key === "Escape") choose(null);
  else return;
  event.preventDefault();
}

function near(found) {
  if (state.near === found) return;
  state.near = found;
  mark();
}

function choose(found) {
  state.chosen = found === state.chosen ? null : found;
  mark();
}

// Marks the rows of the near and of the chosen box, and draws.
function mark() {
  const focused = state.near ?? state.chosen ?? state.shown[0];
  [...$("rows").children].forEach((line, i) => {
    line.classList.toggle("near", state.shown[i] === state.near);
    line.setAttribute("aria-selected", state.shown[i] === state.chosen);
    line.tabIndex = state.shown[i] === focused ? 0 : -1;
  });
  draw();
}

// Position of the picture in the stage, which it fills in one direction: {left, top, width, height}.
function area(width, height) {
  const scale = Math.min(width / state.result.width, height / state.result.height);
  const [w, h] = [state.result.width * scale, state.result.height * scale];
  return {scale, area: {left: (width - w) / 2, top: (height - h) / 2, width: w, height: h}};
}

function draw() {
  const canvas = $("boxes");
  canvas.hidden = !state.result;
  if (!state.result) return;
  const unit = devicePixelRatio;
  [canvas.width, canvas.height] = [canvas.clientWidth * unit, canvas.clientHeight * unit].map(Math.round);
  paint(canvas.getContext("2d"), state.shown, {...area(canvas.width, canvas.height), unit, chosen: marked()});
}

// Returns a canvas with the picture at full size and its boxes. Line width and font size are those of Detections.plot.
export function drawn(image) {
  const {width, height} = state.result;
  const canvas = make("canvas", {width, height});
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const unit = Math.min(Math.max(Math.min(width, height) / 28, 9), 64) / 12;
  paint(context, state.shown, {area: {left: 0, top: 0, width, height}, scale: 1, unit});
  return canvas;
}

function detectionAt(event) {
  const canvas = $("boxes");
  const {left, top} = canvas.getBoundingClientRect();
  const {scale, area: {left: x, top: y}} = area(canvas.clientWidth, canvas.clientHeight);
  return boxAt(state.shown, (event.clientX - left - x) / scale, (event.clientY - top - y) / scale);
}

// Scrolls the table only: on a phone, the page must not scroll away from the picture.
function reveal(line) {
  const table = $("rows-area");
  table.scrollTop = line.offsetTop - (table.clientHeight - line.offsetHeight) / 2;
}

export function listen() {
  $("threshold").addEventListener("input", moveAll);
  $("boxes").addEventListener("pointermove", (event) => {
    near(detectionAt(event));
    $("boxes").style.cursor = state.near ? "pointer" : "default";
  });
  $("boxes").addEventListener("pointerleave", () => near(null));
  $("boxes").addEventListener("click", (event) => {
    choose(detectionAt(event));
    if (state.chosen) reveal($("rows").children[state.shown.indexOf(state.chosen)]);
  });
  new ResizeObserver(draw).observe($("stage"));
}
