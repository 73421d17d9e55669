// The chat. What it takes from holdfast is connect, subscribe, publish and ephemeral; all
// else here is what any chat has: names, a list of messages, who is typing.
//
// Messages are {from, text}. A chat needs no more; this one has to prove that nothing is
// missing and nothing comes twice, and for that they have {s, n, not, again}, too: s is the
// page that has sent it, n counts what it has sent, not are the numbers of what was not
// stored when this was written, as far as that page knew, and again says that somebody has
// pressed Retry. See Numbers in panel.js. Messages with robot are shown as small numbers.

import { $, el, Numbers, Panel } from '/panel.js';

const KEPT = 2000; // messages in the list
const names = ['anna', 'bert', 'carla', 'dimitri', 'eve', 'femi'];

// ---- the door

/** A name as the server takes it: valid in node.go. */
const proper = name => [...name.replace(/\p{Z}/gu, ' ').replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\ufffd]/gu, '').trim()].slice(0, 32).join('').trim();
/** Whether there is anything to be seen in a text. */
const visible = text => /[^\p{Z}\p{Cc}\p{Cf}]/u.test(text);
/** Storage may be forbidden, and then nothing is remembered. */
function remembered(storage) { try { return window[storage].getItem('name') ?? ''; } catch { return ''; } }
function remember(name, ...storages) {
  for (const s of storages) try { if (name) window[s].setItem('name', name); else window[s].removeItem('name'); } catch { /* forbidden */ }
}

const given = proper(new URL(location.href).searchParams.get('name') ?? '');
if (given) remember(given, 'sessionStorage');
const known = given || remembered('sessionStorage');
if (known) {
  enter(known);
} else {
  $('name').value = remembered('localStorage');
  $('name').focus();
}
$('join').addEventListener('submit', e => {
  e.preventDefault();
  const name = proper($('name').value);
  if (!name) return $('name').select();
  remember(name, 'sessionStorage', 'localStorage');
  enter(name);
});
$('leave').addEventListener('click', () => remember('', 'sessionStorage'));

// ---- the room

async function enter(name) {
  const other = names[(names.indexOf(name) + 1) % names.length];
  document.title = `${name} · a chat that holds fast`;
  $('door').hidden = true;
  $('room').hidden = $('me').hidden = $('tour').hidden = false;
  $('my-name').textContent = name;
  dress($('my-avatar'), name);
  $('second').href = `/?name=${other}`;
  $('second').querySelector('.as').textContent = ` as ${other}`;
  if (window === top) $('text').focus();
  else document.body.classList.add('framed'); // one of those of more.html

  let config, connect;
  try {
    config = await (await fetch('/config')).json();
    ({ connect } = await import(config.module));
  } catch (e) {
    return $('log').append(el('li', 'reset', `The server does not answer; reload the page when it does (${e.message ?? e})`));
  }
  const conn = connect(`/ws?user=${encodeURIComponent(name)}`, {
    key: name, // all tabs of this user have one WebSocket
    token: name, // a demonstration's login: whoever says a name has it
    backoff: { base: 250, cap: 3000, first: 500, stable: 2000 }, // for the impatient; the defaults are for servers with many clients
  });
  const sub = conn.subscribe(config.room, { last: config.history });
  const panel = new Panel(conn, sub, config.room, name);
  room(conn, sub, panel, config.room, name);
}

