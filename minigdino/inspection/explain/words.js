// The text: phrase mask and self-attention.

draw["phrase-mask"] = (root, {mask, positions}) => {
  const {values} = tensor(mask);
  const T = page.tokens.length;
  const paintMatrix = matrix(root, "Tokens (rows) and the tokens that they may attend to (bright columns)");
  make("p", {className: "readout", textContent: "The number after a token is its position in its phrase."}, root);
  return () => paintMatrix({rows: page.tokens.map((t, i) => `${t} ${positions[i]}`), cols: page.tokens,
                            fill: (r, c) => values[r * T + c] ? rampColour(0.75) : theme("line")});
};

draw["text-attention"] = (root, {layers, weights}) => {
  const attention = tensor(weights);
  const T = page.tokens.length;
  const layer = slider(controls(root), "Layer", {max: layers.length - 1, show: (i) => layers[i]}, () => paint());
  const paintMatrix = matrix(root, "Attention weights of each token (row) over the tokens (columns)");
  const scale = legend(controls(root), "attention weight");
  const paint = () => {
    const map = attention.at(layer.value);
    paintMatrix({rows: page.tokens, cols: page.tokens,
                 fill: (r, c) => map[r * T + c] ? rampColour(map[r * T + c] / largest(map)) : theme("line")});
    scale(0, largest(map));
  };
  return paint;
};
