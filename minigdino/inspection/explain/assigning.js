// Training: matching of queries with annotated boxes, and the losses.

draw.matching = (root, figure) => {
  const {boxes, labels, queries, matches} = figure;
  const steps = tensor(page.figures.refinement.boxes);
  const [n, count] = steps.shape;
  const columns = figure.costs.shape[2];
  const canvas = imageCanvas(root, "Annotated boxes, and the boxes of the matched queries");
  const paintCosts = columns ? costMatrix(root, figure) : () => {};
  readout(root).textContent = columns
    ? `${queries.length} of ${count} queries, ${columns} of ${boxes.length} boxes`
    : "no annotated boxes: all queries should have low scores";
  lossTable(root, figure);
  return () => {
    const context = canvas.getContext("2d");
    backdrop(context);
    boxes.forEach((box, b) => {
      const colour = phraseColour(labels[b]);
      frame(context, box, colour, 2.5, [8, 6]);
      if (!(b in matches)) return;
      const found = steps.at(n - 1, matches[b]);
      frame(context, found, colour, 2.5);
      tag(context, found, `${page.phrases[labels[b]].slice(0, 24)}, query ${matches[b]}`, colour);
    });
    paintCosts();
  };
};

// Costs of queries (rows) and annotated boxes (columns), as numbers if there is room for them.
function costMatrix(root, {labels, queries, costs, matches}) {
  const cost = tensor(costs);
  const columns = cost.shape[2];
  const roomy = columns <= 12;
  const part = choice(controls(root), "Cost", ["sum", "class", "L1", "GIoU"], () => paint());
  const paintMatrix = matrix(root, "Cost of each query (row) for each annotated box (column)");
  const scale = legend(controls(root), "cost");
  const paint = () => {
    const values = cost.at(part.value);
    const [low, high] = [-largest(values.map((x) => -x)), largest(values)];
    const at = (r, c) => values[r * columns + c];
    const brightness = (r, c) => high > low ? (high - at(r, c)) / (high - low) : 1;
    const mark = (context, r, c, x, y, side) => {
      if (roomy) {
        Object.assign(context, {font: `10px ${theme("mono")}`, textAlign: "center",
                                fillStyle: brightness(r, c) > 0.5 ? "black" : "white"});
        context.fillText(at(r, c).toFixed(1), x + side / 2, y + side / 2);
      }
      if (matches[c] === queries[r]) {
        outlined(context, "white", 2, () => context.rect(x + 1, y + 1, side - 2, side - 2));
      }
    };
    paintMatrix({rows: queries.map((q) => `query ${q}`), mark, side: roomy ? 34 : null,
                 cols: range(columns).map((b) => page.phrases[labels[b]].slice(0, 24)),
                 fill: (r, c) => rampColour(brightness(r, c))});
    scale(high, low);
  };
  return paint;
}

function lossTable(root, {terms, total}) {
  const table = make("table", {}, make("div", {className: "scroll"}, root));
  const rows = terms.map(([name, value, weight]) => [name, value, weight, value * weight]);
  for (const row of [["term", "value", "weight", "weight × value"], ...rows, ["total", "", "", total]]) {
    const line = make("tr", {}, table);
    for (const cell of row) {
      const textContent = typeof cell === "number" ? String(+cell.toFixed(3)) : cell;
      make(row[0] === "term" ? "th" : "td", {textContent}, line);
    }
  }
}
