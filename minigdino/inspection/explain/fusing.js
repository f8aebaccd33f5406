// Cross-attention between image and text: one heat map on the image per level.

function levelCanvases(root, label) {
  const line = row(root, HALVES);
  return page.levels.map(([H, W], i) => {
    const cell = make("div", {className: "cell"}, line);
    const canvas = imageCanvas(cell, `${label}, level ${i + 1}`);
    return {canvas, context: canvas.getContext("2d"), text: make("p", {}, cell), name: `level ${i + 1}: ${W} × ${H}`};
  });
}

// The map of one layer, head and text token, on each level.
function levelMaps(maps, layer, head, token) {
  return maps.map((map) => ({values: map.at(layer, head, token), rows: map.shape[3], cols: map.shape[4]}));
}

draw["token-looks"] = (root, {maps, heads, shares}) => {
  const weights = maps.map(tensor);
  const share = tensor(shares);
  const layers = weights[0].shape[0];
  const bar = controls(root);
  const layer = layerSlider(bar, layers, () => paint());
  const head = headChoice(bar, heads, () => paint());
  const token = tokenChoice(root, () => paint());
  const levels = levelCanvases(root, "Attention weights of the text token");
  const scale = legend(controls(root), "attention weight");
  const paint = () => {
    const shown = levelMaps(weights, layer.value, head.value, token.value);
    const max = largest(shown.map(({values}) => largest(values)));
    shown.forEach(({values, rows, cols}, i) => {
      backdrop(levels[i].context);
      heat(levels[i].context, values, rows, cols, 0, max);
      const part = percent(share.at(layer.value, i)[token.value]);
      levels[i].text.textContent = levels[i].name + (head.value ? "" : `, ${part} of the weight`);
    });
    scale(0, max);
  };
  return paint;
};

draw["pixel-reads"] = (root, {maps, heads}) => {
  const weights = maps.map(tensor);
  const bar = controls(root);
  const layer = layerSlider(bar, weights[0].shape[0], () => paint());
  const level = choice(bar, "Level", page.levels.map((_, i) => String(i + 1)), () => paint());
  const head = headChoice(bar, heads, () => paint());
  const token = tokenChoice(root, () => paint());
  const line = row(root, "18rem");
  const left = make("div", {className: "cell"}, line);
  const canvas = imageCanvas(left, "Attention weight of the text token for each image token; pick an image token");
  const scale = legend(controls(left), "attention weight");
  const right = make("div", {className: "cell"}, line);
  const info = readout(right);
  const paintBars = bars(right);
  const grid = () => ({rows: weights[level.value].shape[3], cols: weights[level.value].shape[4]});
  const paint = () => {
    const map = weights[level.value];
    const {rows, cols} = grid();
    const values = map.at(layer.value, head.value, token.value);
    const context = canvas.getContext("2d");
    backdrop(context);
    heat(context, values, rows, cols, 0, largest(values));
    frame(context, [(picked.col + 0.5) / cols, (picked.row + 0.5) / rows, 1 / cols, 1 / rows], "white", 2);
    scale(0, largest(values));
    info.textContent = `token at row ${picked.row + 1}, column ${picked.col + 1} of level ${level.value + 1}`;
    paintBars(page.tokens, page.tokens.map((_, t) =>
      map.at(layer.value, head.value, t)[picked.row * cols + picked.col]));
  };
  const picked = pixelPicker(canvas, grid, () => paint());
  return paint;
};
