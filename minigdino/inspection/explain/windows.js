// Swin: windows, mask of the shift, attention within windows, relative position bias, stage outputs.

draw.windows = (root, {stages}) => {
  const bar = controls(root);
  const stage = choice(bar, "Stage", stages.map((s) => String(s.stage)), () => paint(), 0);
  const kind = choice(bar, "Blocks", ["plain", "shifted"], () => paint());
  const canvas = imageCanvas(root, "The image with the borders of the windows; pick a window");
  const info = readout(root);
  const paint = () => {
    const context = canvas.getContext("2d");
    const {map, k, shift} = stages[stage.value];
    const moved = kind.value ? shift : 0;
    const at = layMap(context, stages[stage.value]);
    context.fillStyle = "rgb(240 228 66 / 60%)";
    eachOfWindow(at, k, moved, picked.row, picked.col, (r, c) => context.fillRect(c * at.x, r * at.y, at.x, at.y));
    windowLines(context, at, k, moved);
    info.textContent = `feature map ${map[1]} × ${map[0]}, padded to ${at.cols} × ${at.rows}: ` +
      `${at.cols * at.rows / k / k} windows of ${k} × ${k}` + (moved ? `, shifted by ${shift}` : "");
  };
  const picked = pixelPicker(canvas, () => paddedGrid(canvas, stages[stage.value]), () => paint(), [0.01, 0.01]);
  return paint;
};

draw["shift-mask"] = (root, {stages}) => {
  if (!stages.length) { readout(root).textContent = "No stage of this model has a shifted block."; return null; }
  const allMasks = stages.map(({masks}) => tensor(masks));
  const stage = choice(controls(root), "Stage", stages.map((s) => String(s.stage)), () => paint());
  const line = row(root, "18rem");
  const left = make("div", {className: "cell"}, line);
  const canvas = imageCanvas(left, "The shifted image, with one colour per region; pick a window");
  const right = make("div", {className: "cell"}, line);
  const paintMatrix = matrix(right, "Pairs of tokens of the window: dark pairs are masked, bright pairs are not");
  const info = readout(root);
  const paint = () => {
    const context = canvas.getContext("2d");
    const {k, shift, row_regions: rows, column_regions: columns} = stages[stage.value];
    const at = layMap(context, stages[stage.value], shift);
    context.globalAlpha = 0.4;
    rows.forEach((row, r) => columns.forEach((column, c) => {
      const region = row + column;
      context.fillStyle = LEVELS[(2 * region + Math.floor(region / 3)) % LEVELS.length];
      context.fillRect(c * at.x, r * at.y, at.x + 0.5, at.y + 0.5);
    }));
    context.globalAlpha = 1;
    windowLines(context, at, k, 0);
    const [r, c] = [Math.floor(picked.row / k), Math.floor(picked.col / k)];
    frame(context, [(c + 0.5) * k * at.x / canvas.width, (r + 0.5) * k * at.y / canvas.height,
                    k * at.x / canvas.width, k * at.y / canvas.height], "white", 4);
    const kind = (r === at.rows / k - 1 ? 2 : 0) + (c === at.cols / k - 1 ? 1 : 0);
    const mask = allMasks[stage.value].at(kind);
    const names = range(k * k).map(() => "");
    paintMatrix({rows: names, cols: names, side: Math.max(3, Math.floor(300 / k / k)),
          fill: (i, j) => rampColour(mask[i * k * k + j] === 0 ? 0.9 : 0)});
    const count = new Set(range(k * k).map((i) => mask.slice(i * k * k, (i + 1) * k * k).join())).size;
    info.textContent = `window in row ${r + 1}, column ${c + 1}: ` +
      (count === 1 ? "one region, nothing is masked" : `${count} regions, masked from each other`);
  };
  const picked = pixelPicker(canvas, () => paddedGrid(canvas, stages[stage.value]), () => paint(), [0.99, 0.99]);
  return paint;
};

draw["window-attention"] = (root, {blocks}) => {
  const weights = blocks.map((block) => tensor(block.weights));
  const bar = controls(root);
  const block = choice(bar, "Block", blocks.map(blockName), () => changed());
  const heads = make("div", {}, bar);
  let head = null;
  const canvas = imageCanvas(root, "Attention weights of the picked token over its window; pick another");
  const foot = controls(root);
  const scale = legend(foot, "attention weight");
  const info = readout(root);
  const changed = () => {
    heads.replaceChildren();
    head = headChoice(heads, weights[block.value].shape[0] - 1, () => paint());
    paint();
  };
  const grid = () => {
    const {right, bottom, rows, cols} = paddedGrid(canvas, blocks[block.value]);
    const {map: [H, W], rows: r, cols: c} = blocks[block.value];
    return {rows: r.length, cols: c.length, right: right * W / cols, bottom: bottom * H / rows};
  };
  const paint = () => {
    const {k, shift, rows, cols} = blocks[block.value];
    const context = canvas.getContext("2d");
    const at = layMap(context, blocks[block.value]);
    windowLines(context, at, k, shift);
    const [r, c] = [rows[picked.row], cols[picked.col]];
    const attention = weights[block.value].at(head.value, picked.row, picked.col);
    const max = largest(attention);
    context.globalAlpha = 0.9;
    eachOfWindow(at, k, shift, r, c, (y, x, i) => {
      context.fillStyle = rampColour(attention[i] / max);
      context.fillRect(x * at.x, y * at.y, at.x + 0.3, at.y + 0.3);
    });
    context.globalAlpha = 1;
    frame(context, [(c + 0.5) * at.x / canvas.width, (r + 0.5) * at.y / canvas.height, at.x / canvas.width,
                    at.y / canvas.height], "white", 2);
    scale(0, max);
    info.textContent = `token at row ${r + 1}, column ${c + 1}: largest weight ${percent(max)}, ` +
      `uniform weight ${percent(1 / k / k)}`;
  };
  const picked = pixelPicker(canvas, grid, () => paint());
  changed();
  return paint;
};

draw["position-bias"] = (root, {blocks}) => {
  const bias = blocks.map((block) => tensor(block.bias));
  const block = choice(controls(root), "Block", blocks.map(blockName), () => paint(), blocks.length > 2 ? 2 : 0);
  const squares = make("div", {className: "heads"}, root);
  const scale = legend(controls(root), "bias");
  const paint = () => {
    const [heads, side] = bias[block.value].shape;
    const {values} = bias[block.value];
    const [low, high] = [-largest(values.map((v) => -v)), largest(values)];
    squares.replaceChildren();
    for (const head of range(heads)) {
      const cell = make("div", {className: "cell"}, squares);
      const canvas = make("canvas", {className: "pixelated", width: side, height: side}, cell);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Bias of head ${head + 1} by offset`);
      make("p", {textContent: `head ${head + 1}`}, cell);
      bias[block.value].at(head).forEach((value, i) => {
        canvas.getContext("2d").fillStyle = rampColour((value - low) / (high - low || 1));
        canvas.getContext("2d").fillRect(i % side, Math.floor(i / side), 1, 1);
      });
    }
    scale(low, high);
  };
  return paint;
};

draw.stages = (root, {maps}) => {
  const line = row(root, HALVES);
  maps.forEach(({shape: [H, W, C], src}, i) => {
    const text = `stage ${i + 1}: ${W} × ${H} pixels, ${C} channels`;
    picture(line, src, text, `Output of ${text}`).image.style.aspectRatio = `${page.width} / ${page.height}`;
  });
};