function room(conn, sub, panel, topic, name) {
  const log = $('log'), pending = $('pending'), scroller = $('scroller'), field = $('text');
  const page = Math.random().toString(36).slice(2, 8), numbers = new Numbers(page);
  const own = new Map(); // by n: what this page has sent and has not seen in the room yet
  const open = new Set(); // the n of what is not stored, as far as we know
  let sent = 0, counted = 0;

  // ---- to the end, unless somebody reads further up

  let atEnd = true, due = false;
  const toEnd = () => { scroller.scrollTop = scroller.scrollHeight; atEnd = true; $('newer').hidden = true; };
  scroller.addEventListener('scroll', () => {
    atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
    if (atEnd) $('newer').hidden = true;
  });
  new ResizeObserver(() => { if (atEnd) toEnd(); }).observe(scroller); // a phone's keyboard
  $('newer').addEventListener('click', toEnd);

  function append(li) {
    log.append(li);
    while (log.children.length > KEPT) log.firstChild.remove();
    if (atEnd && !due) { due = true; queueMicrotask(() => { due = false; toEnd(); }); } // once for all that come at once
    if (!atEnd && li.matches('.message')) $('newer').hidden = false;
  }

  // ---- what is sent

  async function publish(m, li) {
    mark(li, 'pending', 'on its way');
    pending.append(li);
    try {
      // The id makes a retry harmless, also of one of which nobody knows whether it was stored.
      await conn.publish(topic, m, { id: `${page}-${m.n}` });
      open.delete(m.n);
      mark(li, 'delivered', '✓');
    } catch (e) {
      if (!own.has(m.n)) return; // it is in the room, only the answer is not here
      if (m.robot) { own.delete(m.n); return li.remove(); } // nobody would press Retry for each
      mark(li, 'failed', `not sent (${e.code ?? e}) `);
      const retry = el('button', 'retry', 'Retry');
      retry.type = 'button';
      retry.addEventListener('click', () => { li.classList.remove('void'); publish({ ...m, again: true }, li); field.focus(); });
      li.querySelector('.status').append(retry);
      // It goes where it was said, so that the chat goes on below it.
      let last = log.lastElementChild;
      while (last && !(last.dataset.at <= +li.dataset.at)) last = last.previousElementSibling;
      if (last) last.after(li); else log.prepend(li);
    }
  }
  function say(text, robot) {
    const m = { from: name, text, s: page, n: ++sent };
    if (robot) m.robot = true;
    if (open.size) m.not = ranges(open); // or others would look for them
    const li = message(m, Date.now(), true);
    own.set(m.n, li);
    open.add(m.n);
    publish(m, li);
    if (atEnd || !robot) toEnd();
  }
  $('say').addEventListener('submit', e => {
    e.preventDefault();
    const text = field.value.trim();
    if (!visible(text)) return;
    field.value = '';
    said = 0;
    say(text, false);
  });
  setInterval(() => {
    if ($('robot').checked && pending.querySelectorAll('.robot[data-state=pending]').length < 100) say(String(++counted), true);
  }, 300);

  // ---- what comes

  sub.addEventListener('message', ({ detail: e }) => {
    const m = e.data;
    if (typeof m?.from !== 'string' || !m.from || typeof m.text !== 'string') return;
    const mine = m.s === page, numbered = typeof m.s === 'string' && Number.isSafeInteger(m.n);
    const late = panel.received(e, mine);
    const repeated = numbered && !numbers.take(m.s, m.n, m.not, m.again);
    panel.checked(numbers);
    if (repeated && !(mine && own.has(m.n))) return; // what waits to be seen here is shown, whatever the numbers say
    if (mine) open.delete(m.n);
    for (const [n, li] of own) { // stored before this one, but in a gap that we were told of
      if (mine && n < m.n && li.dataset.gap && li.dataset.state === 'delivered') { own.delete(n); append(li); }
    }
    let li = mine ? own.get(m.n) : null;
    if (li) {
      own.delete(m.n);
      mark(li, 'delivered', '✓');
      li.classList.remove('void');
      when(li, e.at);
    } else li = message(m, e.at, m.from === name);
    if (late) { divide(); li.classList.add('late'); }
    const last = log.lastElementChild;
    li.classList.toggle('same', !m.robot && last?.dataset.from === m.from && !last.matches('.robot') && e.at - last.dataset.at < 300000);
    li.dataset.at = e.at;
    append(li);
    if (!m.robot) quiet(m.from);
  });

  // A line above what was caught up after one reconnect. It counts, as more comes.
  let line = null;
  function divide() {
    if (line?.reconnect !== panel.count.reconnects) {
      line = { reconnect: panel.count.reconnects, n: 0, li: el('li', 'divider', '') };
      append(line.li);
    }
    line.li.textContent = `${++line.n} caught up`;
  }

  // A gap: the only other thing that a subscriber may be told.
  sub.addEventListener('reset', ({ detail: r }) => {
    const gap = ['trimmed', 'lagging', 'floor'].includes(r.reason);
    numbers.reset(!gap);
    panel.reset(r);
    for (const li of own.values()) li.dataset.gap = 'yes';
    if (!gap) for (const li of log.children) li.classList.add('void');
    append(el('li', 'reset', gap
      ? `${r.missed === 1 ? 'One message is' : `${r.missed || 'Some'} messages are`} missing here (${r.reason})`
      : `The server has another history than before (${r.reason}): what follows is all that it has`));
  });
  conn.addEventListener('error', ({ detail }) => append(el('li', 'reset', `The room is closed to us: ${detail.error}`)));

  // ---- who is typing: messages that nobody stores, and of which one may get lost

  const typists = new Map(); // timers by name
  let said = 0;
  field.addEventListener('input', () => {
    if (!field.value || Date.now() - said < 2000) return;
    said = Date.now();
    conn.ephemeral(topic, { typing: true, from: name });
  });
  function quiet(who) {
    clearTimeout(typists.get(who));
    if (typists.delete(who)) typing();
  }
  function typing() {
    const all = [...typists.keys()];
    if (all.length > 3) return $('typing').replaceChildren('Several people are typing…');
    const who = new Intl.ListFormat('en').formatToParts(all).map(p => p.type === 'element' ? el('bdi', '', p.value) : p.value);
    $('typing').replaceChildren(...who, all.length > 1 ? ' are typing…' : all.length ? ' is typing…' : '');
  }
  sub.addEventListener('ephemeral', ({ detail: { data } }) => {
    if (!data?.typing || typeof data.from !== 'string' || data.from === name) return;
    const who = data.from.slice(0, 32);
    clearTimeout(typists.get(who));
    typists.set(who, setTimeout(() => quiet(who), 3500));
    typing();
  });
}

