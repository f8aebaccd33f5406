// The request behind the shown boxes, as a curl command and as a Python program.

import {MOST} from "./client.js";

// request: {url, name, thresholds, withKey}; thresholds: [[phrase, number], ...], in the order of the phrases.
export function asCurl({url, name, thresholds, withKey}) {
  return [
    `curl ${quoted(url)}`,
    ...withKey ? ['-H "Authorization: Bearer $MINIGDINO_API_KEY"'] : [],
    `-F ${quoted(`image=@"${name.replace(/[\\"]/g, "\\$&")}"`)}`,
    // -F would read a file if the phrase were "@name"
    ...thresholds.map(([phrase]) => `--form-string ${quoted(`phrase=${phrase}`)}`),
    `--form-string ${quoted(`threshold=${JSON.stringify(common(thresholds))}`)}`,
    `-F max_detections=${MOST}`,
  ].join(" \\\n  ") + "\n";
}

// One number if it is the threshold of all phrases, else {phrase: number}.
function common(thresholds) {
  const numbers = new Set(thresholds.map(([, number]) => number));
  return numbers.size === 1 ? [...numbers][0] : Object.fromEntries(thresholds);
}

// A single-quoted word of a POSIX shell.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asPython({url, name, thresholds, withKey}) {
  const text = JSON.stringify;  // a JSON string or number is one of Python, too
  const phrases = thresholds.map(([phrase]) => `        ${text(phrase)},\n`).join("");
  return `import base64
import json
${withKey ? "import os\n" : ""}from pathlib import Path
from urllib.request import Request, urlopen

body = {
    "images": [base64.b64encode(Path(${text(name)}).read_bytes()).decode()],
    "phrases": [
${phrases}    ],
    "threshold": ${text(common(thresholds))},
    "max_detections": ${MOST},
}
headers = {"Content-Type": "application/json"}
${withKey ? 'headers["Authorization"] = f"Bearer {os.environ[\'MINIGDINO_API_KEY\']}"\n' : ""}\
request = Request(${text(url)}, json.dumps(body).encode(), headers)
with urlopen(request) as response:
    (result,) = json.load(response)["results"]
for found in result["detections"]:
    print(found["label"], round(found["score"], 2), [round(v) for v in found["box"]])
`;
}
