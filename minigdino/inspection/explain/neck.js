// The neck: feature levels and positional encoding.

draw.pyramid = (root, {maps}) => {
  const line = make("div", {className: "pyramid"}, root);
  maps.forEach(({shape: [H, W], src}, i) => {
    const {cell, image} = picture(line, src, "", `Level ${i + 1} in its first three principal components`);
    cell.style.flex = `${W} 1 0`;
    image.style.aspectRatio = `${W} / ${H}`;
  });
  const table = make("table", {}, make("div", {className: "scroll"}, root));
  const cells = (parent, tag, texts) => texts.forEach((text) => make(tag, {textContent: text}, parent));
  cells(make("tr", {}, table), "th", ["level", "pixels", "channels", "tokens", "computed by"]);
  maps.forEach(({shape: [H, W, C], made_by: by}, i) =>
    cells(make("tr", {}, table), "td", [i + 1, `${W} × ${H}`, C, W * H, by]));
  cells(make("tr", {}, table), "td", ["all", "", "", sum(maps.map(({shape: [H, W]}) => H * W)), ""]);
};

draw["image-positions"] = (root, {channels}) => {
  const [H, W] = page.levels[0];
  for (const axis of ["row", "column"]) {
    const line = row(root, "5.5rem");
    for (const {channel, src} of channels.filter((c) => c.axis === axis)) {
      picture(line, src, `channel ${channel}`, `Channel ${channel}, which encodes the ${axis}`)
        .image.style.aspectRatio = `${W} / ${H}`;
    }
  }
};
