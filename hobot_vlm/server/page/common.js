// What the parts of the page share: the words in both languages, the API, pictures as data URLs.
// Knows nothing of how answers are displayed.

export const $ = (id) => document.getElementById(id);
export const make = (tag, name = '', text = '') =>
  Object.assign(document.createElement(tag), { className: name, textContent: text });

/* -- words ------------------------------------------------------------------------------------ */

const WORDS = Object.fromEntries([...$('words').querySelectorAll('dt')].map((name) => [
  name.textContent, [name.nextElementSibling, name.nextElementSibling.nextElementSibling],
]));
let chinese = (localStorage.getItem('language') ?? navigator.language).startsWith('zh');
export const say = (name) => WORDS[name][chinese ? 1 : 0].textContent;

/** Show everything in the language that was chosen; `other`: change it. */
export function speak(other = false) {
  if (other) chinese = !chinese;
  localStorage.setItem('language', chinese ? 'zh' : 'en');
  document.documentElement.lang = chinese ? 'zh' : 'en';
  const kinds = { zh: 'textContent', zhLabel: 'ariaLabel', zhPlaceholder: 'placeholder' };
  for (const [kind, field] of Object.entries(kinds)) {
    const name = kind.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
    for (const item of document.querySelectorAll(`[data-${name}]`)) {
      item.dataset[`en${kind}`] ??= item[field];
      item[field] = chinese ? item.dataset[kind] : item.dataset[`en${kind}`];
      if (field === 'ariaLabel' && item.title) item.title = item[field];
    }
  }
  const name = chinese ? 'English' : '中文';
  Object.assign($('language'), { textContent: name, lang: chinese ? 'en' : 'zh', ariaLabel: name });
}

/* -- the API ---------------------------------------------------------------------------------- */

export const key = () => $('key').value.trim();
const headers = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

export async function call(path, more = {}) {
  const answer = await fetch(path, { ...more, headers: { ...headers(), ...more.headers } });
  if (answer.status === 401) askForKey();
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message ?? `${answer.status} ${answer.statusText}`);
  }
  return answer;
}

function askForKey() {
  $('key-wanted').hidden = false;
  if (!$('options').open) $('options').showModal();
  $('key').focus();
}

/** Ask, and give every piece to `heard`, and how far pictures are; the result is {reason, timings}. */
export async function answered(messages, signal, heard, more = {}) {
  const body = { messages, stream: true, return_progress: true, ...more };
  if ($('temperature').value) body.temperature = Number($('temperature').value);
  if ($('max-tokens').value) body.max_tokens = Number($('max-tokens').value);
  if ($('system').value.trim()) {
    body.messages = [{ role: 'system', content: $('system').value.trim() }, ...messages];
  }
  const answer = await call('/v1/chat/completions', {
    method: 'POST', signal, body: JSON.stringify(body),
    headers: { 'Content-Type': 'application/json' },
  });
  const found = {};
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ''; ;) {
    const { done, value } = await reader.read();
    if (done) return found;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data: {')) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      heard(choice.delta.content ?? '', choice.delta.reasoning_content ?? '', event.image_progress);
      found.reason = choice.finish_reason ?? found.reason;
      found.timings = event.timings ?? found.timings;
    }
  }
}

/* -- pictures --------------------------------------------------------------------------------- */

/** Give a file as a data URL. */
export const read = (blob) => new Promise((done) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.readAsDataURL(blob);
});

/** Give what an image or a video shows as a data URL. */
export function drawn(source, width, height, scale) {
  const canvas = Object.assign(make('canvas'), { width: width * scale, height: height * scale });
  canvas.getContext('2d').drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/jpeg', 0.92);
}
