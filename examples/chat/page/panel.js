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

  /** own: this page, from whom we see all, beginning with 1. */
  constructor(own) { this.#of(own, 1, false); }

  #of(sender, first, skip) {
    // open: not here, and looked for. told: not here, and no wonder. early: here, from before the first.
    const s = { first, next: first, open: new Set(), told: new Set(), early: new Set(), not: [], skip };
    this.#senders.set(sender, s);
    return s;
  }

  /** False: this message was here before. The first that is seen of a sender is believed. Those in not, numbers and ranges
   * [from, to], were not stored when the newest message was written, and nobody may look for them yet. again: what has
   * a higher number may have come before it. */
  take(sender, n, not, again) {
    const s = this.#senders.get(sender) ?? this.#of(sender, n, true);
    if (n < s.first) {
      if (s.early.has(n)) { this.repeated++; return false; }
      s.early.add(n);
      return true;
    }
    if (n < s.next) {
      if (s.open.delete(n) || s.told.delete(n)) return true;
      this.repeated++;
      return false;
    }
    const holes = s.skip ? s.told : s.open;
    for (; s.next < n && holes.size < 10000; s.next++) holes.add(s.next);
    s.next = n + 1;
    s.not = Array.isArray(not) ? not : [];
    s.skip &&= !!again;
    return true;
  }
  get missing() {
    let n = 0;
    for (const s of this.#senders.values()) for (const k of s.open) if (!listed(s.not, k)) n++;
    return n;
  }
  /** Messages are missing and we were told; or, if all is new, begin again. */
  reset(all) {
    if (all) return this.#senders.clear();
    for (const s of this.#senders.values()) {
      s.skip = true;
      for (const k of s.open) if (listed(s.not, k)) { s.open.delete(k); s.told.add(k); } // it may be among what is missing
    }
  }
}
const listed = (not, n) => not.some(r => Array.isArray(r) ? r[0] <= n && n <= r[1] : r === n);

