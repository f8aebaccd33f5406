// Image and text reading each other: a heat map on the image for every level.

function levelCanvases(root, label) {
  const line = row(root, HALVES);
  return page.levels.map(([H, W], i) => {
    const cell = make("div", {className: "cell"}, line);
    const canvas = imageCanvas(cell, `${label}, level ${i + 1}`);
    return {canvas, context: canvas.getContext("2d"), text: make("p", {}, cell), name: `level ${i + 1}: ${W} × ${H}`};
  });
}

// One token's map of one layer and head, on each level.
function levelMaps(maps, layer, head, token) {
  return maps.map((map) => ({values: map.at(layer, head, token), rows: map.shape[3], cols: map.shape[4]}));
}

draw["token-looks"] = (root, {maps, heads, shares}) => {
  const looks = maps.map(tensor);
  const share = tensor(shares);
  const layers = looks[0].shape[0];
  const bar = controls(root);
  const layer = layerSlider(bar, layers, () => paint());
  const head = headChoice(bar, heads, () => paint());
  const token = tokenChoice(root, () => paint());
  const levels = levelCanvases(root, "Where the token looks");
  const scale = legend(controls(root), "weight of a pixel");
  const paint = () => {
    const shown = levelMaps(looks, layer.value, head.value, token.value);
    const most = largest(shown.map(({values}) => largest(values)));
    shown.forEach(({values, rows, cols}, i) => {
      backdrop(levels[i].context);
      heat(levels[i].context, values, rows, cols, 0, most);
      const part = percent(share.at(layer.value, i)[token.value]);
      levels[i].text.textContent = levels[i].name + (head.value ? "" : `, ${part} of the weight`);
    });
    scale(0, most);
  };
  return paint;
};

draw["pixel-reads"] = (root, {maps, heads}) => {
  const reads = maps.map(tensor);
  const bar = controls(root);
  const layer = layerSlider(bar, reads[0].shape[0], () => paint());
  const level = choice(bar, "Level", page.levels.map((_, i) => String(i + 1)), () => paint());
  const head = headChoice(bar, heads, () => paint());
  const token = tokenChoice(root, () => paint());
  const line = row(root, "18rem");
  const left = make("div", {className: "cell"}, line);
  const canvas = imageCanvas(left, "How much each pixel reads of the token; pick a pixel");
  const scale = legend(controls(left), "weight of the token");
  const right = make("div", {className: "cell"}, line);
  const said = readout(right);
  const paintBars = bars(right);
  const grid = () => ({rows: reads[level.value].shape[3], cols: reads[level.value].shape[4]});
  const paint = () => {
    const map = reads[level.value];
    const {rows, cols} = grid();
    const values = map.at(layer.value, head.value, token.value);
    const context = canvas.getContext("2d");
    backdrop(context);
    heat(context, values, rows, cols, 0, largest(values));
    frame(context, [(picked.col + 0.5) / cols, (picked.row + 0.5) / rows, 1 / cols, 1 / rows], "white", 2);
    scale(0, largest(values));
    said.textContent = `the pixel in row ${picked.row + 1}, column ${picked.col + 1} of level ${level.value + 1} reads`;
    paintBars(page.tokens, page.tokens.map((_, t) =>
      map.at(layer.value, head.value, t)[picked.row * cols + picked.col]));
  };
  const picked = pixelPicker(canvas, grid, () => paint());
  return paint;
};
