// The conversation: what is asked, with which pictures, and how the answer is displayed.
// No library and no build; knows nothing of the model but what the API says.

import { $, answered, call, drawn, key, make, read, say, speak } from '/common.js';
import { closeCamera, labelStanding, live, openCamera, showStanding, watchRobot } from '/eye.js';

function translate(other = false) {
  speak(other);
  showState($('state').dataset.state);
  labelButtons();
  labelStanding();
}

function showState(state) {
  $('state').dataset.state = state;
  $('state').firstElementChild.textContent = say(state);
}

function labelButtons() {
  $('send').title = $('send').ariaLabel = say(running ? 'stop' : 'send');
  $('send').toggleAttribute('data-busy', Boolean(running));
}

/* -- conversation ----------------------------------------------------------------------------- */

let history = []; // messages as the API has them
let running = null; // AbortController of the answer that is being made
let attached = []; // data URLs that go with the next question

function addArticle(kind) {
  $('welcome').hidden = true;
  const article = make('article', kind);
  $('talk').append(article);
  return article;
}

function complain(text) {
  addArticle('model').append(Object.assign(make('p', 'error', text), { role: 'alert' }));
  scrollDown();
}

function scrollDown() {
  const talk = $('talk');
  talk.scrollTop = talk.scrollHeight;
}

async function send() {
  const text = $('question').value.trim();
  const pictures = [...attached];
  if (running || (!text && !attached.length)) return;
  if (live && $('attach-live').checked) pictures.push(await live.snapshot());
  if (history.at(-1)?.role === 'user') history.pop(); // it met an error
  const image = (url) => ({ type: 'image_url', image_url: { url } });
  const parts = [...pictures.filter(Boolean).map(image), ...(text ? [{ type: 'text', text }] : [])];
  history.push({ role: 'user', content: parts });
  const article = addArticle('user');
  if (pictures.length) {
    const sent = make('div', 'sent');
    sent.append(...pictures.map((src) => Object.assign(new Image(), { src, alt: say('picture') })));
    article.append(sent);
  }
  if (text) article.append(make('p', 'text', text));
  $('question').value = '';
  attached = [];
  showPictures();
  fitQuestion();
  await answerLast();
}

async function answerLast() {
  document.querySelectorAll('.again').forEach((button) => button.remove());
  const article = addArticle('model busy');
  const text = make('p', 'text');
  article.append(text);
  article.ariaBusy = 'true';
  let whole = '', thought = '', details = null;
  const turns = history; // another one where the conversation is begun anew meanwhile
  running = new AbortController();
  labelButtons();
  showState('busy');
  scrollDown();
  let outcome = {};
  try {
    outcome = await answered(turns, running.signal, (piece, reasoning, progress) => {
      if (progress) article.dataset.encoding = encodingWords(progress);
      if (piece || reasoning) delete article.dataset.encoding;
      const talk = $('talk');
      const follow = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
      whole += piece;
      thought += reasoning;
      if (reasoning && !details) {
        details = make('details');
        details.append(make('summary', '', say('thought')), make('div'));
        article.prepend(details);
      }
      if (reasoning) details.lastChild.textContent = thought;
      if (piece) text.textContent = whole;
      if (follow) scrollDown();
    });
  } catch (error) {
    outcome.reason = 'stopped';
    if (error.name !== 'AbortError') {
      article.append(Object.assign(make('p', 'error', error.message), { role: 'alert' }));
      outcome.reason = 'error';
    }
  }
  running = null;
  delete article.dataset.encoding;
  article.classList.remove('busy');
  article.ariaBusy = 'false';
  if (outcome.reason === 'error' && !whole) text.remove();
  else turns.push({ role: 'assistant', content: whole });
  article.append(timesOf(outcome, article, whole));
  $('spoken').textContent = whole;
  showState('ready');
  labelButtons();
  scrollDown();
}

function encodingWords({ encoded, total, seconds_left: left }) {
  const tile = `${say('tile')} ${encoded + 1}/${total}`;
  return left >= 0.5 ? `${tile} · ${say('left')} ${Math.round(left)} s` : tile;
}

