// The image backbone (§3.1): input, patches, and helpers for windows.

const blockName = ({stage, block, shift}) => `stage ${stage}, block ${block + 1}${shift ? ", shifted" : ""}`;

function picture(root, src, text, alt) {
  const cell = make("div", {className: "cell"}, root);
  const image = make("img", {className: "pixelated", alt, src}, cell);
  const shown = make("p", {textContent: text}, cell);
  return {cell, image, shown};
}

draw.pixels = (root, {src, size: [H, W], channels}) => {
  const text = `${W} × ${H} pixels, resized from ${page.original.join(" × ")}`;
  const {image} = picture(root, src, text, "The resized image");
  image.style.aspectRatio = `${W} / ${H}`;
  const line = row(root, "max(5.5rem, 30%)");
  for (const {name, src: grey, span: [low, high]} of channels) {
    const span = `${low.toFixed(2)} … ${high.toFixed(2)}`;
    const cell = picture(line, grey, `${name}: ${span}`, `The ${name} channel, values ${span}`);
    cell.image.style.aspectRatio = `${W} / ${H}`;
  }
};

draw.patches = (root, {side, grid: [rows, cols], embedded, filters}) => {
  const line = row(root, "18rem");
  const left = make("div", {className: "cell"}, line);
  const canvas = imageCanvas(left, "The image; pick a patch");
  const right = make("div", {className: "cell"}, line);
  const [wide, high, cell] = [480, Math.round(480 * page.height / page.width), 96];
  const near = make("canvas", {className: "wide", width: wide, height: high}, right);
  near.setAttribute("role", "img");
  near.setAttribute("aria-label", "The picked patch and its neighbours, enlarged");
  const info = readout(root);
  const components = "in their first three principal components";
  const caption = `${cols} × ${rows} tokens, one per patch, ${components}`;
  picture(root, embedded, caption, `The embedded patches ${components}`)
    .image.style.aspectRatio = `${cols} / ${rows}`;
  make("p", {textContent: "Filters of the first channels"}, root).style.margin = 0;
  const tiles = make("div", {className: "filters"}, root);
  filters.forEach((tile, i) =>
    make("img", {className: "pixelated", src: tile, alt: `Filter ${i + 1}`, width: 4, height: 4}, tiles));
  const pixels = new Image();
  const paint = () => {
    const context = canvas.getContext("2d");
    backdrop(context, "colour");
    frame(context, [(picked.col + 0.5) / cols, (picked.row + 0.5) / rows, 1 / cols, 1 / rows], "white", 2);
    const zoom = near.getContext("2d");
    const [left, top] = [(wide - cell) / 2, (high - cell) / 2];  // corner of the picked patch, which is in the centre
    zoom.clearRect(0, 0, wide, high);
    zoom.imageSmoothingEnabled = false;
    zoom.drawImage(pixels, left - picked.col * cell, top - picked.row * cell,
                   pixels.naturalWidth * cell / side, pixels.naturalHeight * cell / side);
    zoom.fillStyle = "rgb(255 255 255 / 70%)";
    for (let x = left % cell; x < wide; x += cell) zoom.fillRect(x, 0, 1.5, high);
    for (let y = (top + 99 * cell) % cell; y < high; y += cell) zoom.fillRect(0, y, wide, 1.5);
    frame(zoom, [0.5, 0.5, cell / wide, cell / high], "white", 4);
    info.textContent = `patch in row ${picked.row + 1} of ${rows}, column ${picked.col + 1} of ${cols}`;
  };
  const picked = pixelPicker(canvas, () => ({rows, cols}), paint);
  pixels.addEventListener("load", () => paint());
  pixels.src = page.figures.pixels.src;
  return paint;
};

// Draws the image in the layout of a stage's padded map, cyclically shifted up and left by `shift` map pixels.
function layMap(context, stage, shift = 0) {
  const at = mapLayout(context.canvas, stage);
  const [width, height] = [at.cols * at.x, at.rows * at.y];
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height);
  context.clip();
  for (const x of [0, width]) {
    for (const y of [0, height]) {
      context.save();
      context.translate(x - shift * at.x, y - shift * at.y);
      context.drawImage(photo.pale, 0, 0, at.W * at.x, at.H * at.y);
      hatch(context, at.W * at.x, 0, width - at.W * at.x, height);
      hatch(context, 0, at.H * at.y, at.W * at.x, height - at.H * at.y);
      context.restore();
    }
  }
  context.restore();
  return at;
}

// Draws the borders of the windows; the first window begins at `offset`.
function windowLines(context, at, k, offset) {
  const [width, height] = [at.cols * at.x, at.rows * at.y];
  const lines = () => {
    for (let c = offset; c <= at.cols; c += k) { context.moveTo(c * at.x, 0); context.lineTo(c * at.x, height); }
    for (let r = offset; r <= at.rows; r += k) { context.moveTo(0, r * at.y); context.lineTo(width, r * at.y); }
    context.rect(0, 0, width, height);
  };
  if (k * at.x > 20 * unit(context)) { outlined(context, "white", 1.5, lines); return; }
  Object.assign(context, {strokeStyle: "rgb(255 255 255 / 70%)", lineWidth: unit(context)});  // small windows
  context.beginPath();
  lines();
  context.stroke();
}

// Calls each(row, column, index in the window) for every pixel of the window that contains pixel (row, col).
function eachOfWindow({rows, cols}, k, shift, row, col, each) {
  const first = (i, n) => Math.floor(((i - shift + n) % n) / k) * k;
  for (const i of range(k)) {
    for (const j of range(k)) {
      each((first(row, rows) + i + shift) % rows, (first(col, cols) + j + shift) % cols, i * k + j);
    }
  }
}

const paddedGrid = (canvas, stage) => {
  const at = mapLayout(canvas, stage);
  return {rows: at.rows, cols: at.cols, right: at.cols * at.x / canvas.width, bottom: at.rows * at.y / canvas.height};
};
