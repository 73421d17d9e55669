// The chat. What it takes from holdfast is connect, subscribe, publish and ephemeral; all
// else here is what any chat has: names, a list of messages, who is typing.
//
// Messages are {from, text, s, n, not}: s is the page that has sent it, n counts what it
// has sent, and not are the numbers of what has not been stored so far, as far as it knows.
// That is not needed to chat. It is there so that the page can prove that nothing is missing and nothing
// comes twice, see Numbers in panel.js.

import { $, el, Numbers, Panel } from '/panel.js';

const KEPT = 2000; // messages in the list
const names = ['anna', 'bert', 'carla', 'dimitri', 'eve', 'femi'];

// ---- the door

/** A name as the server takes it: valid in node.go. */
const proper = name => [...name.replace(/\p{Z}/gu, ' ').replace(/\p{C}/gu, '').trim()].slice(0, 32).join('').trim();
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
  $('text').focus();

  const config = await (await fetch('/config')).json();
  const { connect } = await import(config.module);
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
  const numbers = new Numbers(), page = Math.random().toString(36).slice(2, 8);
  const own = new Map(); // by n: what this page has sent and has not seen in the room yet
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
    try {
      // The id makes a retry harmless, also of one of which nobody knows whether it was stored.
      await conn.publish(topic, m, { id: `${page}-${m.n}` });
      mark(li, 'delivered', '✓');
    } catch (e) {
      if (!own.has(m.n)) return; // it is in the room, only the answer is not here
      mark(li, 'failed', `not sent (${e.code ?? e}) `);
      const retry = el('button', 'retry', 'Retry');
      retry.type = 'button';
      retry.addEventListener('click', () => { publish(m, li); field.focus(); });
      li.querySelector('.status').append(retry);
    }
  }
  function say(text, robot) {
    const m = { from: name, text, s: page, n: ++sent };
    if (robot) m.robot = true;
    const open = [...own].filter(([, li]) => li.dataset.state !== 'delivered').map(([n]) => n);
    if (open.length) m.not = open.slice(-100); // or others would look for them
    const li = message(m, Date.now(), true);
    own.set(m.n, li);
    pending.append(li);
    if (atEnd || !robot) toEnd();
    publish(m, li);
  }
  $('say').addEventListener('submit', e => {
    e.preventDefault();
    const text = field.value.trim();
    if (!text) return;
    field.value = '';
    said = 0;
    say(text, false);
  });
  setInterval(() => { if ($('robot').checked && own.size < 100) say(String(++counted), true); }, 300);

  // ---- what comes

  sub.addEventListener('message', ({ detail: e }) => {
    const m = e.data;
    if (typeof m?.from !== 'string' || !m.from || typeof m.text !== 'string') return;
    const late = panel.received(e);
    const numbered = typeof m.s === 'string' && Number.isSafeInteger(m.n);
    const again = numbered && !numbers.take(m.s, m.n, m.not);
    panel.checked(numbers);
    if (again) return;
    for (const [n, li] of own) { // stored before this one, but in a gap that we were told of
      if (m.s === page && n < m.n && li.dataset.gap && li.dataset.state === 'delivered') { own.delete(n); append(li); }
    }
    let li = m.s === page ? own.get(m.n) : null;
    if (li) {
      own.delete(m.n);
      mark(li, 'delivered', '✓');
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
    $('typing').textContent = all.length > 3 ? 'Several people are typing…'
      : all.length ? `${new Intl.ListFormat('en').format(all)} ${all.length > 1 ? 'are' : 'is'} typing…` : '';
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

/** A message, as a bubble; a robot's as a small number among others. */
function message(m, at, mine) {
  const from = m.from.slice(0, 32), li = el('li', 'message');
  Object.assign(li.dataset, { from, s: m.s ?? '', n: m.n ?? '', at });
  if (mine) li.classList.add('mine');
  if (m.robot) {
    li.classList.add('robot');
    li.ariaHidden = 'true'; // three a second are not to be read out
    li.title = `${from}'s robot`;
    li.append(el('span', 'text', m.text), el('span', 'status'));
    hue(li, from);
    return li;
  }
  const avatar = el('span', 'avatar');
  avatar.ariaHidden = 'true';
  dress(avatar, from);
  const by = el('p', 'by', el('b', 'name', from), ' ', document.createElement('time'));
  li.append(avatar, el('div', 'bubble', by, el('p', 'text', m.text), el('span', 'status')));
  hue(li, from);
  when(li, at);
  return li;
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
