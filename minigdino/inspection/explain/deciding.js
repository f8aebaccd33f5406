// The queries: selection, attention in the decoder, box refinement.

draw.selection = (root, {scores, inside, selected, anchors, references}) => {
  const [score, within, proposed, first] = [scores, inside, anchors, references].map(tensor);
  const starts = page.levels.map((_, i) => sum(page.levels.slice(0, i).map(([H, W]) => H * W)));
  const place = (token) => {
    const level = starts.findLastIndex((start) => start <= token);
    const [H, W] = page.levels[level];
    const i = token - starts[level];
    return {level, row: Math.floor(i / W), col: i % W, x: (i % W + 0.5) / W, y: (Math.floor(i / W) + 0.5) / H};
  };
  const count = selected.length;
  const rank = slider(controls(root), "Rank", {min: 1, max: count, show: (i) => `${i} of ${count}`}, () => paint());
  const canvas = imageCanvas(root, "All selected image tokens, and the boxes of the chosen rank");
  keys(root)(page.levels.map((_, l) => [levelColour(l), `level ${l + 1}`]));
  const info = readout(root);
  const levels = levelCanvases(root, "Scores and selected image tokens");
  const scale = legend(controls(root), "score");
  const [low, high] = [-largest(score.values.map((v) => -v)), largest(score.values)];
  const ring = (context, {x, y, level}, radius) =>
    outlined(context, levelColour(level), Math.min(2.5, radius / 3 + 0.5), () =>
      context.arc(x * context.canvas.width, y * context.canvas.height, radius * unit(context), 0, 2 * Math.PI));
  const paint = () => {
    const context = canvas.getContext("2d");
    backdrop(context);
    const i = rank.value - 1;
    selected.forEach((token) => ring(context, place(token), count > 100 ? 2 : 6));
    const {level, row: r, col} = place(selected[i]);
    if (within.values[selected[i]]) frame(context, proposed.at(i), levelColour(level), 2, [7, 5]);
    frame(context, first.at(i), levelColour(level), 3);
    ring(context, place(selected[i]), 9);
    info.textContent = `rank ${i + 1}: row ${r + 1}, column ${col + 1} of level ${level + 1}, ` +
      `score ${score.values[selected[i]].toFixed(2)}`;
    page.levels.forEach(([H, W], l) => {
      const part = levels[l].context;
      backdrop(part);
      const from = starts[l];
      heat(part, score.values.subarray(from, from + H * W), H, W, low, high);
      const [dx, dy] = [page.width / W, page.height / H];
      for (const j of range(H * W)) {
        if (!within.values[from + j]) hatch(part, j % W * dx, Math.floor(j / W) * dy, dx, dy);
      }
      const here = selected.map(place).filter((p) => p.level === l);
      here.forEach((p) => ring(part, p, count > 100 ? 1.5 : 4));
      levels[l].text.textContent = `${levels[l].name}, ${here.length} selected`;
    });
    scale(low, high);
  };
  return paint;
};

// Radio buttons for the best queries, with label and score. All figures that have them share one choice.
const queryChoices = [];  // {control, paint} of each figure
function queryChoice(root, paint) {
  const rows = page.figures.refinement.queries.map((q) => scoredQueries()[q]);
  const names = rows.map(({label, score}) => `${page.phrases[label]} ${score.toFixed(2)}`);
  const control = choice(root, "Query", names, () => queryChoices.forEach((other) => {
    other.control.value = control.value;
    other.paint();
  }));
  queryChoices.push({control, paint});
  return control;
}

draw["query-queries"] = (root, {queries, weights}) => {
  const attention = tensor(weights);
  const boxes = tensor(page.figures.refinement.boxes);
  const layer = layerSlider(controls(root), attention.shape[0], () => paint());
  const query = queryChoice(root, () => paint());
  const canvas = imageCanvas(root, "Boxes of the queries that the chosen query attends to");
  const scale = legend(controls(root), "attention weight");
  const info = readout(root);
  const paint = () => {
    const context = canvas.getContext("2d");
    backdrop(context);
    const weight = attention.at(layer.value, query.value);
    const self = queries[query.value];
    const others = range(weight.length).filter((q) => q !== self).sort((a, b) => weight[a] - weight[b]);
    const max = largest(others.map((q) => weight[q]));
    for (const q of others) {
      const part = weight[q] / max;
      context.globalAlpha = part ** 2;
      frame(context, boxes.at(layer.value, q), rampColour(0.3 + 0.7 * part), 1 + 2 * part);
    }
    context.globalAlpha = 1;
    frame(context, boxes.at(layer.value, self), "white", 2, [6, 4]);
    scale(0, max);
    info.textContent = `dashed: the chosen query, with ${percent(weight[self])} of the attention on itself`;
  };
  return paint;
};

draw["query-text"] = (root, {weights}) => {
  const attention = tensor(weights);
  const layer = layerSlider(controls(root), attention.shape[0], () => paint());
  const query = queryChoice(root, () => paint());
  const paintBars = bars(root);
  const paint = () => paintBars(page.tokens, [...attention.at(layer.value, query.value)], 1);
  return paint;
};

draw.refinement = (root, {boxes}) => {
  const steps = tensor(boxes);
  const [n, count] = steps.shape;
  const names = range(n).map((i) => i === 0 ? "initial" : i === n - 1 ? "output" : `after layer ${i}`);
  const step = slider(controls(root), "Step", {max: n - 1, value: n - 1, show: (i) => names[i]}, () => paint());
  const canvas = imageCanvas(root, "The boxes at the chosen step");
  const info = readout(root);
  const paint = () => {
    const context = canvas.getContext("2d");
    backdrop(context);
    const rows = scoredQueries();
    const kept = rows.filter((r) => r.score > Math.fround(thresholds.box));
    Object.assign(context, {strokeStyle: "rgb(255 255 255 / 45%)", lineWidth: unit(context)});
    for (const q of range(count)) context.strokeRect(...rectangle(context, steps.at(step.value, q)));
    for (const {query, label} of kept) frame(context, steps.at(step.value, query), phraseColour(label), 3.5);
    const moved = step.value ? largest(kept.map(({query}) => {
      const [before, after] = [steps.at(step.value - 1, query), steps.at(step.value, query)];
      return Math.hypot((after[0] - before[0]) * page.original[0], (after[1] - before[1]) * page.original[1]);
    })) : -Infinity;
    info.textContent = `${names[step.value]}: ${kept.length} of ${count} boxes are above the box threshold` +
      (moved >= 0 ? `; their centres moved by at most ${moved.toFixed(1)} pixels in this step` : "");
  };
  thresholds.changed.push(paint);
  return paint;
};
