// Where pictures come from (file chooser, camera, clipboard, drop, example), and how they are shown.

import {$, make} from "./dom.js";

// Calls onFile(file) for each picture that the user gives, and onProblem(text) for anything else.
export function listen({onFile, onProblem, onExample}) {
  for (const input of [$("choose"), $("capture")]) {
    input.addEventListener("change", () => {
      if (input.files.length) onFile(input.files[0]);
      input.value = "";  // so that the same file can be chosen again
    });
  }
  $("example").addEventListener("click", async () => {
    const response = await fetch("static/example.jpg").catch(() => null);
    if (!response?.ok) return onProblem("The example could not be loaded. Check the connection to the server.");
    onExample(new File([await response.blob()], "example.jpg", {type: "image/jpeg"}));
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event, event.clipboardData.files);
  });
  listenForDrops((event) => take(event, event.dataTransfer.files));

  function take(event, files) {
    event.preventDefault();
    const pictures = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
    if (pictures.length) onFile(pictures[0]);
    else onProblem("Only picture files can be used here. Save the picture as a file first.");
  }
}

// The whole page accepts a drop, because a browser opens a file that misses a small target.
function listenForDrops(onDrop) {
  const stage = $("stage");
  const mark = (over) => (event) => {
    event.preventDefault();
    stage.classList.toggle("over", over);
  };
  addEventListener("dragover", mark(true));
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) mark(false)(event); });
  addEventListener("drop", (event) => {
    mark(false)(event);
    onDrop(event);
  });
}

// Decodes a file. Returns an <img>, upright as its EXIF data say; its size is naturalWidth × naturalHeight.
export async function decode(file) {
  const image = make("img", {src: URL.createObjectURL(file)});
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(image.src);
    throw new Error(`This browser cannot show ${file.name}. Convert it to JPEG or PNG.`);
  }
  return image;
}

// Returns a copy of a picture whose longest side is at most `side` pixels, as a JPEG file.
export async function smaller(image, name, side) {
  const scale = Math.min(1, side / Math.max(image.naturalWidth, image.naturalHeight));
  const [width, height] = [image.naturalWidth, image.naturalHeight].map((v) => Math.max(1, Math.round(v * scale)));
  const canvas = make("canvas", {width, height});
  canvas.getContext("2d").drawImage(image, 0, 0, width, height);
  return new File([await blob(canvas, "image/jpeg")], `${stem(name)}-small.jpg`, {type: "image/jpeg"});
}

export const stem = (name) => name.replace(/\.[^.]*$/, "");

// Encodes a canvas. Browsers refuse canvases above a size of their own.
export async function blob(canvas, type) {
  const encoded = await new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
  if (!encoded) throw new Error(`This browser cannot make a picture of ${canvas.width} × ${canvas.height} pixels.`);
  return encoded;
}
