// Deformable attention: points on the image, area for weight, colour for level.

// points [M, L, P, 2], weights [M, L, P]; head 0 is all of them. Returns each level's share, and what lies outside.
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
        dots.push({x: x * W, y: y * H, radius: 55 * Math.sqrt(unit(context) * weight / Math.PI), colour: levelColour(l)});
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
  const canvas = imageCanvas(root, "Where the picked pixel samples; pick another");
  const showKeys = keys(root);
  const said = readout(root);
  const paint = () => {
    const context = canvas.getContext("2d");
    backdrop(context);
    const i = picked.row * cols.length + picked.col;
    const seen = scatter(context, where.at(layer.value, i), all.at(layer.value, i), shape, head.value);
    cross(context, (cols[picked.col] + 0.5) / W, (rows[picked.row] + 0.5) / H);
    levelKeys(showKeys, seen);
    said.textContent = `the pixel in row ${rows[picked.row] + 1}, column ${cols[picked.col] + 1} of level 1`;
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
  const canvas = imageCanvas(root, "Where the query samples, around its box");
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