export class Panel {
  count = { received: 0, replayed: 0, resets: 0, reconnects: 0 };
  #conn; #sub; #topic; #name;
  #node = ''; // that serves us, or did last
  #opens = 0;
  #first = Infinity; // when the connection was opened first, by the clock of the day
  #opened = Infinity; // and when last
  #least = Infinity; // the difference between our clock and the servers', and the shortest way
  #due = 0; // when the next dial is
  #story = null; // the line that is being written in the list of what happened
  #page = Math.random(); // tells our pings from those of others
  #trips = []; // round trips in milliseconds, null for those that never came back
  #asked = 0; // when one was sent, 0 if that has been answered
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
    // Who has no mouse sees no titles.
    for (const e of $('panel').querySelectorAll('[title]')) {
      $('what').append(el('li', '', el('b', '', e.dataset.label ?? e.textContent), ': ', e.title));
    }
    // On a wide screen there is room for all of it; on a phone it is folded up.
    const wide = matchMedia('(min-width: 56rem)'), fold = () => { $('panel').open = wide.matches; };
    wide.addEventListener('change', fold);
    fold();
  }

  // ---- the state of the connection

  #state({ state, in: wait, why }) {
    $('state').textContent = state;
    $('state').dataset.state = state;
    $('on').textContent = state === 'open' || !this.#node ? 'on' : 'was on';
    this.#due = performance.now() + wait;
    this.#countdown();
    if (state === 'open') this.#open();
    else if (this.#opened < Infinity) this.#lost(why);
    if (state === 'denied') this.#begin(`refused: ${why}`);
    if (state === 'waiting' && !this.#opens) this.#unopened(why);
    this.#look();
  }
  /** A browser does not say why a first connection fails. The server does, to who asks otherwise. */
  async #unopened(why) {
    let said = '';
    try {
      const r = await fetch(`/ws?user=${encodeURIComponent(this.#name)}`);
      if (r.status >= 400 && r.status !== 426) said = (await r.text()).trim();
    } catch { said = 'the server does not answer'; }
    const what = `no connection: ${said || why}`;
    if (!this.#opens && this.#story?.what !== what) this.#begin(what);
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
    this.#first = Math.min(this.#first, this.#opened);
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
  received(e, own) {
    this.count.received++;
    const behind = Date.now() - e.at;
    const late = this.#opens > 1 && e.at + (this.#least < Infinity ? this.#least : 0) < this.#opened;
    if (!late && (own || e.at >= this.#first)) this.#least = Math.min(this.#least, behind);
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
    const name = encodeURIComponent(this.#name);
    const mine = what => [`${what}?node=${encodeURIComponent(this.#node)}`, `${what} ${this.#node}`];
    $('lose').addEventListener('click', () => this.#order(`lose?user=${name}`, 'lose my network'));
    $('kill').addEventListener('click', () => this.#order(...mine('kill')));
    $('drain').addEventListener('click', () => this.#order(...mine('drain')));
    $('restart').addEventListener('click', () => this.#order('restart', 'restart everything'));
    // Browsers let a page open one other for a click. So that has all of them, in frames.
    $('more').addEventListener('click', () => {
      const n = 10 - $('tabs').textContent;
      if (n <= 0) return this.#note('there are ten tabs already');
      if (!window.open(`/more.html?name=${name}&n=${n}`)) return this.#note('the browser did not open it: allow pop-ups for this page, and press again');
      this.#begin(`open ${n === 9 ? 'nine' : n} more tabs`);
      this.#story.tabs = 10 - n;
    });
  }
  /** A line that is no story: nothing follows. */
  #note(what) {
    const story = this.#story;
    this.#begin(what);
    this.#story = story;
  }
  async #order(path, what) {
    const before = this.#story;
    this.#begin(what);
    const story = this.#story;
    let no = '';
    try {
      const r = await fetch(`/control/${path}`, { method: 'POST' });
      if (r.status === 200) no = 'it is down already';
      else if (!r.ok) no = `refused: ${(await r.text()).trim().replaceAll(this.#name, '\u2068$&\u2069')}`; // isolated, as in <bdi>
    } catch (e) { no = `refused: ${e.message}`; }
    if (no) {
      story.what += ` → ${no}`;
      // What happens to the connection is the story of something else.
      if (this.#story === story && !story.open && before) {
        if (!before.open && story.lost && !before.lost) Object.assign(before, { lost: story.lost, why: story.why });
        story.lost = 0;
        this.#story = before;
        this.#write(before);
      }
      this.#write(story);
    }
    this.#look();
  }

  // ---- round trips

  #ping() {
    if (document.hidden || this.#conn.state !== 'open') return;
    if (this.#asked) {
      if (performance.now() - this.#asked < 3000) return; // it is slow, or lost
      this.#trip(null);
    }
    this.#asked = performance.now();
    this.#conn.ephemeral(this.#topic, { from: this.#name, ping: this.#asked, of: this.#page });
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
    const node = this.#conn.state === 'open' ? this.#node : '';
    const shown = JSON.stringify([s, node]);
    if (shown === this.#shown) return; // a screen reader, and a selection, are not disturbed
    this.#shown = shown;
    if (!s) return $('nodes').replaceChildren(el('li', '', 'The server does not answer.'));
    $('zombies').textContent = s.zombies;
    $('backplane').textContent = `on one ${s.backplane === 'redis' ? 'Redis' : 'backplane in memory'}`;
    $('nodes').replaceChildren(...s.nodes.map(n => {
      const li = el('li', '', el('b', '', n.name), ' ', el('span', 'is', n.state), ' ', el('span', 'n', `${n.connections} connection${n.connections === 1 ? '' : 's'}`));
      li.dataset.state = n.state;
      if (n.name === node) li.append(' ', el('span', 'you', 'you'));
      return li;
    }), ...(s.held ?? []).map(user => el('li', 'held', el('span', '', el('bdi', '', user), ' has no network'))));
  }
}