function timesOf({ reason, timings }, article, whole) {
  const line = make('div', 'times');
  const milliseconds = (t) => (t < 1000 ? `${Math.round(t)} ms` : `${(t / 1000).toFixed(1)} s`);
  const add = (text) => line.append(make('span', '', text));
  if (reason === 'stopped') add(say('stopped'));
  if (reason === 'length') add(say('cut'));
  if (timings) {
    if (timings.encode_ms) add(`${say('encode')} ${milliseconds(timings.preprocess_ms + timings.encode_ms)}`);
    else if (JSON.stringify(history.at(-2)?.content ?? '').includes('image_url')) add(say('known'));
    add(`${say('first')} ${milliseconds(timings.ttft_ms)}`);
    if (timings.predicted_per_second) add(`${Math.round(timings.predicted_per_second)} ${say('speed')}`);
    add(`${timings.cache_n}/${timings.cache_n + timings.prompt_n} ${say('reused')}`);
  }
  const again = make('button', 'again', say('again'));
  again.onclick = () => {
    if (history.at(-1)?.role === 'assistant') history.pop();
    article.remove();
    answerLast();
  };
  line.append(again);
  if (whole && navigator.clipboard) {
    const copy = make('button', '', say('copy'));
    copy.onclick = () => navigator.clipboard.writeText(whole);
    line.append(copy);
  }
  line.querySelectorAll('button').forEach((button) => { button.type = 'button'; });
  return line;
}

/* -- pictures --------------------------------------------------------------------------------- */

const LARGE = 1.5e6; // bytes; larger files are made smaller, so that a history stays below the limit
const LONGEST = 2048; // pixels; more than the tiles of any model show

async function attach(files) {
  for (const file of [...files].filter((item) => item.type.startsWith('image/'))) {
    try {
      const bitmap = await createImageBitmap(file);
      const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
      const keep = scale === 1 && file.size < LARGE && /png|jpeg|webp|gif|bmp/.test(file.type);
      attached.push(keep ? await read(file) : drawn(bitmap, bitmap.width, bitmap.height, scale));
    } catch {
      complain(say('unreadable'));
    }
  }
  showPictures();
  $('question').focus();
}

function showPictures() {
  $('pictures').replaceChildren(...attached.map((src, index) => {
    const item = make('li');
    const button = Object.assign(make('button', '', '×'), { type: 'button', ariaLabel: say('remove') });
    button.onclick = () => { attached.splice(index, 1); showPictures(); };
    item.append(Object.assign(new Image(), { src, alt: say('picture') }), button);
    return item;
  }));
}

/* -- beginning -------------------------------------------------------------------------------- */

function fitQuestion() {
  $('question').style.height = 'auto';
  $('question').style.height = `${$('question').scrollHeight}px`;
}

async function begin() {
  try {
    const health = await fetch('/health');
    if (!running) showState(health.ok ? 'ready' : 'loading');
    if (health.ok && $('model').hidden) {
      $('model').textContent = (await (await call('/v1/models')).json()).data[0].id;
      $('model').hidden = false;
      if ((await (await call('/live')).json()).picture && !live) watchRobot();
    }
    if (live && !live.camera) await showStanding();
  } catch {
    if (!running) showState('down');
  }
  setTimeout(begin, $('model').hidden ? 500 : 2000);
}

const on = (id, event, work) => $(id).addEventListener(event, work);
on('ask', 'submit', (event) => { event.preventDefault(); if (running) running.abort(); else send(); });
on('question', 'input', fitQuestion);
on('question', 'keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) send();
});
on('ideas', 'click', ({ target }) => {
  if (target.matches('button')) $('question').value = target.textContent;
  $('question').focus();
});
on('attach', 'click', () => $('file').click());
on('file', 'change', async () => { await attach($('file').files); $('file').value = ''; });
on('camera', 'click', () => openCamera().catch((error) => complain(say('refused') + error.message)));
on('close-camera', 'click', () => { closeCamera(); $('model').hidden = true; }); // asks again for the robot's
on('settings', 'click', () => $('options').showModal());
on('options', 'close', () => { sessionStorage.setItem('key', key()); $('key-wanted').hidden = true; });
on('fresh', 'click', () => {
  running?.abort();
  history = [];
  document.querySelectorAll('article').forEach((article) => article.remove());
  $('welcome').hidden = false;
  $('question').focus();
});
on('language', 'click', () => translate(true));
document.addEventListener('keydown', ({ key: name }) => { if (name === 'Escape') running?.abort(); });
document.addEventListener('paste', ({ clipboardData }) => attach(clipboardData.files));
document.addEventListener('dragover', (event) => { event.preventDefault(); $('drop').hidden = false; });
document.addEventListener('dragleave', ({ relatedTarget }) => { $('drop').hidden = Boolean(relatedTarget); });
document.addEventListener('drop', (event) => {
  event.preventDefault();
  $('drop').hidden = true;
  attach(event.dataTransfer.files);
});

$('key').value = sessionStorage.getItem('key') ?? '';
translate();
begin();
