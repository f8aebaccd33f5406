// Boxes with name tags on a canvas: the same colours and frames as Detections.plot.

const HUE_STEP = 0.618034;  // 1 / golden ratio: the hues of consecutive phrases stay far apart
const CONTRAST = 4.5;  // of white text to its background (WCAG 2)

// Returns [red, green, blue] of a hue, a lightness and a saturation, 0 to 1.
function rgb(hue, lightness, saturation) {
  const spread = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((offset) => {
    const k = (offset + 12 * hue) % 12;
    return Math.round(255 * (lightness - spread * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}

function luminance(channels) {
  const [red, green, blue] = channels.map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

// Returns the colour of a phrase, dark enough for white text on it.
export function colour(id) {
  const hue = (0.02 + id * HUE_STEP) % 1;
  let lightness = 0.38;
  while (1.05 / (luminance(rgb(hue, lightness, 0.85)) + 0.05) < CONTRAST) lightness -= 0.01;
  return `rgb(${rgb(hue, lightness, 0.85).join(", ")})`;
}

// Draws found boxes, best first, on a canvas.
// area: {left, top, width, height} of the picture on the canvas; scale: canvas pixels per image pixel;
// unit: canvas pixels per pixel of line width; chosen: the box that stands out and alone has a tag, or null.
export function paint(context, found, {area, scale, unit, chosen = null}) {
  const frames = found.map(({box}) => place(box, area, scale));
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const order = found.map((_, i) => i).reverse();  // the best box on top, above it the chosen one
  order.sort((a, b) => (found[a] === chosen) - (found[b] === chosen));
  const faint = (i) => chosen !== null && found[i] !== chosen;
  for (const i of order) {
    context.globalAlpha = faint(i) ? 0.35 : 1;
    frame(context, frames[i], colour(found[i].label_id), unit * (found[i] === chosen ? 1.6 : 1));
  }
  context.globalAlpha = 1;
  const taken = [];
  for (const i of order.reverse()) {
    if (!faint(i)) tag(context, found[i], frames[i], {area, unit, taken, always: found[i] === chosen});
  }
}

// Returns [left, top, right, bottom] on the canvas, clipped to the picture.
function place([left, top, right, bottom], area, scale) {
  const x = (v) => area.left + Math.min(Math.max(v * scale, 0), area.width);
  const y = (v) => area.top + Math.min(Math.max(v * scale, 0), area.height);
  return [x(left), y(top), x(right), y(bottom)];
}

// A line with a white border, visible on any picture.
function frame(context, [left, top, right, bottom], style, unit) {
  for (const [stroke, width] of [["white", 4.5], [style, 2.5]]) {
    context.strokeStyle = stroke;
    context.lineWidth = width * unit;
    context.strokeRect(Math.round(left), Math.round(top), Math.round(right - left), Math.round(bottom - top));
  }
}

// A name tag above its box, below it or inside it, where it covers no other tag. Without such a place, only the
// chosen box has one.
function tag(context, {label, score, label_id}, [left, top, , bottom], {area, unit, taken, always}) {
  const text = shortened(context, label, ` ${score.toFixed(2)}`, area.width - 12 * unit);
  const [width, height] = [context.measureText(text).width + 10 * unit, 18 * unit];
  const x = Math.max(area.left, Math.min(left - unit, area.left + area.width - width));
  const places = [top - height, bottom, top + 2 * unit]
    .filter((y) => y >= area.top && y + height <= area.top + area.height);
  const free = places.find((y) => !taken.some((other) => overlap([x, y, width, height], other)));
  const y = free ?? (always ? top : null);
  if (y === null) return;
  taken.push([x, y, width, height]);
  context.fillStyle = colour(label_id);
  context.fillRect(x, y, width, height);
  context.fillStyle = "white";
  context.fillText(text, x + 5 * unit, y + height / 2 + 0.5 * unit);
}

function shortened(context, label, score, width) {
  const letters = [...label];
  if (letters.length <= 60 && context.measureText(label + score).width <= width) return label + score;
  letters.length = Math.min(letters.length, 60);
  while (letters.length > 1 && context.measureText(`${letters.join("")}…${score}`).width > width) letters.pop();
  return `${letters.join("")}…${score}`;
}

const overlap = ([ax, ay, aw, ah], [bx, by, bw, bh]) => ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah;

// Returns the smallest box that contains a point in image pixels, or null.
export function boxAt(found, x, y) {
  const size = ([left, top, right, bottom]) => (right - left) * (bottom - top);
  const inside = ([left, top, right, bottom]) => x >= left && x <= right && y >= top && y <= bottom;
  const within = found.filter(({box}) => inside(box));
  return within.reduce((best, one) => best === null || size(one.box) < size(best.box) ? one : best, null);
}
