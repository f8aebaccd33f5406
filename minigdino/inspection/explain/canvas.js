// Drawing on canvases: colour ramp, heat maps on the image, frames, layout of window maps.

// Viridis: lightness increases uniformly, so the colours are readable with any colour vision.
const RAMP = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99],
              [170, 220, 50], [253, 231, 37]];
const LEVELS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7"];  // distinct with any colour vision

function ramp(x) {
  const at = Math.min(Math.max(x, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[i].map((v, c) => Math.round(v + (at - i) * (RAMP[i + 1][c] - v)));
}
const rampColour = (x) => `rgb(${ramp(x).join(" ")})`;
const levelColour = (i) => LEVELS[i % LEVELS.length];
const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// A canvas with the aspect ratio of the image.
function imageCanvas(root, label) {
  const canvas = make("canvas", {className: "wide", width: page.width, height: page.height}, root);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  return canvas;
}

function backdrop(context, name = "pale") {
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  context.drawImage(photo[name], 0, 0);
}

// Draws values [rows * cols] over the whole canvas: high values bright and opaque, low values dark and transparent.
function heat(context, values, rows, cols, low, high) {
  const cells = make("canvas", {width: cols, height: rows});
  const pixels = new ImageData(cols, rows);
  values.forEach((value, i) => {
    const x = high > low ? (value - low) / (high - low) : 0;
    pixels.data.set([...ramp(x), 30 + 200 * Math.sqrt(Math.min(Math.max(x, 0), 1))], 4 * i);
  });
  cells.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(cells, 0, 0, context.canvas.width, context.canvas.height);
  context.imageSmoothingEnabled = true;
}

// Canvas pixels per screen pixel, so that lines and points keep their size on a phone.
const unit = ({canvas}) => Math.max(1, canvas.width / (canvas.clientWidth || canvas.width));

// A line with a dark border, visible on any background; path() defines it and runs twice.
function outlined(context, colour, width, path) {
  for (const [style, extra] of [["rgb(0 0 0 / 70%)", 2], [colour, 0]]) {
    context.strokeStyle = style;
    context.lineWidth = (width + extra) * unit(context);
    context.beginPath();
    path();
    context.stroke();
  }
}

// Left, top, width and height in pixels of a box (cx, cy, w, h) in fractions of the canvas.
function rectangle(context, [cx, cy, w, h]) {
  const {width: W, height: H} = context.canvas;
  return [(cx - w / 2) * W, (cy - h / 2) * H, w * W, h * H];
}

function frame(context, box, colour, width = 2, dash = []) {
  context.setLineDash(dash.map((length) => length * unit(context)));
  outlined(context, colour, width, () => context.rect(...rectangle(context, box)));
  context.setLineDash([]);
}

function cross(context, x, y) {
  const {width: W, height: H} = context.canvas;
  const arm = 9 * unit(context);
  outlined(context, "white", 2, () => {
    context.moveTo(x * W - arm, y * H);
    context.lineTo(x * W + arm, y * H);
    context.moveTo(x * W, y * H - arm);
    context.lineTo(x * W, y * H + arm);
  });
}

function legend(root, what) {
  const element = make("div", {className: "legend"}, root);
  make("span", {textContent: what}, element);
  const low = make("span", {}, element);
  const canvas = make("canvas", {width: 128, height: 1}, element);
  canvas.setAttribute("aria-hidden", "true");
  for (const i of range(128)) {
    canvas.getContext("2d").fillStyle = rampColour(i / 127);
    canvas.getContext("2d").fillRect(i, 0, 1, 1);
  }
  const high = make("span", {}, element);
  return (a, b) => {
    low.textContent = +a.toPrecision(2);
    high.textContent = +b.toPrecision(2);
  };
}

// Layout of a map [H, W] in a canvas, padded to multiples of the window size k.
function mapLayout(canvas, {map: [H, W], k}) {
  const [rows, cols] = [Math.ceil(H / k) * k, Math.ceil(W / k) * k];
  const sx = canvas.width / cols;
  const sy = canvas.height / rows;
  const proportion = (canvas.width / W) / (canvas.height / H);  // of a map pixel, as in the image
  const size = Math.min(sx / proportion, sy);
  return {H, W, rows, cols, x: size * proportion, y: size};
}

function hatch(context, x, y, width, height) {
  if (width <= 0.5 || height <= 0.5) return;
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = theme("hatch");
  context.lineWidth = 1.5;
  context.beginPath();
  for (let i = x - height; i < x + width; i += 8) {
    context.moveTo(i, y + height);
    context.lineTo(i + height, y);
  }
  context.stroke();
  context.restore();
}
