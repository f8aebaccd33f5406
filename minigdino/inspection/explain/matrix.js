// A matrix of coloured cells with names of rows and columns. fill(r, c) gives the colour of a cell, and
// mark(context, r, c, x, y, side) may draw on it.
function matrix(root, label) {
  const canvas = make("canvas", {}, make("div", {className: "scroll"}, root));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  return ({rows, cols, fill, mark = () => {}, side = null}) => {
    const context = canvas.getContext("2d");
    const font = `${cols.length > 60 ? 10 : 12}px ${theme("mono")}`;
    context.font = font;
    const left = Math.ceil(largest(rows.map((t) => context.measureText(t).width))) + 8;
    const room = Math.floor((root.clientWidth - left - 2) / cols.length);
    side ??= Math.min(24, Math.max(cols.length > 60 ? 11 : 14, room));
    const top = Math.ceil(largest(cols.map((t) => context.measureText(t).width))) + 8;
    const [width, height, scale] = [left + cols.length * side + 2, top + rows.length * side + 2, devicePixelRatio];
    Object.assign(canvas, {width: width * scale, height: height * scale});
    Object.assign(canvas.style, {width: `${width}px`, height: `${height}px`});
    context.scale(scale, scale);
    Object.assign(context, {font, fillStyle: theme("ink"), textBaseline: "middle", textAlign: "right"});
    rows.forEach((name, r) => context.fillText(name, left - 6, top + (r + 0.5) * side));
    context.textAlign = "left";
    cols.forEach((name, c) => {
      context.save();
      context.translate(left + (c + 0.5) * side, top - 6);
      context.rotate(-Math.PI / 2);
      context.fillText(name, 0, 0);
      context.restore();
    });
    for (const r of range(rows.length)) {
      for (const c of range(cols.length)) {
        context.fillStyle = fill(r, c);
        context.fillRect(left + c * side, top + r * side, side - 1, side - 1);
      }
    }
    for (const r of range(rows.length)) {
      for (const c of range(cols.length)) mark(context, r, c, left + c * side, top + r * side, side - 1);
    }
    return {left, top, side, context};
  };
}