// ---- elements of the list

/** Numbers as a list of numbers and of ranges [from, to]: what will never be stored stays in it. */
function ranges(numbers) {
  const list = [];
  for (const n of [...numbers].sort((a, b) => a - b)) {
    const last = list.at(-1), to = Array.isArray(last) ? last[1] : last;
    if (to === n - 1) list[list.length - 1] = [Array.isArray(last) ? last[0] : last, n];
    else list.push(n);
  }
  return list.slice(-100);
}

/** A message, as a bubble; a robot's as a small number among others. */
function message(m, at, mine) {
  const from = m.from.slice(0, 32), li = el('li', 'message');
  Object.assign(li.dataset, { from, s: m.s ?? '', n: m.n ?? '', at });
  if (mine) li.classList.add('mine');
  if (m.robot) {
    li.classList.add('robot');
    li.ariaHidden = 'true'; // three a second are not to be read out
    li.title = `${from}'s robot`;
    li.append(text('span', m.text), el('span', 'status'));
    hue(li, from);
    return li;
  }
  const avatar = el('span', 'avatar');
  avatar.ariaHidden = 'true';
  dress(avatar, from);
  const by = el('p', 'by', el('b', 'name', el('bdi', '', from)), ' ', document.createElement('time'));
  li.append(avatar, el('div', 'bubble', by, text('p', m.text), el('span', 'status')));
  hue(li, from);
  when(li, at);
  return li;
}
/** What somebody has written, in the direction of their script. */
function text(tag, content) {
  const e = el(tag, 'text', content);
  e.dir = 'auto';
  return e;
}
function when(li, at) {
  const time = li.querySelector('time'), d = new Date(at);
  if (!time) return;
  time.textContent = d.toLocaleTimeString([], { timeStyle: 'short' });
  time.dateTime = d.toISOString();
}
function mark(li, state, text) {
  const status = li.querySelector('.status');
  li.dataset.state = state;
  status.textContent = text;
  status.ariaLabel = status.title = state;
}
function dress(avatar, name) {
  avatar.textContent = [...name][0].toUpperCase();
  hue(avatar, name);
}
/** The same colour for a name everywhere. */
function hue(e, name) {
  let h = 7;
  for (const c of name) h = (h * 31 + c.codePointAt(0)) % 360;
  e.style.setProperty('--hue', h);
}
