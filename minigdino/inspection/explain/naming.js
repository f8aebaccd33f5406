// Post-processing: from scores to labelled boxes, as in results.post_process.

const thresholds = {box: page.figures["token-scores"].threshold, text: page.figures["token-scores"].text_threshold,
                    changed: []};
const phraseColour = (i) => LEVELS[i % LEVELS.length];

// Score of each query, and its label: the phrase whose tokens have the highest score.
let scored = null;
function scoredQueries() {
  if (scored) return scored;
  const probabilities = tensor(page.figures["token-scores"].probabilities);
  scored = range(probabilities.shape[0]).map((query) => {
    const row = probabilities.at(query);
    const phrases = page.spans.map(([start, stop]) => largest(row.subarray(start, stop)));
    return {query, row, score: largest(row), label: phrases.indexOf(largest(phrases))};
  });
  return scored;
}

// Best first, ties by query index. Thresholds are rounded to float32, the dtype of the scores.
const ranked = () => [...scoredQueries()].sort((a, b) => b.score - a.score || a.query - b.query);
const isKept = ({score}) => score > Math.fround(thresholds.box);
const passes = (p, token) => token > 0 && token < 255 && p > Math.fround(thresholds.text);

// The tokens of a box above the text threshold, with the pieces of a word joined.
function passed({row}) {
  const tokens = page.tokens.filter((_, t) => passes(row[t], t));
  return tokens.join(" ").replaceAll(" ##", "");
}

function thresholdSliders(root) {
  const bar = controls(root);
  const show = (x) => x.toFixed(2);
  for (const [name, text] of [["box", "Box threshold"], ["text", "Text threshold"]]) {
    const moved = () => { thresholds[name] = control.value; thresholds.changed.forEach((call) => call()); };
    const control = slider(bar, text, {max: 1, step: 0.01, value: thresholds[name], show}, moved);
    thresholds.changed.push(() => { control.value = thresholds[name]; });
  }
}

draw["token-scores"] = (root) => {
  thresholdSliders(root);
  const paintMatrix = matrix(root, "Score of each box (row) for each token (column)");
  const scale = legend(controls(root), "score");
  const line = readout(root);
  const paint = () => {
    const all = ranked();
    const kept = all.filter(isKept).length;
    const rows = all.slice(0, Math.min(Math.max(24, kept), 200));
    const names = rows.map((r) => `${page.phrases[r.label].slice(0, 24)} ${r.score.toFixed(2)}`);
    const mark = (context, r, c, x, y, side) => {
      const [start, stop] = page.spans[rows[r].label];
      if (isKept(rows[r]) && c === start) {
        outlined(context, "white", 2, () => context.rect(x + 1, y + 1, (stop - start) * (side + 1) - 3, side - 2));
      }
      if (passes(rows[r].row[c], c)) {
        outlined(context, "white", 3, () => context.arc(x + side / 2, y + side / 2, side / 10, 0, 2 * Math.PI));
      }
    };
    const at = paintMatrix({rows: names, cols: page.tokens, fill: (r, c) => rampColour(rows[r].row[c]), mark});
    const y = at.top + Math.min(kept, rows.length) * at.side - 0.5;
    outlined(at.context, "white", 1.5, () => {
      at.context.moveTo(0, y);
      at.context.lineTo(at.left + page.tokens.length * at.side, y);
    });
    scale(0, 1);
    const threshold = thresholds.box.toFixed(2);
    line.textContent = `${kept} of ${all.length} boxes (above the line) have a score above ${threshold}`;
  };
  thresholds.changed.push(paint);
  return paint;
};

// Draws a label above the upper left corner of a box, or below the corner if there is no room above.
function tag(context, box, text, colour) {
  const [left, top] = rectangle(context, box);
  const size = 14 * unit(context);
  context.font = `600 ${size}px ${theme("sans")}`;
  const [width, height] = [context.measureText(text).width + 0.7 * size, 1.5 * size];
  const x = Math.max(0, Math.min(left, context.canvas.width - width));
  const y = top < height ? Math.max(top, 0) : top - height;
  context.fillStyle = colour;
  context.fillRect(x, y, width, height);
  Object.assign(context, {fillStyle: "black", textBaseline: "middle", textAlign: "left"});
  context.fillText(text, x + 0.35 * size, y + 0.54 * height);
}

draw.result = (root, {boxes}) => {
  thresholdSliders(root);
  const corners = tensor(boxes);
  const canvas = imageCanvas(root, "The image with the kept boxes");
  const table = make("table", {}, make("div", {className: "scroll"}, root));
  const [W, H] = page.original;
  const paint = () => {
    const context = canvas.getContext("2d");
    backdrop(context, "colour");
    const kept = ranked().filter(isKept);
    for (const {query, label, score} of [...kept].reverse()) {
      const [left, top, right, bottom] = corners.at(query);
      const box = [(left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H];
      frame(context, box, phraseColour(label), 3.5);
      tag(context, box, `${page.phrases[label]} ${score.toFixed(2)}`, phraseColour(label));
    }
    table.replaceChildren();
    const head = make("tr", {}, table);
    for (const name of ["label", "score", "left, top, right, bottom", "tokens above the text threshold"]) {
      make("th", {textContent: name}, head);
    }
    for (const found of kept.slice(0, 100)) {
      const line = make("tr", {}, table);
      const name = make("td", {}, line);
      make("i", {}, name).style.background = phraseColour(found.label);
      name.append(page.phrases[found.label]);
      const box = [...corners.at(found.query)].map(Math.round).join(", ");
      for (const text of [found.score.toFixed(2), box, passed(found) || "none"]) {
        make("td", {textContent: text}, line);
      }
    }
    if (!kept.length) {
      make("td", {textContent: "no box has a score above the box threshold", colSpan: 4}, make("tr", {}, table));
    }
  };
  thresholds.changed.push(paint);
  return paint;
};
