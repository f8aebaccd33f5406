// Controls: sliders, radio buttons, and a picker for a cell of a picture. All work with the keyboard.

function slider(root, name, {min = 0, max, step = 1, value = min, show = String}, onChange) {
  const label = make("label", {className: "slider"}, root);
  make("span", {textContent: name}, label);
  const input = make("input", {type: "range", min, max, step, value, disabled: max <= min}, label);
  const output = make("output", {textContent: show(value)}, label);
  const lengths = range((max - min) / step + 1).map((i) => show(min + i * step).length);
  output.style.minWidth = `${largest(lengths)}ch`;  // keeps the layout fixed when the text grows
  const moved = () => { output.textContent = show(+input.value); };
  input.addEventListener("input", () => { moved(); onChange(); });
  return {get value() { return +input.value; }, set value(x) { input.value = x; moved(); }};
}

let groups = 0;

// Radio buttons, hidden if there is only one name.
function choice(root, name, names, onChange, value = 0) {
  const group = make("fieldset", {className: names.length > 40 ? "many" : ""}, root);
  make("legend", {textContent: name}, group);
  const id = `choice${groups++}`;
  let chosen = value;
  const inputs = names.map((text, i) => {
    const chip = make("label", {className: "chip", textContent: text}, group);
    const input = make("input", {type: "radio", name: id, checked: i === value}, chip);
    input.addEventListener("change", () => { chosen = i; onChange(); });
    return input;
  });
  group.hidden = names.length < 2;
  return {get value() { return chosen; }, set value(i) { chosen = i; inputs[i].checked = true; }};
}

const layerSlider = (root, n, onChange, value = n - 1) =>
  slider(root, "Layer", {max: n - 1, value, show: (i) => `${i + 1} of ${n}`}, onChange);

const tokenChoice = (root, onChange) =>
  choice(root, "Token", page.tokens, onChange, page.spans[0][1] - 1);

const headChoice = (root, heads, onChange) =>
  choice(root, "Head", heads ? ["mean", ...range(heads).map((i) => String(i + 1))] : ["mean"], onChange);

// Initial position of the pickers: near the left edge of the best box.
function focus() {
  const {boxes, queries} = page.figures.refinement;
  const steps = tensor(boxes);
  const [cx, cy, w] = steps.at(steps.shape[0] - 1, queries[0]);
  return [cx - 0.4 * w, cy];
}

// Picks a cell of a grid over a canvas, by pointer or arrow keys. grid() -> {rows, cols, right, bottom}; right and
// bottom are the end of the grid as fractions of the canvas, 1 by default.
function pixelPicker(canvas, grid, onPick, start = focus()) {
  const inside = (fraction) => Math.min(Math.max(fraction, 0), 1 - 1e-9);
  const picked = {
    x: inside(start[0]), y: inside(start[1]),  // fractions of the grid
    get row() { return Math.min(Math.floor(this.y * grid().rows), grid().rows - 1); },
    get col() { return Math.min(Math.floor(this.x * grid().cols), grid().cols - 1); },
  };
  const move = (x, y) => {
    [picked.x, picked.y] = [inside(x), inside(y)];
    onPick();
  };
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "picture; the arrow keys pick a cell");
  const point = (event) => {
    const at = canvas.getBoundingClientRect();
    const {right = 1, bottom = 1} = grid();
    move((event.clientX - at.left) / at.width / right, (event.clientY - at.top) / at.height / bottom);
  };
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  canvas.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    const {rows, cols} = grid();
    move((picked.col + step[0] + 0.5) / cols, (picked.row + step[1] + 0.5) / rows);
  });
  return picked;
}

// Horizontal bars with names; a bar of full length is `max`.
function bars(root) {
  const list = make("dl", {className: "bars"}, root);
  list.tabIndex = 0;
  list.setAttribute("aria-label", "Attention weights");
  return (names, values, max = largest(values)) => {
    list.replaceChildren();
    names.forEach((name, i) => {
      make("dt", {textContent: name}, list);
      make("i", {}, make("dd", {}, list)).style.width = `${100 * values[i] / (max || 1)}%`;
      make("dd", {textContent: percent(values[i])}, list);
    });
  };
}

// A legend of coloured dots with texts.
function keys(root) {
  const list = make("div", {className: "keys"}, root);
  return (entries) => {
    list.replaceChildren();
    for (const [colour, text] of entries) {
      const entry = make("span", {}, list);
      make("i", {}, entry).style.background = colour;
      entry.append(text);
    }
  };
}
