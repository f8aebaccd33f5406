// Requests to the server, and its errors in words.

export const LOWEST = 0.05;  // threshold of every request; the page's sliders select among these boxes
export const MOST = 300;  // boxes of an answer

// A request that failed. text: in words; seconds: when to try again, if the server named a time; status: 0 without one.
export class Failure extends Error {
  constructor(text, {status = 0, seconds = null} = {}) {
    super(text);
    Object.assign(this, {status, seconds});
  }
}

// Detects phrases in a picture. Returns the parsed answer of POST /v1/detect.
export async function detect(file, phrases, {key, signal}) {
  const form = new FormData();
  form.append("image", file, file.name);
  for (const phrase of phrases) form.append("phrase", phrase);
  form.append("threshold", LOWEST);
  form.append("max_detections", MOST);
  const headers = key ? {Authorization: `Bearer ${key}`} : {};
  const response = await send("v1/detect", {method: "POST", body: form, headers, signal});
  const answer = await json(response);
  if (!response.ok) throw failure(response, answer);
  const [result] = answer?.results ?? [];
  if (!result) throw new Failure("The answer has no result. Check that this is the address of minigdino.");
  return answer;
}

// Returns the parsed answer of a GET request, or null if there is none.
export async function get(path) {
  try {
    return await json(await send(path));
  } catch {
    return null;
  }
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(`No connection to the server at ${location.host}. Check that it is running.`);
  }
}

// A proxy in front of the server may answer with HTML: null then.
async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return null;
  }
}

function failure(response, answer) {
  const {status} = response;
  const seconds = Math.ceil(Number(response.headers.get("Retry-After"))) || null;
  return new Failure(words(status, answer?.error), {status, seconds});
}

function words(status, text) {
  if (status === 401) return "The server needs its API key. Enter it, then press Detect.";
  if (text) return sentence(text);
  return OF_PROXIES[status] ?? `The server refused the request with status ${status}.`;
}

// Messages of the server start in lower case and have no final dot.
const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");

const OF_PROXIES = {  // answers without a text of the server
  413: "The picture is too large for the server.",
  502: "The server does not answer. Check that it is running.",
  503: "The server is busy.",
  504: "The server did not finish in time.",
};
