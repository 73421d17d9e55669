// The panel beside the chat: what a user of holdfast can know of a connection, and the
// buttons that break it. See chat.js for the chat.

export const $ = id => document.getElementById(id);

/** An element with classes, text and children. Text is never parsed as HTML. */
export function el(tag, classes, ...children) {
  const e = document.createElement(tag);
  e.className = classes;
  e.append(...children);
  return e;
}

/** Checks the numbers that senders put into their messages: after 7 comes 8. */
export class Numbers {
  #senders = new Map();
  repeated = 0;

  /** False: this message was here before. The first that is seen of a sender is believed. Those in not were not stored
   * when the newest message was written, and nobody may look for them yet. */
  take(sender, n, not) {
    let s = this.#senders.get(sender);
    if (!s) this.#senders.set(sender, s = { next: n, holes: new Set(), not: new Set(), skip: false });
    if (s.skip && n > s.next) s.next = n;
    s.skip = false;
    for (; s.next < n && s.holes.size < 10000; s.next++) s.holes.add(s.next);
    if (n >= s.next) { s.next = n + 1; s.not = new Set(Array.isArray(not) ? not : []); }
    else if (!s.holes.delete(n)) { this.repeated++; return false; }
    return true;
  }
  get missing() {
    let n = 0;
    for (const s of this.#senders.values()) for (const k of s.holes) if (!s.not.has(k)) n++;
    return n;
  }
  /** Messages are missing and we were told; or, if all is new, begin again. */
  reset(all) {
    if (all) this.#senders.clear();
    else for (const s of this.#senders.values()) s.skip = true;
  }
}

export class Panel {
  count = { received: 0, replayed: 0, resets: 0, reconnects: 0 };
  #conn; #sub; #topic; #name;
  #node = ''; // that serves us, or did last
  #opens = 0;
  #opened = Infinity; // when the connection was opened, by the clock of the day
  #least = Infinity; // the difference between our clock and the servers', and the shortest way
  #due = 0; // when the next dial is
  #story = null; // the line that is being written in the list of what happened
  #page = Math.random(); // tells our pings from those of others
  #trips = []; // round trips in milliseconds, null for those that never came back
  #asked = 0; // when, 0 if that has been answered
  #shown = ''; // the nodes as they are shown

  constructor(conn, sub, topic, name) {
    this.#conn = conn; this.#sub = sub; this.#topic = topic; this.#name = name;
    conn.addEventListener('state', e => this.#state(e.detail));
    sub.addEventListener('ephemeral', e => this.#pong(e.detail.data));
    setInterval(() => this.#ping(), 1000);
    setInterval(() => this.#look(), 1000);
    document.addEventListener('visibilitychange', () => this.#look());
    setInterval(() => this.#countdown(), 100);
    this.#look();
    this.#buttons();
    // On a wide screen there is room for all of it; on a phone it is folded up.
    const wide = matchMedia('(min-width: 56rem)'), fold = () => { $('panel').open = wide.matches; };
    wide.addEventListener('change', fold);
    fold();
  }

  // ---- the state of the connection

  #state({ state, in: wait, why }) {
    $('state').textContent = state;
    $('state').dataset.state = state;
    this.#due = performance.now() + wait;
    this.#countdown();
    if (state === 'open') this.#open();
    else if (this.#opened < Infinity) this.#lost(why);
    if (state === 'denied') this.#begin(`refused: ${why}`);
  }
  #countdown() {
    const waiting = this.#conn.state === 'waiting', s = Math.max(0, this.#due - performance.now()) / 1000;
    const text = waiting ? `${s.toFixed(1)} s` : '';
    if ($('countdown').textContent !== text) $('countdown').textContent = text;
  }
  #lost(why) {
    this.#opened = Infinity;
    this.#asked = 0;
    const old = this.#story, now = performance.now();
    // What a button did is the reason if it was pushed just now.
    if (!old || old.lost || now - old.at > 15000) this.#begin('connection lost');
    Object.assign(this.#story, { lost: now, why });
    this.#write(this.#story);
  }
  async #open() {
    this.#opened = Date.now();
    const story = this.#story;
    if (++this.#opens > 1) {
      this.count.reconnects++;
      if (story?.lost && !story.open) story.open = performance.now();
    }
    const { hub } = await this.#conn.info();
    if (!hub) return;
    this.#serves(hub);
    if (story?.open && !story.node) { story.node = hub.node; this.#write(story); }
    this.#show();
  }
  #serves(hub) {
    this.#node = hub.node;
    if (this.#story?.tabs && hub.tabs > this.#story.tabs) {
      this.#story.tabs = hub.tabs;
      this.#write(this.#story);
    }
    $('node').textContent = hub.node || '–';
    $('tabs').textContent = hub.tabs;
  }

  // ---- what the chat tells

  /** Reports whether a message was stored before we were connected again: whether it would have come by now. */
  received(e) {
    this.count.received++;
    const behind = Date.now() - e.at;
    const late = this.#opens > 1 && e.at + (this.#least < Infinity ? this.#least : 0) < this.#opened;
    if (this.#opens > 0 && !late) this.#least = Math.min(this.#least, behind);
    if (late) {
      this.count.replayed++;
      if (this.#story?.open) { this.#story.caught++; this.#write(this.#story); }
    }
    this.#show();
    return late;
  }
  reset(r) {
    this.count.resets++;
    if (!this.#story?.open) this.#begin('told of a gap');
    this.#story.reset = `${r.missed || 'unknown'} missing (${r.reason})`;
    this.#write(this.#story);
    this.#show();
  }
  checked(numbers) {
    for (const what of ['missing', 'repeated']) {
      if ($(what).textContent !== String(numbers[what])) $(what).textContent = numbers[what];
      $(what).classList.toggle('bad', numbers[what] > 0);
    }
  }
  #show() {
    for (const [what, n] of Object.entries(this.count)) $(what).textContent = n;
    $('position').textContent = this.#sub.position ?? '–';
  }

  // ---- what happened: one line for each fault, written as it goes on

  #begin(what) {
    const li = el('li', '', el('time', '', new Date().toLocaleTimeString([], { hour12: false })), ' ', el('span', '', what));
    $('events').querySelector('.none')?.remove();
    $('events').prepend(li);
    if ($('events').children.length > 50) $('events').lastChild.remove();
    const old = this.#story && !this.#story.open ? this.#story : null; // what was lost is not back yet
    this.#story = { what, li, at: performance.now(), lost: old?.lost ?? 0, why: old?.why ?? '', open: 0, node: '', caught: 0, reset: '', tabs: 0 };
  }
  #write(s) {
    const text = [s.what];
    if (s.tabs > 1) text.push(`${s.tabs} tabs on one WebSocket`);
    if (s.lost) text.push(s.why.startsWith('1006') ? 'lost without a word' : s.why.startsWith('1012') ? 'lost with a goodbye' : `lost (${s.why})`);
    const after = [s.open && s.node && `open on ${s.node} after ${((s.open - s.lost) / 1000).toFixed(1)} s`, s.reset, s.caught && `${s.caught} caught up`];
    if (after.some(Boolean)) text.push(after.filter(Boolean).join(', '));
    s.li.lastChild.textContent = text.join(' → ');
  }

  // ---- buttons

  #buttons() {
    $('break').addEventListener('click', e => {
      e.preventDefault();
      $('panel').open = true;
      $('lose').focus();
    });
    const { origin } = location, name = encodeURIComponent(this.#name);
    const mine = what => [`${what}?node=${encodeURIComponent(this.#node)}`, `${what} ${this.#node}`];
    $('lose').addEventListener('click', () => this.#order(`lose?user=${name}`, 'lose my network'));
    $('kill').addEventListener('click', () => this.#order(...mine('kill')));
    $('drain').addEventListener('click', () => this.#order(...mine('drain')));
    $('restart').addEventListener('click', () => this.#order('restart', 'restart everything'));
    $('more').addEventListener('click', () => {
      let opened = 0;
      for (let i = 0; i < 9; i++) if (window.open(`${origin}/?name=${name}`, '_blank')) opened++;
      this.#begin(opened < 9 ? `opened ${opened} of nine tabs: allow pop-ups for this page, and press again` : 'open nine more tabs');
      this.#story.tabs = 1;
    });
  }
  async #order(path, what) {
    this.#begin(what);
    const story = this.#story;
    try {
      const r = await fetch(`/control/${path}`, { method: 'POST' });
      if (!r.ok) throw new Error((await r.text()).trim());
    } catch (e) {
      story.what += ` → refused: ${e.message}`;
      this.#write(story);
    }
    this.#look();
  }

  // ---- round trips

  #ping() {
    if (document.hidden || this.#conn.state !== 'open') return;
    if (this.#asked) this.#trip(null);
    this.#asked = performance.now();
    this.#conn.ephemeral(this.#topic, { ping: this.#asked, of: this.#page });
  }
  #pong(data) {
    if (!this.#asked || data?.ping !== this.#asked || data.of !== this.#page) return;
    this.#trip(performance.now() - this.#asked);
    this.#asked = 0;
  }
  #trip(ms) {
    const all = this.#trips;
    all.push(ms);
    if (all.length > 61) all.shift();
    const top = Math.max(8, ...all);
    const x = i => 120 - (all.length - 1 - i) * 2, y = t => (22 - 20 * t / top).toFixed(1);
    $('spark').children[0].setAttribute('d', all.map((t, i) => t === null ? '' : `${i && all[i - 1] !== null ? 'L' : 'M'}${x(i)} ${y(t)}`).join(''));
    $('spark').children[1].setAttribute('d', all.map((t, i) => t === null ? `M${x(i)} 2V22` : '').join(''));
    $('rtt').textContent = ms === null ? '– ms' : ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
  }

  // ---- nodes

  async #look() {
    if (document.hidden) return;
    const { hub } = await this.#conn.info();
    if (hub && this.#conn.state === 'open') this.#serves(hub);
    let s = null;
    try { s = await (await fetch('/status')).json(); } catch { /* the front is away */ }
    const shown = JSON.stringify([s, this.#node]);
    if (shown === this.#shown) return; // a screen reader, and a selection, are not disturbed
    this.#shown = shown;
    if (!s) return $('nodes').replaceChildren(el('li', '', 'The server does not answer.'));
    $('zombies').textContent = s.zombies;
    $('backplane').textContent = `on one ${s.backplane === 'redis' ? 'Redis' : 'backplane in memory'}`;
    $('nodes').replaceChildren(...s.nodes.map(n => {
      const li = el('li', '', el('b', '', n.name), ' ', el('span', 'is', n.state), ' ', el('span', 'n', `${n.connections} connection${n.connections === 1 ? '' : 's'}`));
      li.dataset.state = n.state;
      if (n.name === this.#node) li.append(' ', el('span', 'you', 'you'));
      return li;
    }), ...(s.held ?? []).map(user => el('li', 'held', `${user} has no network`)));
  }
}
