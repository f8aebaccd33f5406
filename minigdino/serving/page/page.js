// The page: a picture and phrases become a request, its answer becomes boxes.

import {detect, get} from "./client.js";
import {$, announce, make, plural} from "./dom.js";
import {phraseField} from "./phrases.js";
import * as picture from "./picture.js";
import * as results from "./results.js";
import {asCurl, asPython} from "./snippets.js";

const EXAMPLE = ["a purple star", "a green heart", "an orange ring"];
const SMALL = 1600;  // longest side of a smaller copy, in pixels; the published models see at most 1333
const QUIET = 300;  // milliseconds without a change of the phrases before a request

let file = null;
let latest = null;  // the file that was given last; it may still be decoded
let running = null;  // the request under way or the countdown to it, with a method abort()
let soon = 0;  // timer of a request after a change

const field = phraseField(() => schedule());

// Starts a request after a change, if there is something to send.
function schedule() {
  stop();
  $("warnings").hidden = true;
  if (!field.phrases.length) results.show(null);
  $("boxes").classList.add("stale");
  if (file && field.phrases.length) soon = setTimeout(run, QUIET);
}

// Shows a picture, and searches it for the phrases of the field, or for a new list.
async function use(chosen, phrases = field.phrases) {
  clearProblem();
  latest = chosen;
  try {
    const image = await picture.decode(chosen);
    if (latest !== chosen) return;
    URL.revokeObjectURL($("photo").src);
    Object.assign($("photo"), {src: image.src, alt: chosen.name, hidden: false});
    $("stage").classList.remove("bare");
    $("stage").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    $("file").textContent = `${chosen.name}, ${image.naturalWidth} × ${image.naturalHeight}`;
    $("empty").hidden = true;
    file = chosen;
    results.show(null);
    field.set(phrases);
    if (phrases.length) run();
  } catch (error) {
    problem(error.message);
  }
}

async function run() {
  field.commit();
  stop();
  clearProblem();
  if (!file) return problem("Choose a picture first.");
  if (!field.phrases.length) return problem("Add a phrase that names what to find, such as “a red star”.");
  const control = new AbortController();
  const phrases = field.phrases;
  begin(control);
  const ticking = progress();
  try {
    const answer = await detect(file, phrases, {key: $("key").value, signal: control.signal});
    if (running === control) finish(answer, phrases);
  } catch (error) {
    if (running === control) fail(error);
  } finally {
    clearInterval(ticking);
    if (running === control) idle();
  }
}

function begin(work) {
  running = work;
  $("detect").textContent = "Stop";
}

function idle() {
  running = null;
  $("detect").textContent = "Detect";
  $("progress").textContent = "";
}

function stop() {
  clearTimeout(soon);
  running?.abort();
  idle();
}

// Shows the seconds since the start of the request.
function progress() {
  const start = performance.now();
  const show = () => { $("progress").textContent = `Detecting, ${Math.floor((performance.now() - start) / 1000)} s`; };
  announce("Detecting");
  show();
  return setInterval(show, 1000);
}

function finish({results: [result], seconds, model, warnings}, phrases) {
  results.show(result, phrases);
  $("boxes").classList.remove("stale");
  const parts = Object.entries(seconds).map(([part, value]) => `${part} ${value.toFixed(2)} s`);
  $("seconds").textContent = `Last answer: ${parts.join(", ")}`;
  $("warnings").textContent = warnings.join("\n");
  $("warnings").hidden = !warnings.length;
  nameModel(model);
  refresh();
}

function clearProblem() {
  if ($("message").contains(document.activeElement)) $("detect").focus();  // the focus must not get lost
  $("message").hidden = $("retry").hidden = $("shrink").hidden = true;
}

function problem(text) {
  clearProblem();
  $("problem").textContent = text;
  $("message").hidden = false;
}

function fail({message, status, seconds}) {
  results.show(null);
  problem(message);
  $("retry").hidden = status >= 400 && status < 500 && status !== 408;  // the same request would be refused again
  $("shrink").hidden = status !== 413;
  if (status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  if (status === 503 && seconds) countDown(seconds);
  refresh();
}

// Repeats the request at the time that the server named.
function countDown(seconds) {
  let left = seconds;
  const show = () => { $("progress").textContent = `Next try in ${left} s`; };
  const ticking = setInterval(() => {
    left -= 1;
    show();
    if (left <= 0) run();
  }, 1000);
  begin({abort: () => clearInterval(ticking)});
  show();
  announce($("progress").textContent);
}

// Shows the state of the server in the footer.
async function refresh() {
  const health = await get("health/ready");
  if (!health) $("server").textContent = "No connection to the server";
  else if (!health.ready) $("server").textContent = "Server not ready";
  else $("server").textContent = `Server ready, ${health.busy} of ${plural(health.workers, "worker")} busy, ` +
    `${plural(health.queue, "request")} waiting`;
}

async function showModel() {
  const answer = await get("v1/models");
  if (answer?.models) nameModel(answer.models[0].name);
}

const nameModel = (name) => { $("model").textContent = `Model ${name}`; };

async function copy(button) {
  const request = {url: new URL("v1/detect", location.href).href, name: file.name, thresholds: results.thresholds(),
                   withKey: !$("key-field").hidden};
  const texts = {json: () => JSON.stringify(results.shown(), null, 2), curl: () => asCurl(request),
                 python: () => asPython(request)};
  const name = button.dataset.text ?? button.textContent;
  const copied = await write(texts[button.dataset.copy]());
  if (!copied) return problem("This browser did not allow access to the clipboard.");
  announce(`Copied as ${name}`);
  flash(button, "Copied");
}

// Browsers have navigator.clipboard on HTTPS and on this machine only; a page from another machine needs the old way.
async function write(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = make("textarea", {value: text, className: "unseen"}, document.body);
  const before = document.activeElement;
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before.focus();
  return copied;
}

// Shows another text on a button for a moment; dataset.text is its own.
function flash(button, text) {
  if (button.dataset.text) return;
  button.dataset.text = button.textContent;
  button.style.minWidth = `${button.offsetWidth}px`;
  button.textContent = text;
  setTimeout(() => {
    button.textContent = button.dataset.text;
    delete button.dataset.text;
  }, 1500);
}

async function save() {
  const type = file.type === "image/jpeg" ? "image/jpeg" : "image/png";
  try {
    const href = URL.createObjectURL(await picture.blob(results.drawn($("photo")), type));
    make("a", {href, download: `${picture.stem(file.name)}-boxes.${type === "image/jpeg" ? "jpg" : "png"}`}).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);  // a browser may read it after the click
  } catch (error) {
    problem(error.message);
  }
}

async function shrink() {
  try {
    const {naturalWidth, naturalHeight} = $("photo");
    const side = Math.min(SMALL, Math.max(naturalWidth, naturalHeight) / 2);  // smaller with each click
    await use(await picture.smaller($("photo"), file.name, side));
  } catch (error) {
    problem(error.message);
  }
}

function start() {
  picture.listen({onFile: use, onProblem: problem, onExample: (example) => use(example, EXAMPLE)});
  results.listen();
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) return run();
    stop();
    clearProblem();
    results.show(null);
  });
  $("retry").addEventListener("click", run);
  $("shrink").addEventListener("click", shrink);
  $("save").addEventListener("click", save);
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
  showModel();
  refresh();
  setInterval(() => { if (!document.hidden) refresh(); }, 5000);
  document.documentElement.dataset.ready = "yes";
}

start();
