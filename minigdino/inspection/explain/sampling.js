// Deformable attention: sampling points on the image; area is attention weight, colour is level.

// Draws points [M, L, P, 2] with weights [M, L, P] of one head, or of all if head is 0. Returns the share of the weight
// on each level, and the share outside the image.
function scatter(context, points, weights, [heads, levels, n], head) {
  const {width: W, height: H} = context.canvas;
  const chosen = head ? [head - 1] : range(heads);
  const shares = Array(levels).fill(0);
  let outside = 0;
  const dots = [];
  for (const m of chosen) {
    for (const l of range(levels)) {
      for (const p of range(n)) {
        const i = (m * levels + l) * n + p;
        const [x, y, weight] = [points[2 * i], points[2 * i + 1], weights[i] / chosen.length];
        shares[l] += weight;
        if (x < 0 || x > 1 || y < 0 || y > 1) outside += weight;
        const radius = 55 * Math.sqrt(unit(context) * weight / Math.PI);
        dots.push({x: x * W, y: y * H, radius, colour: levelColour(l)});
      }
    }
  }
  dots.sort((a, b) => b.radius - a.radius);
  for (const {x, y, radius, colour} of dots) {
    context.beginPath();
    context.arc(x, y, Math.max(radius, unit(context)), 0, 2 * Math.PI);
    context.fillStyle = colour;
    context.fill();
    context.strokeStyle = "rgb(0 0 0 / 65%)";
    context.lineWidth = unit(context);
    context.stroke();
  }
  return {shares, outside};
}

const levelKeys = (show, {shares, outside}) => show([
  ...shares.map((share, l) => [levelColour(l), `level ${l + 1}: ${percent(share)} of the weight`]),
  ["transparent", `${percent(outside)} outside the image`]]);

draw.sampling = (root, {rows, cols, grid: [H, W], weights, locations}) => {
  const [all, where] = [tensor(weights), tensor(locations)];
  const [layers, , ...shape] = all.shape;
  const bar = controls(root);
  const layer = layerSlider(bar, layers, () => paint());
  const head = choice(bar, "Head", ["all", ...range(shape[0]).map((i) => String(i + 1))], () => paint());
  const canvas = imageCanvas(root, "Sampling points of the picked image token; pick another");
  const showKeys = keys(root);
  const info = readout(root);
  const paint = () => {
    const context = canvas.getContext("2d");
    backdrop(context);
    const i = picked.row * cols.length + picked.col;
    const drawn = scatter(context, where.at(layer.value, i), all.at(layer.value, i), shape, head.value);
    cross(context, (cols[picked.col] + 0.5) / W, (rows[picked.row] + 0.5) / H);
    levelKeys(showKeys, drawn);
    info.textContent = `token at row ${rows[picked.row] + 1}, column ${cols[picked.col] + 1} of level 1`;
  };
  const picked = pixelPicker(canvas, () => ({rows: rows.length, cols: cols.length}), () => paint());
  return paint;
};

draw["query-sampling"] = (root, {queries, weights, locations}) => {
  const [all, where] = [tensor(weights), tensor(locations)];
  const [layers, , ...shape] = all.shape;
  const boxes = tensor(page.figures.refinement.boxes);
  const bar = controls(root);
  const layer = layerSlider(bar, layers, () => paint());
  const head = choice(bar, "Head", ["all", ...range(shape[0]).map((i) => String(i + 1))], () => paint());
  const query = queryChoice(root, () => paint());
  const canvas = imageCanvas(root, "Sampling points of the query, around its reference box");
  const showKeys = keys(root);
  const paint = () => {
    const context = canvas.getContext("2d");
    backdrop(context);
    frame(context, boxes.at(layer.value, queries[query.value]), "white", 2.5);
    levelKeys(showKeys, scatter(context, where.at(layer.value, query.value), all.at(layer.value, query.value), shape,
                                head.value));
  };
  return paint;
};
