// The text: who may see whom, and who does.

draw["phrase-mask"] = (root, {mask, positions}) => {
  const {values} = tensor(mask);
  const T = page.tokens.length;
  const paintMatrix = matrix(root, "Tokens in rows see the tokens in columns that are bright");
  const said = make("p", {className: "readout"}, root);
  said.textContent = "The number after a token is its position in its phrase.";
  return () => paintMatrix({rows: page.tokens.map((t, i) => `${t} ${positions[i]}`), cols: page.tokens,
                            fill: (r, c) => values[r * T + c] ? rampColour(0.75) : theme("line")});
};

draw["text-attention"] = (root, {layers, weights}) => {
  const read = tensor(weights);
  const T = page.tokens.length;
  const layer = slider(controls(root), "Layer", {most: layers.length - 1, show: (i) => layers[i]}, () => paint());
  const paintMatrix = matrix(root, "How much the token of each row reads of the token of each column");
  const scale = legend(controls(root), "weight");
  const paint = () => {
    const map = read.at(layer.value);
    paintMatrix({rows: page.tokens, cols: page.tokens,
                 fill: (r, c) => map[r * T + c] ? rampColour(map[r * T + c] / largest(map)) : theme("line")});
    scale(0, largest(map));
  };
  return paint;
};
