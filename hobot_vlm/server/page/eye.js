// What the robot or a camera sees, drawn with what was found in it, and the question that stands
// about it. Knows nothing of the conversation.

import { $, answered, call, drawn, make, read, say } from '/common.js';

/* -- what the robot or the camera sees -------------------------------------------------------- */

export let live = null; // {snapshot(): data URL, close()}
const pen = $('view').getContext('2d');

function paint(image, found) {
  const view = $('view');
  Object.assign(view, { width: found.width, height: found.height });
  pen.drawImage(image, 0, 0, view.width, view.height);
  const unit = Math.max(view.width, view.height) / 640;
  Object.assign(pen, { lineWidth: 3 * unit, font: `600 ${15 * unit}px system-ui, sans-serif`, textBaseline: 'top' });
  const mark = (label, x, y, colour) => {
    if (!label) return;
    pen.fillStyle = colour;
    pen.fillRect(x, y, pen.measureText(label).width + 10 * unit, 21 * unit);
    pen.fillStyle = '#06101f';
    pen.fillText(label, x + 5 * unit, y + 3 * unit);
  };
  for (const { label, x1, y1, x2, y2 } of found.boxes) {
    pen.strokeStyle = '#3ddc97';
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    mark(label, x1, y1, '#3ddc97');
  }
  for (const { label, x, y } of found.points) {
    pen.fillStyle = '#ffb020';
    pen.beginPath();
    pen.arc(x, y, 6 * unit, 0, 7);
    pen.fill();
    mark(label, x + 9 * unit, y - 10 * unit, '#ffb020');
  }
}

function show(source, name) {
  live = source;
  $('eye').hidden = !source;
  $('source').firstElementChild.textContent = name;
  $('rate-of').hidden = !source || Boolean(source.camera);
  $('close-camera').hidden = !source?.camera;
}

/** Read a stream of JPEGs (multipart/x-mixed-replace), each with what was found in it. */
export async function watchRobot() {
  const control = new AbortController();
  let newest = null;
  const snapshot = () => newest && read(newest);
  show({ snapshot, close: () => control.abort() }, '');
  $('rate').onchange = () => { control.abort(); watchRobot(); };
  try {
    const answer = await call(`/live.mjpeg?rate=${$('rate').value}`, { signal: control.signal });
    const reader = answer.body.getReader();
    let data = new Uint8Array();
    for (; ;) {
      const { done, value } = await reader.read();
      if (done) break;
      data = joined(data, value);
      for (let part; (part = firstPart(data)); data = part.rest) {
        newest = new Blob([part.body], { type: 'image/jpeg' });
        paint(await createImageBitmap(newest), part.found);
        $('source').firstElementChild.textContent = part.found.topic || 'live';
      }
    }
  } catch { /* said below */ }
  if (!control.signal.aborted) setTimeout(watchRobot, 2000); // the server was away
}

function joined(one, other) {
  const both = new Uint8Array(one.length + other.length);
  both.set(one);
  both.set(other, one.length);
  return both;
}

function firstPart(data) {
  const head = new TextDecoder('latin1').decode(data.subarray(0, 65536));
  const end = head.indexOf('\r\n\r\n');
  const size = Number(/Content-Length: (\d+)/.exec(head.slice(0, Math.max(end, 0)))?.[1]);
  const stop = end + 4 + size;
  if (end < 0 || data.length < stop + 2) return null;
  const found = JSON.parse(/X-Found: (.*)/.exec(head)[1]);
  return { found, body: data.slice(end + 4, stop), rest: data.slice(stop + 2) };
}

/** Show the browser's camera in place of the robot's. */
export async function openCamera() {
  if (!navigator.mediaDevices) throw new Error(say('insecure'));
  const video = $('video');
  const wanted = { facingMode: 'environment', width: { ideal: 1280 } };
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
  await video.play();
  live?.close();
  const size = () => ({ width: video.videoWidth, height: video.videoHeight, boxes: [], points: [] });
  const timer = setInterval(() => paint(video, size()), 66); // 15 pictures a second
  const close = () => {
    clearInterval(timer);
    video.srcObject.getTracks().forEach((track) => track.stop());
  };
  const snapshot = () => drawn(video, video.videoWidth, video.videoHeight, 1);
  show({ camera: true, close, snapshot }, say('camera'));
}

/** Close the camera. */
export function closeCamera() {
  live.close();
  show(null, '');
}

/* -- standing question ------------------------------------------------------------------------ */

let standing = null; // AbortController while it stands
const latest = new Map(); // name of a question -> its newest answer; the page's own has no name

function tell(name, text, when = new Date()) {
  const list = $('standing-answers');
  const item = make('li', text === latest.get(name) ? '' : 'changed');
  latest.set(name, text);
  item.append(make('time', '', when.toLocaleTimeString([], { hour12: false })), make('span', '', name ? `${name}: ${text}` : text));
  list.prepend(item);
  while (list.children.length > 20) list.lastChild.remove();
}

/** Name the button of the standing question. */
export function labelStanding() {
  $('standing-go').textContent = say(standing ? 'stop' : 'start');
  $('standing-go').ariaPressed = String(Boolean(standing));
}

async function stand() {
  const control = (standing = new AbortController());
  labelStanding();
  while (!control.signal.aborted && live) {
    const began = performance.now();
    const url = await live.snapshot();
    const text = $('standing-text').value.trim() || $('standing-text').placeholder;
    const content = [{ type: 'image_url', image_url: { url } }, { type: 'text', text }];
    let said = '';
    try {
      if (url) await answered([{ role: 'user', content }], control.signal, (piece) => { said += piece; });
      if (url) tell('', said.trim());
    } catch (error) {
      if (error.name !== 'AbortError') tell('', error.message);
    }
    const left = 1000 * $('standing-every').value - (performance.now() - began);
    await new Promise((done) => { setTimeout(done, Math.max(left, 100)); });
  }
  if (standing === control) standing = null;
  labelStanding();
}

$('standing').addEventListener('submit', (event) => {
  event.preventDefault();
  if (!standing) {
    stand();
    return;
  }
  standing.abort();
  standing = null;
  labelStanding();
});

/* -- the robot's own standing questions ------------------------------------------------------- */

async function change(name, question) {
  $('watch-error').hidden = true;
  const headers = { 'Content-Type': 'application/json' };
  try {
    const body = JSON.stringify({ name, question });
    await call('/live/questions', { method: 'POST', headers, body });
    document.activeElement.blur();
    await showStanding();
  } catch (error) {
    Object.assign($('watch-error'), { textContent: error.message, hidden: false });
  }
}

function watched({ name, question, answer, probability, stale, error }, changeable) {
  const sure = probability === null ? '' : ` · ${Math.round(100 * Math.max(probability, 1 - probability))} %`;
  const text = error || (stale ? say('stale') : answer ? answer + sure : say('unknown'));
  const item = make('li');
  item.dataset.state = error || stale ? 'wrong' : answer ? 'known' : 'unknown';
  item.append(make('span', '', `${name}: ${question}`), make('p', '', text));
  const button = Object.assign(make('button', 'quiet small', '×'), { type: 'button', ariaLabel: say('forget') });
  button.onclick = () => change(name, '');
  if (changeable) item.append(button);
  return item;
}

$('watch-add').addEventListener('click', () => {
  const text = $('standing-text').value.trim() || $('standing-text').placeholder;
  change($('watch-name').value.trim() || $('watch-name').placeholder, text);
});

/** Show what the robot's own standing questions came to. */
export async function showStanding() {
  const { questions, changeable } = await (await call('/live')).json();
  $('watch').hidden = !changeable;
  if (!$('watches').contains(document.activeElement)) {
    $('watches').replaceChildren(...questions.map((item) => watched(item, changeable)));
  }
  for (const { name, answer, stamp } of questions) {
    if (answer && answer !== latest.get(name)) tell(name, answer, new Date(1000 * stamp));
  }
}
