/**
 * One WebSocket for all tabs of a user, to a holdfast gateway (protocol holdfast.v1, client/PROTOCOL.md).
 *
 *   Tab ── port, channel or call ──▶ Hub ── Link ──▶ gateway
 *
 * A Tab is in each page: what an application holds is a Connection to it. There is one Hub for all of them, in a
 * SharedWorker, in the page of an elected leader, or in the page itself: the same class each time. The Hub has one Link,
 * the WebSocket, and for each topic a Fan: what came last, and one cursor for each tab. Nothing is queued for a tab.
 * Positions are with the tabs, and so are publishes until they are answered: any Hub may die at any time.
 *
 * Numbers in comments, as in (trap 7), name what goes wrong in browsers without the lines beside them.
 * This file is also the SharedWorker's script: see its end.
 */

/** Of the messages between Tab and Hub. It is in all names: those who would not understand each other do not meet. */
const PROTO = 1;
const PREFIX = 'hf|';
/** The content hash in our own URL. Another build has another worker, see `update` (trap 14).
 * @param {any} url @param {string} [base] */
const build = (url, base) => new URL(url, base).searchParams.get('v') ?? '';
const BUILD = import.meta.url ? build(import.meta.url) : ''; // a bundle may have none
/** All times, in milliseconds. */
const T = {
  hello: 300, dial: 15000, goodbye: 5000, probe: 1000, lease: 1000, ack: 30, ping: 10000, gone: 150000,
  settle: 1500, age: 60000, ages: 1000, token: 10000, info: 1000, unwanted: 5000, redial: 1000, fast: 1000,
};
/** From the best on. */
const MODES = ['worker', 'leader', 'none'];
const EPHEMERAL = 64; // of them may be on their way to a tab
const RING_SIZE = 8 << 20; // characters in a Fan

const none = /** @type {any} */ (undefined);
/** For durations. It may stand still while the machine sleeps. */
let now = () => performance.now();
/** @returns {string} */
const rid = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), n => n.toString(36)).join(''); // no randomUUID on http://
/** @param {string} s */
const bytes = s => new TextEncoder().encode(s).length;
/** Each field is escaped and ended: no identity is the beginning of another (traps 11, 12).
 * @param {string} url @param {string} key */
const identity = (url, key) => `${PREFIX}${PROTO}|${encodeURIComponent(url)}|${encodeURIComponent(key)}|`;
/** Whether after a reset nothing of before holds, not only that something is missing. @param {string} reason */
const isVoid = reason => !['trimmed', 'lagging', 'floor'].includes(reason);

/** @param {string} field @param {string} what @returns {never} */
const wrong = (field, what) => { throw new HoldfastError('bad_input', `${field} is no ${what}`, { field, outcome: 'not_stored' }); };
/** @param {any} v */
const isPosition = v => typeof v === 'string' && /^[\w-]{0,64}$/.test(v);

/** What publish and subscriptions fail with. */
export class HoldfastError extends Error {
  /** @param {string} code @param {string} [message] @param {{outcome?: string, id?: string, topic?: string, field?: string}} [more] */
  constructor(code, message, more) {
    super(message ? `${code}: ${message}` : code);
    /** One of PROTOCOL.md, section 6, or closed, denied, expired, queue_full, bad_input. */
    this.code = code;
    Object.assign(this, more);
  }
  name = 'HoldfastError';
  /** Of a publish: `not_stored` is certain, `unknown` is not. @type {string | undefined} */ outcome = none;
  /** Of a publish. @type {string | undefined} */ id = none;
  /** @type {string | undefined} */ topic = none;
  /** The member that was wrong. @type {string | undefined} */ field = none;
}

// ---- wire: frames of holdfast.v1

/** The members of each frame that has any, in the order in which they are written. @type {Map<string, string[]>} */
const FRAMES = new Map(('hello v token beats, auth ref token, subscribe ref topic from last floor, unsubscribe ref topic, ' +
  'publish topic id key data text bin, ephemeral topic data text bin, ' +
  'welcome v conn node beat timeout limits, ok ref, subscribed ref topic base head late, ' +
  'unsubscribed ref topic code message, entries topic prev entries to conflated, ' +
  'reset topic base reason missed data text bin, ack id pos outcome, nack id outcome retry code field message, ' +
  'error ref topic retry code field message, goodbye reason window').split(', ').map(f => { const [t, ...members] = f.split(' '); return [t, members]; }));
const NUMBERS = 'v ref last beat timeout conflated missed retry window at'.split(' ');

/** @param {string} field @returns {never} */
const bad = field => { throw new HoldfastError('bad_frame', field || 'not a frame', { field }); };
/** @param {any} v @param {string} k */
const object = (v, k) => typeof v === 'object' && v && !Array.isArray(v) ? v : bad(k);
/** @param {any} v @param {string} k @returns {any[]} */
const array = (v, k) => Array.isArray(v) ? v : bad(k);
/** @param {any} v @param {string} k */
const number = (v, k) => v >= 0 && (Number.isInteger(v) || v === Infinity) ? Math.min(v, 2 ** 53) : bad(k);
/** @param {any} v @param {string} k */
const string = (v, k) => typeof v === 'string' ? v.replace(/\p{Surrogate}/gu, '\ufffd') : bad(k); // no toWellFormed before 2023

/** Reads those members of o that are listed, into f. @param {any} o @param {string[]} members @param {any} f @param {(v: any, k: string) => any} rest of those without a type */
function read(o, members, f, rest = string) {
  for (const k of Object.keys(o)) { // in this order: the first that is wrong is named
    const v = o[k];
    if (!members.includes(k) || v === null && k !== 'data') continue;
    /** @type {any} */
    let x;
    if (NUMBERS.includes(k)) x = number(v, k);
    else if (k === 'beats') x = typeof v === 'boolean' ? v : bad(k);
    else if (k === 'from') x = (typeof v === 'string' ? [v] : array(v, k)).map(p => p === null ? '' : string(p, k)).filter(Boolean);
    else if (k === 'entries' || k === 'late') {
      x = array(v, k).map(e => read(object(e, k), k === 'late' ? ['pos', 'reason', 'missed'] : ['pos', 'at', 'key', 'data', 'text', 'bin'], {}));
      if (k === 'entries') for (const e of x) e.pos || bad('pos');
    } else if (k === 'limits') {
      x = read(object(v, k), ['message', 'topics', 'pending', 'history'], {}, number);
      if (!Object.keys(x).length) x = 0;
    } else if (k === 'data' || k === 'text' || k === 'bin') {
      x = k === 'data' ? v : string(v, k);
      if (k === 'bin') try { btoa(atob(x)) === x || bad(k); } catch { bad(k); } // atob alone takes spaces and odd bits
      if (loaded(f)) bad(k);
      f[k] = x;
      continue;
    } else x = rest(v, k);
    if (x && x.length !== 0) f[k] = x;
  }
  return f;
}

/** Reads a frame, or throws an error with `field`. Absent is what is null, 0 or empty; `from` is an array; unknown
 * types and members are let through and left out. @param {string} text @returns {any} */
function decode(text) {
  let o;
  try { o = JSON.parse(text); } catch { bad(''); }
  object(o, '');
  const t = string(o.t ?? '', 't') || bad('t');
  return read(o, FRAMES.get(t) ?? [], { t });
}

/** @param {any} f */
function encode(f) {
  /** @type {any} */
  const o = { t: f.t };
  for (const k of FRAMES.get(f.t) ?? []) {
    const v = f[k];
    if (['data', 'text', 'bin'].includes(k) ? v !== undefined : v && v.length !== 0) o[k] = k === 'from' && v.length === 1 ? v[0] : v;
  }
  return JSON.stringify(o);
}

/** Whether it is nested deeper than a frame may be: the server would end the connection of all tabs for good.
 * @param {any} v @param {number} n @returns {boolean} */
const deep = (v, n) => typeof v === 'object' && v && (n > 61 || Object.values(v).some(x => deep(x, n + 1)));
/** What publishes data. @param {any} data */
function payload(data) {
  if (data instanceof Uint8Array) {
    return { bin: btoa(Array.from(data, c => String.fromCharCode(c)).join('')) };
  }
  try {
    data = JSON.parse(JSON.stringify(data)); // what a toJSON makes of it counts
    if (!deep(data, 1)) return { data };
  } catch { /* a function, a circle, a BigInt */ }
  return wrong('data', 'JSON value, or nested too deep');
}

/** Whether it has one, and that alone. @param {any} f */
const loaded = f => 'data' in f || 'text' in f || 'bin' in f;
/** @param {any} f */
const load = ({ data, text, bin }) => JSON.stringify({ data, text, bin });
/** And back. @param {any} f */
const value = f => 'bin' in f ? Uint8Array.from(atob(f.bin), c => c.charCodeAt(0)) : 'text' in f ? f.text : f.data;

// ---- backoff: as package backoff of Go

/**
 * @typedef {object} Backoff Whole milliseconds. All waits are random, from 0 to a window.
 * @property {number} [base] the first window, as long as nothing was connected (500)
 * @property {number} [cap] the widest window (30000)
 * @property {number} [first] the first window after a connection was lost, 0 for base (5000); those after it are not narrower
 * @property {number} [stable] how long a connection has to last to begin anew with that (10000)
 */

/** So many goodbyes in a row count as they are: in a rolling restart one may come to several servers that are about to restart. */
const KEPT = 4;

/** When to dial again. */
class Loop {
  failures = 0;
  /** Hints since the last stable connection. */ goodbyes = 0;
  /** @type {number | null} */ since = null;
  ever = false; hinted = 0; least = 0; window = 0;
  /** @param {Backoff} [o] @param {() => number} [random] */
  constructor(o = {}, random = Math.random) {
    /** @param {unknown} v @param {number} or @param {number} min */
    const ms = (v, or, min) => typeof v === 'number' && v >= min && v <= 2 ** 31 - 1 ? v : or; // beyond that timers fire at once
    this.base = ms(o.base, 500, 1);
    this.cap = ms(o.cap, 30000, 1);
    this.first = ms(o.first, 5000, 0);
    this.stable = ms(o.stable, 10000, 0);
    this.random = random;
  }
  up() { this.since = now(); this.ever = true; this.hinted = this.least = 0; }
  /** Whether the connection has lasted. */
  get lasted() { return this.since !== null && now() - this.since >= this.stable; }
  /** The server wants its clients back over so many milliseconds. @param {number} ms */
  hint(ms) { this.hinted = this.least = Math.max(0, Math.min(ms || 0, Math.max(this.cap, 3600e3))); }
  /** How long to wait. The cap is applied before the draw: at the cap, too, no two clients are in step. */
  down() {
    if (this.lasted) this.failures = this.goodbyes = 0;
    this.since = null;
    const base = Math.max(this.base, this.ever ? this.first : 0);
    if (this.hinted) { // the server's word counts, and is no failure; but a server that says goodbye to all makes no hot loop
      const more = ++this.goodbyes - KEPT;
      this.window = more > 0 ? Math.max(this.hinted, this.usual(base, more - 1)) : this.hinted;
      this.hinted = 0;
    } else this.window = this.usual(Math.max(base, this.least), this.failures++);
    return Math.min(this.window, Math.floor(this.random() * (this.window + 1)));
  }
  /** @param {number} base @param {number} n */
  usual(base, n) { return Math.min(this.cap, base * 2 ** Math.min(n, 40)); }
}

// ---- Fan: one topic in the Hub

/** Entries, each after the one before, and for each tab a cursor. It keeps what the tabs have got, not what they are to
 * get: a tab that takes nothing costs a cursor and a window, however much passes by (trap 7). Positions are compared for
 * equality only. A cursor: pos is where the tab stands, at the index of the next entry for it or -1 while its place is not
 * known, sent and acked count entries and resets, gap is a reset that it is to get first. */
class Fan {
  first = 0; size = 0;
  again = none; blurred = none; only = none;
  /** Positions that the server was asked for: not all, if they are too many. @type {any[]} */ wanted = [];
  /** @type {any[]} */ ring = [];
  /** Those after which the server cannot go on, with what they have missed. @type {any[]} */ late = [];
  index = new Map();
  /** Before the ring; null: nothing is known. @type {string | null} */ base = null;
  /** The newest when it was subscribed to, until that has come by. @type {string | null} */ goal = null;
  /** @type {Map<string, any>} */ tabs = new Map();
  /** @param {number} max @param {number} window @param {(cursors: any[], m: any) => void} out */
  constructor(max, window, out) { this.max = max; this.window = window; this.out = out; }
  get end() { return this.first + this.ring.length; }
  get head() { return this.ring.length ? this.ring[this.ring.length - 1].pos : this.base; }
  /** Where a tab goes on. @param {any} c */
  stand(c) { return c.gap ? c.gap.base : c.pos; }

  /** False: what it wants is not here, subscribe again. @param {string} id @param {any} s */
  add(id, s) {
    const c = { pos: null, last: 0, ...s, id, at: -1, sent: 0, acked: 0, passing: 0, heard: now() };
    this.tabs.set(id, c);
    if (this.base === null) return false;
    if (c.pos === null) {
      if (this.goal !== null || c.last > this.ring.length) return false;
      this.seat(c, this.end - c.last);
    } else if (!this.place(c)) return false;
    this.pump([c]);
    return true;
  }
  /** What to subscribe with. */
  wants() {
    const cs = [...this.tabs.values()].sort((a, b) => a.at - b.at);
    for (const c of cs) this.lag(c);
    const last = Math.max(0, ...cs.map(c => this.stand(c) === null ? c.last : 0));
    const from = this.wanted = last ? [] : this.only ? [this.only] : [...new Set(cs.map(c => this.stand(c)).filter(Boolean))].slice(0, 64);
    this.only = null;
    const floor = cs.every(c => c.floor === cs[0].floor) ? cs[0]?.floor : undefined;
    return { from, last, floor };
  }
  /** @param {any} c @param {number} k */
  seat(c, k) {
    c.at = k;
    c.pos ??= k === this.first ? this.base : this.ring[k - 1 - this.first].pos;
    if (!c.told) this.out([c], { t: 'at', pos: this.stand(c) });
    c.told = c.sure = true;
  }
  /** @param {any} c */
  place(c) {
    const pos = this.stand(c), k = pos === this.base ? this.first : this.index.get(pos) + 1;
    if (!(k >= 0)) return false; // its entry has not come by yet
    this.seat(c, k);
    return true;
  }
  /** A tab gets one reset, however often it would have had to get one before it takes it.
   * @param {any} c @param {string} reason @param {number} missed @param {any} base @param {string} [s] a snapshot */
  gap(c, reason, missed, base, s) {
    const g = c.gap;
    if (g) { missed = g.missed && missed && g.missed + missed; if (isVoid(g.reason)) reason = g.reason; }
    c.gap = { reason, missed, base, s };
  }
  /** Whoever the ring has left behind goes on at its beginning. @param {any} c */
  lag(c) {
    if (c.at < 0 || c.at >= this.first) return;
    this.gap(c, 'lagging', this.first - c.at, this.base);
    c.at = this.first;
  }
  /** @param {string | null} base */
  clear(base) { this.first = this.end; this.ring = []; this.size = 0; this.index.clear(); this.base = base; }

  /** `subscribed`: the entries after base follow (trap 3). @param {any} f */
  restart(f) {
    for (const c of this.tabs.values()) { this.lag(c); c.at = -1; }
    this.clear(f.base ?? null);
    this.goal = f.head ?? null;
    this.again = this.blurred = false;
    this.late = f.late ?? [];
    if (this.base === null) return; // a reset comes first
    for (const c of this.tabs.values()) {
      const late = this.about(c);
      if (late) this.gap(c, late.reason ?? 'unknown', late.missed ?? 0, this.base);
      if (this.stand(c) !== null) this.place(c);
    }
    if (this.goal === null || this.goal === this.base) this.reach();
    this.pump();
  }
  /** What the server has said of where it stands. @param {any} c */
  about(c) { return this.late.find(l => l.pos === this.stand(c)); }
  /** All that was there has come by: whoever is still without a place will not find it. */
  reach() {
    this.goal = null;
    for (const c of this.tabs.values()) {
      if (c.at >= 0) continue;
      if (this.stand(c) === null) this.seat(c, Math.max(this.first, this.end - c.last));
      else if (!this.wanted.includes(this.stand(c))) this.again = true; // nobody has asked the server for it
      else if (this.blurred && this.wanted.length > 1) { this.again = true; this.only = this.stand(c); } // it was left out: ask for it alone
      else { this.gap(c, 'unknown', 0, this.head); this.place(c); }
    }
  }
  /** False: they do not follow. `blurred`: positions were left out. @param {any} prev @param {any[]} list of {pos, s} @param {boolean} [blurred] */
  push(prev, list, blurred) {
    if (this.base === null || prev !== this.head) return false;
    this.blurred ||= blurred;
    const waiting = [...this.tabs.values()].filter(c => c.at < 0);
    for (const e of list) {
      this.index.set(e.pos, this.end);
      this.ring.push({ prev, pos: e.pos, s: e.s });
      this.size += e.s.length;
      prev = e.pos;
      for (const c of waiting) if (c.at < 0 && this.stand(c) === e.pos) this.seat(c, this.end);
      if (e.pos === this.goal) this.reach();
    }
    if (blurred && this.goal !== null) this.reach();
    // A tab that answers, only not as fast as a backlog comes in, is waited for a while.
    let need = this.end;
    for (const c of this.tabs.values()) if (c.at >= 0 && now() - c.heard < 5000) need = Math.min(need, c.at);
    const max = Math.max(this.max, ...waiting.map(c => c.last)); // a backlog that was asked for
    while (this.ring.length > 1 && (this.size > RING_SIZE || this.ring.length > max && (this.first < need || this.ring.length > 8 * max))) {
      const e = this.ring.shift();
      this.base = e.pos;
      this.size -= e.s.length;
      if (this.index.get(e.pos) === this.first) this.index.delete(e.pos);
      this.first++;
    }
    this.pump();
    return true;
  }
  /** Sends what there is and they have room for. Those in step get one and the same message (trap 6). @param {Iterable<any>} [cursors] */
  pump(cursors = this.tabs.values()) {
    const groups = new Map();
    for (const c of cursors) {
      if (c.sent === c.acked) c.heard = now();
      const room = () => c.sent - c.acked < this.window;
      if (!room()) continue;
      this.lag(c);
      if (c.gap) {
        const { reason, missed, base, s } = c.gap;
        c.gap = null;
        c.pos = base;
        c.sent++;
        this.out([c], { t: 'reset', reason, missed, base, s });
      }
      if (c.at < 0 || c.at >= this.end || !room()) continue;
      const to = Math.min(this.end, c.at + this.window - c.sent + c.acked), key = c.at + ':' + to;
      groups.get(key)?.push(c) ?? groups.set(key, [c]);
    }
    for (const [key, cs] of groups) {
      const [at, to] = key.split(':').map(Number);
      const list = this.ring.slice(at - this.first, to - this.first), pos = list[list.length - 1].pos;
      for (const c of cs) { c.at = to; c.sent += list.length; c.pos = pos; }
      this.out(cs, { t: 'entries', prev: list[0].prev, pos, list: list.map(e => e.s) });
    }
  }
  /** The server's reset. True: subscribe again. @param {any} f @param {string} [s] */
  reset(f, s) {
    const all = this.base === null || isVoid(f.reason);
    let again = false;
    for (const c of this.tabs.values()) {
      this.lag(c);
      const late = this.about(c);
      if (this.stand(c) === null) c.pos = all ? f.base : null;
      else if (all || c.at >= 0) {
        const more = c.at >= 0 ? this.end - c.at : late ? late.missed : 0; // than who is missing least
        this.gap(c, (late ?? f).reason ?? 'unknown', f.missed + more || 0, f.base, s);
      }
      if (!all && c.at < 0) again = true; // it may stand beyond what is missing
      c.at = -1;
    }
    this.late = [];
    this.clear(f.base);
    this.goal = null;
    for (const c of this.tabs.values()) if (this.stand(c) === f.base) this.place(c);
    this.pump();
    return again;
  }
  /** What has no position goes to those who are not behind, and do take it. @param {string} s */
  pass(s) {
    const cs = [...this.tabs.values()].filter(c => c.at === this.end && c.passing < EPHEMERAL);
    for (const c of cs) c.passing++;
    if (cs.length) this.out(cs, { t: 'ephemeral', s });
  }
  /** @param {string} id @param {any} m */
  ack(id, m) {
    const c = this.tabs.get(id);
    if (!c || c.n !== m.n) return;
    if (m.q > c.acked && m.q <= c.sent) c.acked = m.q;
    c.passing = Math.max(0, c.passing - m.passed);
    c.heard = now();
    this.pump([c]);
  }
}

// ---- Link: the WebSocket

/** PROTOCOL.md, section 8. */
const FINAL = [1002, 1003, 1007, 1008, 1009, 1010, 4400, 4403, 4406];

class Link {
  /** connecting, open, waiting, denied, closed */ state = 'closed';
  why = ''; in = 0; code = 0; run = 0; dialled = -1e9; heard = 0; beat = 0; timeout = 0; due = 0; dials = 0; limits = /** @type {any} */ ({});
  conn = ''; node = ''; said = ''; refresh = false; renewed = false;
  bye = none; refreshed = none; probing = none; nudged = none; hinted = none;
  /** @type {any} */ ws = null;
  /** One timer: of the wait, the dial or the silence, as the state is. @type {any} */ timer;

  /** @param {string} url @param {any} env @param {Backoff} backoff
   * @param {{token(refresh: boolean): Promise<string | undefined>, state(): void, up(): void, down(): void, lost(why: string): void, frame(f: any): void}} on */
  constructor(url, env, backoff, on) { this.url = url; this.env = env; this.on = on; this.loop = new Loop(backoff); }

  /** @param {string} state */
  set(state, why = '', wait = 0, code = 0) {
    this.state = state; this.why = why; this.in = wait; this.code = code;
    this.on.state();
  }
  /** @param {number} ms @param {() => void} f */
  after(ms, f) {
    ms = Math.min(ms, 2 ** 31 - 1); // beyond that timers fire at once
    this.env.clearTimeout(this.timer);
    this.due = now() + ms;
    this.timer = this.env.setTimeout(f, ms);
  }

  /** Dials at once: First is for what the server drops, not for a Hub that takes over (trap 17). */
  start() { if (this.state === 'closed') this.dial(); }
  stop() { this.drop(); this.set('closed'); }
  drop() {
    const { ws } = this, was = this.state === 'open';
    this.run++;
    this.env.clearTimeout(this.timer);
    this.ws = null;
    this.bye = this.probing = false;
    if (ws) { ws.onopen = ws.onmessage = ws.onclose = null; try { ws.close(1000); } catch { /* not open yet */ } }
    if (was) { this.state = 'connecting'; this.on.down(); }
  }
  /** @param {any} f */
  send(f) { this.text(encode(f)); }
  /** @param {string} s */
  text(s) { if (this.state === 'open' && !this.bye) this.ws.send(s); }
  get open() { return this.state === 'open' && !this.bye; }

  async dial() {
    this.drop();
    const run = this.run;
    this.dialled = now();
    this.dials++;
    this.said = '';
    this.set('connecting', this.why, 0, this.code); // still: a page may have to hide what is private
    let token, ws;
    try { token = await this.on.token(this.refresh); } catch (e) { // before the dial, so that no socket waits for it
      return run === this.run && this.down(`no token: ${/** @type {any} */ (e)?.message ?? e}`);
    }
    if (run !== this.run) return;
    try { ws = this.ws = new this.env.WebSocket(this.url, 'holdfast.v1'); } catch (e) { return this.deny(`${e}`); } // the URL
    // Only a welcome means that it is there; a server may open and then say nothing (trap 10).
    this.after(Math.max(T.dial, this.loop.window), () => this.down('no welcome'));
    ws.onopen = () => ws.send(encode({ t: 'hello', v: 1, token, beats: true }));
    ws.onmessage = (/** @type {any} */ e) => {
      this.heard = now();
      let f;
      try { f = decode(e.data); } catch (x) { return this.down(`no frame: ${x}`); }
      this.frame(f);
    };
    ws.onclose = (/** @type {any} */ e) => this.lost(e.code, e.reason);
  }
  /** @param {any} f */
  frame(f) {
    switch (f.t) {
      case 'welcome':
        if (this.state === 'open') return;
        if (f.v !== 1) return this.deny(`version ${f.v}`);
        Object.assign(this, { beat: 0, timeout: 0, limits: {}, conn: '', node: '' }, f);
        this.renewed = this.refresh;
        this.refresh = this.refreshed = this.nudged = false;
        this.loop.up();
        this.watch();
        this.set('open');
        this.on.up();
        return;
      case 'beat': if (this.state === 'open') this.ws.send('{"t":"beat"}'); return; // by this code: pongs lie (trap 10)
      case 'goodbye':
        if (this.bye) return;
        this.loop.hint(f.window ?? 0); // perhaps instead of a welcome
        if (this.state !== 'open') return;
        this.bye = true; // what was sent is still answered
        this.after(T.goodbye, () => this.down('goodbye'));
        return;
      case 'error': if (this.state !== 'open') this.said = f.message ?? f.code ?? ''; // a close code follows
    }
    if (this.state === 'open') this.on.frame(f);
  }
  /** @param {number} code @param {string} reason */
  lost(code, reason) {
    const why = `${code} ${reason || this.said}`.trim();
    if (code === 4401 && !this.refreshed) {
      this.refresh = this.refreshed = true;
      // The server lives, and a page shows what it perhaps must not: whoever has just been let in with new credentials waits.
      const soon = this.state === 'open' && !this.loop.hinted && (!this.renewed || this.loop.lasted);
      return this.down(why, code, soon);
    }
    if (code === 4401 || FINAL.includes(code)) return this.deny(why, code);
    this.down(why, code);
  }
  /** @param {string} why @param {number} [code] */
  deny(why, code) { this.drop(); this.on.lost(why); this.set('denied', why, 0, code); }
  /** @param {string} why @param {number} [code] @param {boolean} [soon] at once, and without a timer, which may be slow in a hidden page */
  down(why, code = 0, soon = false) {
    const hinted = this.loop.hinted > 0;
    this.drop();
    this.on.lost(why);
    if (this.refreshed) code = 4401; // until it is let in again or denied, whatever else fails meanwhile
    let wait = this.loop.down();
    if (soon) {
      this.nudged = this.hinted = false;
      Object.assign(this, { why, code });
      return void this.dial();
    }
    if (this.nudged && !hinted) wait = Math.min(wait, Math.random() * 100);
    this.nudged = false;
    this.hinted = hinted;
    this.after(wait, () => this.dial());
    this.set('waiting', why, wait, code);
  }
  /** Looks whether the server is silent for too long. */
  watch() {
    this.env.clearTimeout(this.timer);
    this.probing = false;
    if (!this.beat) return;
    const most = this.beat + this.timeout;
    this.after(Math.max(0, this.heard + most - now()), () => {
      if (now() - this.heard < most) this.watch();
      else if (now() - this.due > 2000) this.probe(this.timeout); // we were late, not the server: ask it (trap 5)
      else this.down('silent');
    });
  }
  /** @param {number} ms to answer */
  probe(ms) {
    if (this.probing || !this.open) return;
    this.probing = true;
    const asked = now();
    this.ws.send('{"t":"ping"}');
    this.after(ms || 5000, () => {
      if (this.heard >= asked) this.watch();
      else if (now() - this.due > 90000) { this.probing = false; this.probe(ms); } // asleep again
      else { this.nudged = true; this.down('no answer'); }
    });
  }
  /** Something has changed: it may work now. A wait is cut, never made longer, and not at the same time by all; one that
   * the server has asked for is kept. No socket is given up that answers (traps 10, 17). */
  nudge() {
    if (this.open) return this.probe(Math.min(this.timeout || 5000, 5000));
    const wait = Math.random() * 100;
    if (this.state === 'waiting' && !this.hinted && now() - this.dialled > T.redial && this.due - now() > wait) this.after(wait, () => this.dial());
  }
  /** At once, but not more often than T.redial allows. */
  redial(refresh = false) {
    if (this.state === 'closed') return;
    this.refresh ||= refresh;
    if (this.state === 'denied') this.refreshed = false;
    const wait = this.dialled + T.redial - now();
    if (wait <= 0) return void this.dial();
    if (this.state === 'connecting') return;
    this.drop();
    this.after(wait, () => this.dial());
    this.on.lost('told to');
    this.set('waiting', 'told to', wait, this.refreshed ? 4401 : 0);
  }
}

// ---- Web Locks

/** Resolves once the lock is ours, with the function that lets go. @param {any} locks @param {string} name @returns {Promise<() => void>} */
const hold = (locks, name) => new Promise((held, failed) => {
  locks.request(name, () => new Promise(free => held(() => free(undefined)))).catch(failed);
});
/** Tells when its owner has let go, in whatever way: there is no other event for the death of a tab or worker. The owner
 * has to have it first (trap 1). @param {any} locks @param {string} name @param {string} mode @param {AbortSignal} signal @param {() => void} gone */
const watch = (locks, name, mode, signal, gone) => {
  locks.request(name, { mode, signal }, () => { if (!signal.aborted) gone(); }).catch(() => {});
};

// ---- Hub

/** Questions by number, and null for those not answered in time. */
class Asks {
  n = 0;
  /** @type {Map<number, (m: any) => void>} */ open = new Map();
  /** @param {any} env */
  constructor(env) { this.env = env; }
  /** @param {number} ms @param {(r: number) => void} post @returns {Promise<any>} */
  ask(ms, post) {
    const r = ++this.n;
    return new Promise(done => {
      const timer = this.env.setTimeout(() => this.answer({ r }, null), ms);
      this.open.set(r, m => { this.env.clearTimeout(timer); done(m); });
      post(r);
    });
  }
  /** @param {any} m */
  answer(m, what = m) { this.open.get(m.r)?.(what); this.open.delete(m.r); }
}

/** Codes that say that there is a limit, which is waited for or has ended something. */
const LIMITS = ['too_fast', 'too_many_pending', 'too_many_topics'];

class Hub {
  id = `${Date.now().toString(36)}-${rid()}`; // in the order of their births
  /** @type {Map<string, any>} */ tabs = new Map();
  /** @type {Map<string, any>} */ topics = new Map();
  /** @type {any} */ o = null;
  /** @type {any} */ link = null;
  /** Publishes that wait, in their order, and those the server has to answer. @type {any[]} */ waiting = [];
  /** @type {Map<string, any>} */ sent = new Map();
  /** Of topics in which the server cannot store now. @type {Map<string, any>} */ held = new Map();
  window = 0; most = 0; grown = 0; seq = 0; ref = 0; holdAll = 0; unwanted = 0;
  counters = { entries: 0, resets: 0, repairs: 0, drops: 0, acked: 0, resent: 0 };
  last = '';
  /** Those that this connection has met. @type {string[]} */ limited = [];
  timer = none; sweep = none; wakes = 0;

  /** cast: posts to all at once, where that is possible; left is told which tab has gone.
   * @param {any} env @param {((m: any) => void) | null} [cast] @param {(id: string) => void} [left] */
  constructor(env, cast = null, left = () => {}) { this.env = env; this.cast = cast; this.left = left; this.asked = new Asks(env); }

  /** hello. @param {any} m @param {(m: any) => void} raw @param {string} [lock] that we hold @param {boolean} [remote] reached by cast @param {boolean} [own] of the same page: it goes with us */
  attach(m, raw, lock, remote = false, own = false) {
    if (m.v !== PROTO) return raw({ t: 'skew', v: PROTO });
    const old = this.tabs.get(m.id);
    if (old?.a > m.a) return; // from a port that the tab has given up
    old?.stop.abort();
    if (!this.link) {
      this.o = m.o; // of the first: others would need a socket of their own (trap 13)
      this.link = new Link(m.o.url, this.env, m.o.backoff, {
        token: refresh => this.token(refresh), state: () => this.state(), up: () => this.up(), down: () => this.down(), frame: f => this.frame(f),
        lost: why => { this.last = why; this.counters.drops++; },
      });
    }
    // Each frame has the number of the hello that it is for: one of an earlier hello would move the tab back (trap 22).
    const tab = { ...m, post: (/** @type {any} */ x) => raw({ ...x, a: m.a }), stop: new AbortController(), remote, seen: now(), ask: none };
    this.tabs.set(m.id, tab);
    this.link.start(); // before the welcome, which says how that is
    if (!old && this.link.state === 'denied') this.link.redial(true); // it may have other credentials
    tab.post({ t: 'welcome', v: PROTO, hub: this.id, lock, o: this.o, build: BUILD, state: this.status() });
    if (old?.ask && this.asked.open.has(old.ask.r)) tab.post(tab.ask = old.ask); // what was asked before is not heard (trap 22)
    if (m.presence) watch(this.env.navigator.locks, m.presence, 'exclusive', tab.stop.signal, () => this.detach(m.id, tab));
    else if (!own) this.sweep ??= this.env.setInterval(() => { // no locks: whoever says nothing for long is gone (trap 18)
      for (const t of this.tabs.values()) if (!t.presence && now() - t.seen > T.gone) this.detach(t.id);
    }, T.ping);
    for (const topic of this.topics.values()) if (!m.subs.some((/** @type {any} */ s) => s.topic === topic.name)) this.leave(topic, m.id);
    for (const s of m.subs) this.join(m.id, s);
  }
  /** bye, or gone. The last one out closes the socket now, in this turn: a later one may never come (trap 8).
   * @param {string} id @param {any} [only] */
  detach(id, only) {
    const tab = this.tabs.get(id);
    if (!tab || only && only !== tab) return;
    this.tabs.delete(id);
    tab.stop.abort();
    this.left(id);
    if (tab.ask) this.asked.answer(tab.ask, null); // another is asked at once
    for (const topic of this.topics.values()) this.leave(topic, id);
    if (this.tabs.size) return;
    this.close();
  }
  /** It may have tabs again, in a worker. Those it has are not told: they look for another. */
  close() {
    for (const tab of this.tabs.values()) { tab.stop.abort(); this.left(tab.id); }
    this.tabs.clear();
    this.topics.clear();
    this.link?.stop();
    this.env.clearTimeout(this.timer);
    this.env.clearInterval(this.sweep);
    this.timer = this.sweep = undefined;
    this.waiting = [];
    this.sent.clear();
    this.held.clear();
  }
  status() {
    return Object.fromEntries('state why in code beat limits conn node'.split(' ').map(k => [k, this.link[k]]));
  }
  state() {
    if (this.link.state === 'denied') this.waiting = []; // the tabs fail them, and one may be the reason
    for (const tab of this.tabs.values()) tab.post({ t: 'state', ...this.status() });
  }
  /** From a tab. False: it is not known, and has to say hello. @param {string} id @param {any} m */
  recv(id, m) {
    const tab = this.tabs.get(id);
    if (!tab) return false;
    tab.seen = now();
    const topic = this.topics.get(m.topic);
    switch (m.t) {
      case 'sub': this.join(id, m); break;
      case 'unsub': if (topic?.fan.tabs.get(id)?.n === m.n) this.leave(topic, id); break;
      case 'ack': topic?.fan.ack(id, m); break;
      case 'send': this.queue(id, m); break;
      case 'drop': this.waiting = this.waiting.filter(p => p.id !== m.id || p.topic !== m.topic || p.tabs.size > 1); break;
      case 'ephemeral': if (this.link.open && this.link.ws.bufferedAmount < 1 << 16 && this.fits(m.s)) this.link.text(m.s); break;
      case 'token': this.asked.answer(m); break;
      case 'vis': tab.vis = m.vis; break;
      case 'nudge': this.link.nudge(); break;
      case 'reconnect': this.link.redial(); break;
      case 'reauth': this.reauth(id); break;
      case 'ping': tab.post({ t: 'pong' }); break;
      case 'info': tab.post({ t: 'info', r: m.r, info: this.info() }); break;
      case 'bye': if (m.a === tab.a) this.detach(id);
    }
    return true;
  }
  info() {
    /** @type {any} */
    const topics = { __proto__: null };
    for (const { name, fan } of this.topics.values()) {
      topics[name] = { ring: fan.ring.length, head: fan.head, cursors: [...fan.tabs.values()].map((/** @type {any} */ c) => ({ tab: c.id, behind: c.at < 0 ? null : fan.end - c.at, unacked: c.sent - c.acked })) };
    }
    return { hub: this.id, tabs: this.tabs.size, topics, why: this.last, conn: this.link.conn, node: this.link.node, counters: { ...this.counters, dials: this.link.dials, publishing: this.waiting.length + this.sent.size } };
  }
  /** The tabs have the credentials, we have no storage to read them from. A visible one answers soonest (trap 11), and
   * of these we ask the one that came last: it has the newest.
   * @param {boolean} refresh @param {string} [first] */
  async token(refresh, first) {
    await null; // a tab knows us after its welcome only
    const tabs = [...this.tabs.values()].filter(t => t.token).reverse().sort((a, b) => +(b.id === first) - +(a.id === first) || +b.vis - +a.vis);
    for (const tab of tabs) {
      const m = await this.asked.ask(T.token, r => tab.post(tab.ask = { t: 'ask', r, refresh }));
      if (m?.error) throw new Error(m.error);
      if (m) return m.token;
    }
    if (tabs.length) throw new Error('no tab answers');
  }
  /** @param {string} id */
  async reauth(id) {
    const { link } = this;
    if (!link.open || ![...this.tabs.values()].some(t => t.token)) return link.redial(true); // cookies go with the dial
    const run = link.run;
    try {
      const token = await this.token(true, id);
      if (run === link.run) link.send({ t: 'auth', token, ref: ++this.ref });
    } catch (e) { this.last = `reauth: ${e}`; }
  }

  // subscriptions: wanted ─▶ asked ─▶ on

  /** @param {string} id @param {any} s */
  join(id, s) {
    let topic = this.topics.get(s.topic);
    if (!topic) {
      topic = { name: s.topic, phase: 'wanted', ref: 0, due: 0, loop: new Loop({ first: 0 }), fan: new Fan(this.o.ring, this.o.window, (cs, m) => this.out(topic, cs, m)) };
      this.topics.set(s.topic, topic);
    }
    if (!topic.fan.add(id, s)) this.want(topic);
  }
  /** @param {any} topic @param {string} id */
  leave(topic, id) {
    if (!topic.fan.tabs.delete(id) || topic.fan.tabs.size) return;
    this.topics.delete(topic.name);
    if (topic.ref && this.link.open) this.link.send({ t: 'unsubscribe', topic: topic.name, ref: ++this.ref });
  }
  /** @param {any} topic @param {any[]} cs @param {any} m */
  out(topic, cs, m) {
    const many = [];
    for (const c of cs) {
      const tab = this.tabs.get(c.id);
      if (tab?.remote && this.cast && cs.length > 1) many.push([c.id, c.n, c.sent]);
      else tab?.post({ ...m, topic: topic.name, n: c.n, q: c.sent });
    }
    if (many.length) this.cast?.({ ...m, topic: topic.name, to: many });
  }
  /** @param {any} topic */
  want(topic, wait = 0) {
    topic.phase = 'wanted';
    topic.ref = wait ? 0 : topic.ref; // an unsubscribe is due while the server has it
    topic.due = now() + wait;
    this.wake(wait);
  }
  /** @param {any} topic @param {number} [atLeast] */
  later(topic, atLeast = 0) { this.want(topic, Math.max(1, topic.loop.down(), atLeast)); }
  /** What is due is done after this task, and so once for all that ask for it. @param {number} ms */
  wake(ms) {
    const at = now() + ms;
    if (this.timer !== undefined && this.wakes <= at) return;
    this.env.clearTimeout(this.timer);
    this.wakes = at;
    this.timer = this.env.setTimeout(() => { this.timer = undefined; this.flush(); }, ms);
  }
  flush() {
    if (!this.link?.open) return;
    let next = Infinity;
    for (const topic of this.topics.values()) {
      if (topic.phase !== 'wanted') continue;
      if (topic.due > now()) { next = Math.min(next, topic.due); continue; }
      topic.phase = 'asked';
      topic.ref = ++this.ref;
      this.link.send({ t: 'subscribe', topic: topic.name, ref: topic.ref, ...topic.fan.wants() });
    }
    next = Math.min(next, this.publish());
    if (next < Infinity) this.wake(Math.max(1, next - now()));
  }
  up() {
    const { link } = this;
    this.most = this.window = Math.min(link.limits.pending || 256, 1024);
    this.grown = this.holdAll = 0;
    this.limited = [];
    for (const topic of this.topics.values()) topic.phase = 'wanted';
    this.flush();
  }
  down() {
    for (const topic of this.topics.values()) { topic.phase = 'wanted'; topic.ref = topic.due = 0; }
    for (const p of this.sent.values()) p.doubt = true;
    this.waiting.push(...this.sent.values());
    this.waiting.sort((a, b) => a.seq - b.seq);
    this.sent.clear();
  }
  /** @param {any} f */
  frame(f) {
    const topic = this.topics.get(f.topic), on = topic?.phase === 'on';
    if (LIMITS.includes(f.code)) {
      const text = f.code + (f.message ? `: ${f.message}` : '');
      if (!this.limited.includes(text) && this.limited.length < 8) { // once for each connection, and where a developer looks: in the pages
        this.limited.push(text);
        for (const tab of this.tabs.values()) tab.post({ t: 'limit', text });
      }
    }
    switch (f.t) {
      case 'subscribed':
        if (topic?.phase !== 'asked' || topic.ref !== f.ref) return; // of one before
        topic.phase = 'on';
        topic.loop.up();
        topic.fan.restart(f);
        if (topic.fan.again) this.want(topic);
        return;
      case 'entries': {
        if (!on) return this.stray(topic, f.topic);
        const list = (f.entries ?? []).map((/** @type {any} */ e) => ({ pos: e.pos, s: JSON.stringify(e) })); // once, and not cloned for each tab
        if (f.to && f.to !== list[list.length - 1]?.pos) list.push({ pos: f.to, s: JSON.stringify({ pos: f.to }) });
        this.counters.entries += list.length;
        if (!topic.fan.push(f.prev, list, f.conflated > 0 || !!f.to)) { this.counters.repairs++; this.later(topic); }
        else if (topic.fan.again) this.want(topic);
        return;
      }
      case 'reset': {
        if (!on) return this.stray(topic, f.topic);
        this.counters.resets++;
        if (!f.base) { this.counters.repairs++; return this.later(topic); }
        if (topic.fan.reset(f, loaded(f) ? load(f) : undefined)) this.later(topic);
        return;
      }
      case 'ephemeral':
        if (on) topic.fan.pass(load(f));
        return;
      case 'unsubscribed':
        if (topic?.ref && (f.ref ? f.ref === topic.ref : f.code)) this.refused(topic, f);
        return;
      case 'error': {
        const of = f.ref && [...this.topics.values()].find(t => t.ref === f.ref);
        if (of) this.refused(of, f);
        return;
      }
      case 'ack': case 'nack': this.answer(f);
    }
  }
  /** What comes though nobody wants it: the unsubscribe was lost, perhaps to a limit. @param {any} topic @param {string} name */
  stray(topic, name) {
    if (topic || now() - this.unwanted < T.unwanted) return;
    this.unwanted = now();
    this.link.send({ t: 'unsubscribe', topic: name, ref: ++this.ref });
  }
  /** @param {any} topic @param {any} f */
  refused(topic, f) {
    if (['', 'too_fast', 'too_many_pending', 'unavailable', 'internal'].includes(f.code ?? '')) return this.later(topic, Math.min(f.retry ?? 0, 3600e3));
    const all = [...topic.fan.tabs.values()];
    let wrong = all.filter(c => f.code === 'bad_position' && !c.sure); // whose is not from a server
    if (!wrong.length) wrong = all;
    this.out(topic, wrong, { t: 'ended', code: f.code, message: f.message });
    for (const c of wrong) topic.fan.tabs.delete(c.id);
    if (!topic.fan.tabs.size) this.topics.delete(topic.name); else this.want(topic);
  }

  // publishes, by the rules of the Go client

  /** @param {string} s */
  fits(s) { return !(this.link.limits.message && bytes(s) > this.link.limits.message); }
  /** @param {string} tab @param {any} m */
  queue(tab, m) {
    if (this.link.state === 'denied') return; // it is on its way to the tab, which fails it then
    const same = [...this.sent.values(), ...this.waiting].find(p => p.id === m.id && p.topic === m.topic);
    if (same) return void same.tabs.add(tab); // sent again by a tab that has not heard of it: once is enough
    this.waiting.push({ ...m, tabs: new Set([tab]), seq: this.seq++, tries: 0 });
    this.wake(0);
  }
  /** Sends what may be sent, and says when to look again. */
  publish() {
    let next = Infinity;
    /** @type {any[]} */
    const kept = [], t = now();
    for (const p of this.waiting) {
      const until = Math.max(this.holdAll, this.held.get(p.topic)?.until ?? 0);
      if (Date.now() - p.born > T.age) this.tell(p, { error: { code: 'expired' } }); // the server may have forgotten its id
      else if (!this.fits(p.s)) this.tell(p, { error: { code: 'too_large', message: `more than ${this.link.limits.message} bytes` } });
      else if (until > t) { next = Math.min(next, until); kept.push(p); }
      else if (this.sent.size >= this.window || this.sent.has(p.id)) kept.push(p);
      else {
        if (p.tries++) this.counters.resent++;
        this.sent.set(p.id, p);
        this.link.text(p.s);
      }
    }
    this.waiting = kept;
    return next;
  }
  /** @param {any} p @param {any} what */
  tell(p, what) {
    if (what.error) what.error.outcome = p.doubt ? 'unknown' : 'not_stored';
    for (const id of p.tabs) this.tabs.get(id)?.post({ t: 'sent', id: p.id, topic: p.topic, ...what });
  }
  /** @param {any} f */
  answer(f) {
    const p = this.sent.get(f.id);
    if (!p) return; // given up meanwhile
    this.sent.delete(f.id);
    if (f.t === 'ack') {
      this.counters.acked++;
      this.held.delete(p.topic);
      if (++this.grown >= this.window && this.window < this.most) { this.window++; this.grown = 0; }
      this.tell(p, { receipt: { outcome: f.outcome ?? 'committed', pos: f.pos, id: p.id } });
    } else {
      p.doubt ||= f.outcome !== 'not_stored';
      const retry = Math.min(f.retry ?? 0, 3600e3);
      if (f.code === 'too_fast' || f.code === 'too_many_pending') { // nothing to do with the topic
        this.window = 1;
        this.grown = 0;
        if (now() >= this.holdAll) this.holdAll = now() + retry + T.fast;
      } else if (f.code === 'unavailable' || f.code === 'internal') {
        const h = this.held.get(p.topic) ?? { loop: new Loop({ first: 0 }), until: 0 };
        if (now() >= h.until) h.until = now() + Math.max(h.loop.down(), retry);
        this.held.set(p.topic, h);
      } else {
        this.tell(p, { error: { code: f.code ?? 'unknown', message: f.message, field: f.field } });
        return this.wake(0);
      }
      this.waiting.push(p);
      this.waiting.sort((a, b) => a.seq - b.seq);
    }
    this.wake(0);
  }
}

// ---- Tab: what is in each page

class Tab {
  id = rid();
  mode = ''; state = 'connecting'; detail = /** @type {any} */ ({});
  hubId = ''; tried = ''; run = 0; numbers = 0; looked = 0;
  welcomed = none; a = none; tries = none; heard = none; asked = none; tick = none; live = none; few = none; slow = none; renew = none;
  /** Subscriptions by topic. @type {Map<string, any>} */ subs = new Map();
  /** Publishes that are not answered. @type {Map<string, any>} */ pending = new Map();
  counters = { received: 0, resets: 0, broken: 0, hubs: 0, faults: 0 };
  fault = '';
  locks = none; worker = none; ch = none; own = none; news = none; hub = none; lead = none; dead = none; race = none; serve = none; silent = none;
  hubWatch = none; helloTimer = none; timer = none; ackTimer = none; ageTimer = none; settleTimer = none; free = none; resign = none; presence = none;
  modes = none;
  /** To the Hub. @type {(m: any) => void} */ post = () => {};
  parked = true; closed = false;

  /** @param {string} url @param {any} o @param {any} env @param {(type: string, detail: any) => void} emit */
  constructor(url, o, env, emit) {
    this.env = env; this.opts = o; this.emit = emit; this.asks = new Asks(env);
    const u = new URL(url, env.location?.href);
    u.protocol = u.protocol.replace('http', 'ws');
    this.url = u.href;
    check('key', o.key ?? '', 1024, 0);
    this.name = identity(this.url, o.key ?? '');
    const { share = 'auto', keep = false, ring = 1000, window = 256 } = o, backoff = /** @type {any} */ ({});
    one('share', share, ['auto', ...MODES]);
    one('keep', keep, [false, 'session', 'local']);
    whole('ring', ring, 1);
    whole('window', window, 1);
    for (const k of ['base', 'cap', 'first', 'stable']) {
      const v = backoff[k] = o.backoff?.[k];
      if (v !== undefined) whole(k, v, 0);
    }
    this.sharing = share === 'auto' ? MODES : [share, 'none'];
    this.o = { url: this.url, backoff, ring, window };
    this.workerUrl = o.workerUrl ?? import.meta.url; // in a bundle that is the application: it has to say (trap 25)
    this.events = new AbortController();
    /** @param {any} on @param {string} types @param {(e: any) => void} f */
    const listen = (on, types, f) => { for (const t of types.split(' ')) on?.addEventListener?.(t, f, { signal: this.events.signal }); };
    // No unload or beforeunload: they keep the page out of the bfcache (trap 9).
    listen(env, 'pagehide', () => { this.save(); this.park(); });
    listen(env, 'pageshow', e => { if (e.persisted) this.up(); });
    listen(env, 'online focus pageshow', () => this.nudge());
    listen(env.document, 'visibilitychange', () => {
      if (this.visible) this.nudge(); else this.save();
      this.post({ t: 'vis', vis: this.visible });
    });
    listen(env.document, 'freeze', () => this.freeze());
    listen(env.document, 'resume', () => { this.thaw(); this.nudge(); }); // visibilitychange may not come then
    this.up();
  }
  get visible() { return (this.env.document?.visibilityState ?? 'visible') === 'visible'; }
  nudge() { this.post({ t: 'nudge' }); }

  // positions that outlive the page

  /** Throws in a sandbox. @returns {any} */
  get storage() { return this.env[`${this.opts.keep}Storage`]; }
  /** By topic, which may have the name of a member of all objects. Others may have written there. @returns {any} */
  load() {
    let kept;
    try { kept = JSON.parse(this.storage?.getItem(this.name + 'pos'), (k, v) => k && !isPosition(v) ? undefined : v); } catch { /* none, or no JSON */ }
    return { __proto__: null, ...kept };
  }
  save() {
    const kept = this.load(); // of other tabs and topics, too
    for (const { topic, position, queue } of this.subs.values()) {
      if (!position || queue[0]?.q === 0) continue; // not over a reset of bad_position
      delete kept[topic]; // what was not written for longest is dropped first
      kept[topic] = position;
    }
    try { this.storage?.setItem(this.name + 'pos', JSON.stringify(Object.fromEntries(Object.entries(kept).slice(-100)))); } catch { /* full, or not allowed */ }
  }

  // life: up, park (in the bfcache and at the end), fall back

  async up() {
    if (!this.parked || this.closed) return;
    this.parked = false;
    const run = ++this.run;
    let free;
    try {
      this.locks = this.env.navigator?.locks; // not on http://, and in a sandboxed frame it throws (trap 18)
      await this.locks?.query();
      const presence = `hf:tab:${this.id}:${run}`;
      if (this.locks) { free = await hold(this.locks, presence); this.presence = presence; } // before the hello (trap 1)
    } catch { this.locks = undefined; this.presence = undefined; }
    if (run !== this.run) return free?.(); // parked meanwhile
    this.free = free;
    if (BUILD) try {
      this.news = new this.env.BroadcastChannel(this.name + 'new'); // which may throw where cookies are blocked, or be missing
      this.news.onmessage = (/** @type {any} */ e) => { if (e.data !== BUILD) this.emit('update', { build: e.data }); };
      if (run === 1) this.news.postMessage(BUILD); // not by an old page that is shown again
    } catch { /* then nobody is told of a newer page */ }
    this.modes = [...this.sharing];
    this.fallBack();
  }
  /** To the next mode, if it is there. */
  fallBack() {
    this.leave();
    const mode = this.mode = this.modes?.shift() ?? 'none';
    this.tries = 0;
    if (mode === 'worker' && this.env.SharedWorker) this.joinWorker();
    else if (mode === 'leader' && this.locks && this.env.BroadcastChannel) this.joinLeader();
    else if (mode === 'none') this.joinNone();
    else this.fallBack();
  }
  /** Lets go of the Hub. */
  leave() {
    const { env } = this;
    this.bye();
    this.post = () => {};
    this.welcomed = false;
    this.hubWatch?.abort();
    this.race?.abort();
    this.race = null;
    this.stepDown();
    for (const c of [this.ch, this.own]) c?.close();
    this.ch = this.own = null;
    this.worker?.port.close();
    this.worker = null;
    this.tried = '';
    for (const t of [this.helloTimer, this.settleTimer, this.ackTimer]) env.clearTimeout(t);
    this.ackTimer = undefined;
    env.clearInterval(this.timer);
  }
  /** Out of the way: a message to a page in the bfcache evicts it (trap 9). */
  park() {
    if (this.parked) return;
    this.parked = true;
    this.run++;
    this.leave();
    this.hubId = '';
    this.news?.close();
    this.free?.();
    this.free = null;
    if (!this.closed) this.set({ state: 'connecting', why: 'parked' });
  }
  close() {
    if (this.closed) return;
    this.save();
    this.closed = true;
    this.park();
    this.events.abort();
    for (const s of [...this.subs.values()]) this.end(s);
    this.fail('closed');
    this.env.clearTimeout(this.ageTimer);
    this.set({ state: 'closed' });
  }
  /** @param {any} detail */
  set(detail) {
    const changed = detail.state !== this.state;
    this.state = detail.state;
    this.detail = detail;
    this.reauth();
    if (detail.state === 'denied') this.fail('denied', detail.why);
    if (changed || detail.state === 'waiting') this.emit('state', { state: detail.state, in: detail.in || 0, why: detail.why || '', code: detail.code || 0, mode: this.mode, hub: this.hubId });
  }

  // mode none, and the leader's own page

  joinNone() { this.hub = new Hub(this.env); this.direct(); this.hello(); }
  direct() {
    const { hub } = this;
    /** As a port would: later, in order. @param {any} m */
    const raw = m => queueMicrotask(() => { if (this.hub === hub) this.onHub(m); });
    this.post = (/** @type {any} */ m) => {
      if (m.t === 'hello') hub.attach(m, raw, undefined, false, true);
      else if (!hub.recv(this.id, m) && m.t !== 'bye') raw({ t: 'who' });
    };
  }

  // mode worker

  async joinWorker() {
    const { env, run } = this;
    let gen = '';
    if (this.locks) {
      // The living Hub's generation, else the one after the dead: in Firefox the name of a worker that was killed hangs for
      // ever (trap 2). Watchers have a dead one's lock for a moment, but shared (trap 23).
      const alive = await this.alive().catch(() => []);
      if (run !== this.run || this.mode !== 'worker') return;
      gen = alive[0]?.gen ?? (this.dead ? `after=${this.dead}` : this.tries > 2 ? 'again' : '');
    }
    const name = this.name + gen;
    if (name !== this.tried) this.bye(); // perhaps the other was only slow, and reads this after our hello
    this.tried = name;
    this.worker?.port.close();
    this.welcomed = false;
    let w;
    try {
      // A name is identity and nothing else: with options in it there would be as many workers (trap 13).
      w = this.worker = new env.SharedWorker(this.workerUrl, { type: 'module', name });
    } catch { return this.fallBack(); } // (trap 15)
    w.onerror = () => { if (this.worker === w && !this.welcomed) this.fallBack(); }; // CSP, 404, other options (trap 15)
    w.port.onmessage = (/** @type {any} */ e) => { if (this.worker === w) this.onHub(e.data); };
    this.post = (/** @type {any} */ m) => w.port.postMessage(m);
    this.hello();
    this.tries++;
    this.helloTimer = env.setTimeout(() => { // it may die before it says welcome (trap 1), or take 2 s to start on a slow machine
      if (this.worker !== w || this.welcomed) return;
      if (this.tries < 4) return this.joinWorker();
      this.slow ||= 1;
      this.fallBack();
    }, Math.min(3000, T.hello * 2 ** this.tries / 2));
    env.clearInterval(this.timer);
    if (!this.locks) { // a ping in place of a lock; only its own lateness is no sign of death (traps 5, 18)
      this.heard = this.tick = now();
      this.timer = env.setInterval(() => {
        const t = now(), late = t - this.tick > 3 * T.ping;
        this.tick = t;
        if (late || !this.visible) this.heard = t;
        if (this.welcomed && t - this.heard > 2.5 * T.ping) { this.heard = t; this.joinWorker(); } else this.post({ t: 'ping' });
      }, T.ping);
    }
  }
  /** Hubs of ours that live, the oldest first. */
  async alive() {
    const pre = `hf:hub:${build(this.workerUrl, this.url)}|${this.name}`, { held } = await this.locks.query();
    return held.filter((/** @type {any} */ l) => l.mode === 'exclusive' && l.name.startsWith(pre)).map((/** @type {any} */ l) => {
      const [gen, id] = l.name.slice(pre.length).split('#');
      return { gen, id };
    }).sort((/** @type {any} */ a, /** @type {any} */ b) => a.id < b.id ? -1 : 1);
  }

  /** A worker that took too long for us may live by now, with those who came later. */
  async look() {
    this.looked = now();
    const { run } = this, alive = await this.alive().catch(() => []);
    if (!alive[0] || run !== this.run || this.mode !== 'leader') return;
    this.slow = 2; // once
    this.modes = [...MODES];
    this.fallBack();
  }

  // mode leader

  joinLeader() {
    const { env } = this;
    try {
      this.ch = new env.BroadcastChannel(this.name);
      this.own = new env.BroadcastChannel(this.name + this.id);
    } catch { return this.fallBack(); }
    this.ch.onmessage = this.own.onmessage = (/** @type {any} */ e) => this.onChannel(e.data);
    this.lead = null;
    this.follow();
    this.campaign();
    this.hello();
    this.heard = this.tick = now();
    env.clearInterval(this.timer);
    this.timer = env.setInterval(() => this.probe(), T.probe / 2);
  }
  follow() { this.post = (/** @type {any} */ m) => this.ch?.postMessage({ to: this.lead ?? 'hub', from: this.id, m }); }
  campaign(steal = false) {
    this.race?.abort();
    const race = this.race = new AbortController();
    // steal and signal exclude each other.
    this.locks.request(this.name + 'lead', steal ? { steal } : { signal: race.signal }, () => {
      if (race.signal.aborted || this.race !== race) return;
      return new Promise(done => { this.resign = done; this.rule(); });
    }).catch((/** @type {any} */ e) => { // stolen from us, or aborted by us: then there is another race (trap 21)
      if (this.race !== race || this.closed) return;
      if (e?.name !== 'AbortError') return this.fallBack();
      this.stepDown();
      this.campaign();
      this.hello(); // or we would be deaf (trap 21)
    });
  }
  rule() {
    /** @type {Map<string, any>} */
    const channels = new Map();
    const hub = this.hub = new Hub(this.env, m => this.ch?.postMessage({ hub: hub.id, m }), id => { channels.get(id)?.close(); channels.delete(id); });
    // A frozen page gets what comes over channels, and would answer though it hears nothing of the server: so all that
    // comes goes through a port first, which rests (trap 4).
    const { port1, port2 } = new this.env.MessageChannel();
    this.serve = port1;
    this.lead = hub.id;
    port2.onmessage = (/** @type {any} */ { data: { from, m } }) => {
      if (this.hub !== hub) return;
      // To one tab over a channel of its own: on the common one each would read all (trap 6).
      let c = channels.get(from);
      const raw = (/** @type {any} */ m) => c.postMessage({ hub: hub.id, m });
      if (!c) channels.set(from, c = new this.env.BroadcastChannel(this.name + from));
      if (m.t === 'hello') hub.attach(m, raw, undefined, true);
      else if (!hub.recv(from, m) && m.t !== 'bye') raw({ t: 'who' });
      if (!hub.tabs.has(from)) hub.left(from);
    };
    this.direct();
    this.ch.postMessage({ lead: hub.id });
    this.hello();
  }
  stepDown() {
    const { hub } = this;
    if (!hub) return;
    hub.close();
    this.hub = this.lead = null;
    this.serve?.close();
    this.ch?.postMessage({ gone: hub.id }); // perhaps we were granted the lead while we could not run, and took it just now
    this.welcomed = false;
    this.follow();
    this.resign?.();
    this.resign = null;
  }
  /** A frozen page must not lead, as it keeps its lock and even answers (trap 4), nor stand in line to lead (trap 20). */
  freeze() {
    if (this.mode !== 'leader' || this.parked) return;
    this.race?.abort();
    this.race = null;
    this.stepDown();
  }
  thaw() {
    if (this.mode !== 'leader' || this.parked || this.hub || this.race) return; // still leading, or never frozen (trap 21)
    this.heard = now();
    this.campaign();
    this.hello();
  }
  /** @param {any} x */
  onChannel(x) {
    if (x.from) return this.hub && x.from !== this.id && (x.to === 'hub' || x.to === this.hub.id) && this.serve.postMessage(x);
    if (this.hub) return;
    if (x.gone) { if (x.gone === this.lead) { this.lead = null; this.hello(); } return; }
    if (x.lead) { this.lead = x.lead; this.heard = now(); return this.hello(); }
    if (!this.lead && x.m.t === 'welcome') this.lead = x.hub;
    if (x.hub !== this.lead) return; // a deposed leader may still talk (trap 4)
    this.heard = now();
    this.onHub(x.m);
  }
  /** Only a visible follower judges: timers of others are throttled. */
  probe() {
    const t = now(), late = t - this.tick > T.probe;
    this.tick = t;
    if (this.slow === 1 && t - this.looked > T.settle) this.look();
    if (this.hub || !this.visible || late) this.heard = t; // we slept, not the leader (trap 5)
    if (t - this.heard < T.probe) this.asked = 0;
    else if (!this.asked) {
      this.asked = t;
      this.post({ t: 'ping' });
      this.leader().then(x => { this.silent = x; });
    } else if (t - this.asked > T.lease * (1 + Math.random())) { // rarely two at a time
      this.heard = t;
      this.depose();
    }
  }
  /** The page that has the lead, by the browser's word. */
  async leader() {
    const { held } = await this.locks.query().catch(() => ({ held: [] }));
    return held.find((/** @type {any} */ l) => l.name === this.name + 'lead')?.clientId;
  }
  /** Not who has taken the lead since we asked: its word is on its way to us. */
  async depose() {
    const { race, silent } = this;
    const same = await this.leader() === silent;
    if (same && this.ch && this.race === race && !this.hub) this.campaign(true);
  }

  // with the Hub

  bye() { this.post({ t: 'bye', a: this.a }); }
  hello() {
    this.welcomed = false;
    this.a = ++this.numbers;
    const subs = [...this.subs.values()].map(s => this.again(s));
    this.post({ t: 'hello', v: PROTO, id: this.id, a: this.a, presence: this.presence, o: this.o, token: this.opts.token !== undefined, vis: this.visible, subs });
  }
  /** Where the application stands; what it has not taken comes again. @param {any} s */
  again(s) {
    s.n = ++this.numbers;
    s.queue = s.queue.filter((/** @type {any} */ x) => x.q === 0);
    s.at = s.position;
    s.done = s.told = s.passed = 0;
    return { t: 'sub', topic: s.topic, n: s.n, pos: s.at, last: s.last, floor: s.floor, sure: s.sure };
  }
  /** @param {any} m */
  onHub(m) {
    if (m.to) { // to all at once, with a number for each
      const mine = m.to.find((/** @type {any} */ x) => x[0] === this.id);
      if (!mine) return;
      m = { ...m, n: mine[1], q: mine[2] };
    }
    if (m.t === 'who') { if (this.welcomed) this.hello(); return; } // it has forgotten us: a worker restarted on the same port (trap 19)
    if (m.t === 'skew') return this.fallBack(); // version skew: alone is always possible
    if ('a' in m && m.a !== this.a) return; // trap 22
    if ('n' in m) return this.onTopic(m);
    switch (m.t) {
      case 'welcome': return this.onWelcome(m);
      case 'state': return this.set(m);
      case 'sent': {
        const p = this.pending.get(m.id);
        if (!p || p.topic !== m.topic) return;
        this.pending.delete(m.id);
        if (m.receipt) return p.resolve(m.receipt);
        return p.reject(new HoldfastError(m.error.code, m.error.message, { ...m.error, id: m.id, topic: m.topic }));
      }
      case 'ask': return this.onAsk(m);
      case 'pong': if (this.mode === 'worker') this.heard = now(); return; // of a leader: see onChannel
      case 'info': return this.asks.answer(m);
      case 'limit': this.env.console?.warn(`holdfast: the server limits this connection: ${m.text}`); return;
      case 'fault': this.counters.faults++; this.fault = m.message; // a throw in a worker is seen nowhere else (trap 19)
    }
  }
  /** @param {any} m */
  onWelcome(m) {
    if (this.welcomed) return;
    this.welcomed = true;
    this.tries = 0;
    this.heard = now();
    this.few = Math.min(32, m.o.window / 2);
    this.env.clearTimeout(this.helloTimer);
    if (m.hub !== this.hubId) this.counters.hubs++;
    this.hubId = m.hub;
    this.hubWatch?.abort();
    if (m.lock && this.locks) {
      this.hubWatch = new AbortController();
      // We act in the lock's callback: timers of a hidden tab take up to a minute (trap 1).
      watch(this.locks, m.lock, 'shared', this.hubWatch.signal, () => { this.dead = m.hub; this.welcomed = false; this.joinWorker(); });
      this.env.clearTimeout(this.settleTimer);
      this.settleTimer = this.env.setTimeout(async () => { // if there are two now, who founded the later one goes to the other
        const alive = await this.alive().catch(() => []);
        if (this.hubId === m.hub && this.welcomed && alive[0] && alive[0].id !== m.hub) this.joinWorker();
      }, T.settle);
    }
    this.set(m.state);
    for (const p of this.pending.values()) this.send(p); // again, with the same ids (trap 3)
  }
  /** As soon as it is known how the Hub is connected: a dial that is under way has its token. */
  reauth() {
    if (!this.renew || !this.welcomed || this.state === 'connecting') return;
    this.renew = false;
    this.post({ t: 'reauth' });
  }
  /** @param {any} m */
  async onAsk(m) {
    const { post } = this, { token } = this.opts;
    try {
      const t = typeof token === 'function' ? await token({ refresh: m.refresh }) : token;
      post({ t: 'token', r: m.r, token: t == null ? undefined : String(t) });
    } catch (e) { post({ t: 'token', r: m.r, error: String(/** @type {any} */ (e)?.message ?? e) }); }
  }
  /** @param {any} m */
  onTopic(m) {
    const s = this.subs.get(m.topic);
    if (s?.n !== m.n) return;
    switch (m.t) {
      case 'at': s.sure = true; s.at ??= m.pos; s.position ??= m.pos; return s.live();
      case 'ended':
        if (m.code === 'bad_position' && (s.position || s.floor)) { // perhaps kept for long: from now on, and say so
          s.position = s.floor = null;
          this.post(this.again(s));
          s.queue.push({ q: 0, reset: { reason: m.code, missed: 0 } });
          break;
        }
        return this.end(s, new HoldfastError(m.code, m.message, { topic: s.topic }));
      case 'entries':
        if (m.prev !== s.at) { this.counters.broken++; return this.post(this.again(s)); } // nothing is lost or repeated in silence
        s.at = m.pos;
        m.list.forEach((/** @type {string} */ text, /** @type {number} */ i) => s.queue.push({ q: m.q - m.list.length + 1 + i, text }));
        break;
      case 'reset': s.at = m.base; s.queue.push({ q: m.q, reset: m }); break;
      case 'ephemeral': s.queue.push({ text: m.s });
    }
    this.flow(s);
  }
  /** Hands over what the application takes: a reader one at a time, listeners at once. What it does not take is not acked.
   * @param {any} s */
  flow(s) {
    while (s.queue.length && !s.over && (s.pull ? s.wait.length : this.live || s.out.live)) this.deliver(s);
  }
  /** @param {any} s */
  deliver(s) {
    const { q, text, reset } = s.queue.shift(), { topic } = s;
    /** @type {any} */
    let event = null;
    if (reset) {
      this.counters.resets++;
      s.position = reset.base ?? s.position;
      event = { type: 'reset', topic, reason: reset.reason, missed: reset.missed, snapshot: reset.s && value(JSON.parse(reset.s)), pos: reset.base ?? '' };
    } else {
      const f = JSON.parse(text);
      if (q) s.position = f.pos;
      if (loaded(f)) event = q ? { type: 'message', topic, data: value(f), pos: f.pos, at: f.at ?? 0, key: f.key ?? '' } : { type: 'ephemeral', topic, data: value(f) };
      if (event && q) this.counters.received++;
    }
    if (q) s.done = q; else s.passed++;
    if (s.done - s.told >= this.few || s.passed >= EPHEMERAL / 2) this.ack(s); // at once: timers may be throttled (trap 7)
    else this.ackTimer ??= this.env.setTimeout(() => { this.ackTimer = undefined; for (const x of this.subs.values()) this.ack(x); }, T.ack);
    if (!event) return;
    s.wait.shift()?.resolve({ value: event, done: false });
    s.out.dispatchEvent(new CustomEvent(event.type, { detail: event }));
    if (!this.closed) this.emit(event.type, event);
  }
  /** @param {any} s */
  ack(s) {
    if (s.done === s.told && !s.passed) return;
    this.post({ t: 'ack', topic: s.topic, n: s.n, q: s.done, passed: s.passed });
    s.told = s.done;
    s.passed = 0;
  }

  // for the application

  /** @param {string} topic @param {any} o */
  subscribe(topic, o) {
    o ??= {};
    const last = o.last ?? 0;
    check('topic', topic, 255, 1);
    // Of one tab, but the server answers all.
    for (const field of ['from', 'floor']) if (!isPosition(o[field] ?? '')) wrong(field, 'position');
    whole('last', last, 0);
    if (this.closed) throw new HoldfastError('closed');
    const old = this.subs.get(topic);
    if (old) return old.out;
    /** @type {any} */
    const s = { topic, position: o.from || this.load()[topic] || null, last, floor: o.floor, queue: [], wait: [] };
    s.ready = new Promise((live, failed) => { s.live = live; s.failed = failed; });
    s.ready.catch(() => {});
    s.out = new Subscription(this, s);
    this.subs.set(topic, s);
    const sub = this.again(s);
    if (this.welcomed) this.post(sub); // else the hello has it: say it again if that is out
    else if (this.a && !this.parked) this.post(sub);
    return s.out;
  }
  /** @param {any} s @param {any} [error] */
  end(s, error = null) {
    if (s.over) return;
    s.over = true;
    s.error = error;
    this.save();
    s.queue = [];
    if (this.subs.get(s.topic) === s) this.subs.delete(s.topic);
    if (!error) this.post({ t: 'unsub', topic: s.topic, n: s.n });
    s.failed(error ?? new HoldfastError('closed'));
    for (const w of s.wait.splice(0)) if (error) w.reject(error); else w.resolve({ value: undefined, done: true });
    if (error) this.emit('error', { topic: s.topic, error });
  }
  /** @param {string} topic @param {any} data @param {any} o */
  async publish(topic, data, o) {
    const { id = `${this.id}-${rid()}`, key = '' } = o ?? {};
    check('topic', topic, 255, 1); check('id', id, 128, 1); check('key', key, 255, 0);
    const s = encode({ t: 'publish', id, topic, key, ...payload(data) });
    const code = this.closed ? 'closed' : this.state === 'denied' ? 'denied' : this.pending.size >= 1024 ? 'queue_full' : '';
    if (code) throw new HoldfastError(code, '', { outcome: 'not_stored', id, topic });
    const old = this.pending.get(id);
    if (old?.topic === topic) return old.promise;
    if (old) wrong('id', 'other than one under way to another topic');
    /** @type {any} */
    const p = { id, topic, s, born: Date.now(), sent: false };
    p.promise = new Promise((resolve, reject) => { p.resolve = resolve; p.reject = reject; });
    this.pending.set(id, p);
    if (this.welcomed) this.send(p);
    this.age();
    return p.promise;
  }
  /** @param {any} p */
  send(p) {
    this.post({ t: 'send', id: p.id, topic: p.topic, s: p.s, born: p.born, doubt: p.sent });
    p.sent = true;
  }
  /** Publishes expire: the server forgets ids after two minutes, and would then store one twice. */
  age() {
    this.ageTimer ??= this.env.setTimeout(() => {
      this.ageTimer = undefined;
      for (const p of this.pending.values()) {
        if (Date.now() - p.born < T.age) continue;
        this.post({ t: 'drop', id: p.id, topic: p.topic });
        this.fail('expired', '', p);
      }
      if (this.pending.size) this.age();
    }, T.ages);
  }
  /** @param {string} code @param {string} [message] @param {any} [one] */
  fail(code, message, one) {
    for (const p of one ? [one] : [...this.pending.values()]) {
      this.pending.delete(p.id);
      p.reject(new HoldfastError(code, message, { outcome: p.sent ? 'unknown' : 'not_stored', id: p.id, topic: p.topic }));
    }
  }
  async info() {
    const hub = this.welcomed ? (await this.asks.ask(T.info, r => this.post({ t: 'info', r })))?.info : null;
    /** @type {any} */
    const topics = { __proto__: null };
    for (const s of this.subs.values()) topics[s.topic] = { position: s.position, received: s.at, waiting: s.queue.length };
    return { mode: this.mode, state: this.state, why: this.detail.why ?? '', tab: this.id, build: BUILD, proto: PROTO, leads: this.mode === 'leader' && !!this.hub, topics, publishing: this.pending.size, counters: { ...this.counters }, fault: this.fault, hub };
  }
}

/** @param {string} field @param {any} s @param {number} max @param {number} min */
function check(field, s, max, min) {
  if (typeof s !== 'string' || /\p{Surrogate}/u.test(s) || bytes(s) > max || s.length < min) wrong(field, `string of ${min} to ${max} bytes`);
}
/** @param {string} field @param {any} n @param {number} min */
function whole(field, n, min) { if (!Number.isInteger(n) || n < min) wrong(field, `whole number from ${min}`); }
/** @param {string} field @param {any} v @param {any[]} of */
function one(field, v, of) { if (!of.includes(v)) wrong(field, `one of ${of.join(' ')}`); }

// ---- what an application sees

/**
 * @typedef {object} Options All tabs of a user should give the same; those of the first count.
 * @property {'auto' | 'worker' | 'leader' | 'none'} [share] how tabs share the connection: in a SharedWorker, in an elected tab,
 *   not at all; auto is the first of these that works
 * @property {string} [key] of the user, or the session. **Tabs with the same url and key share one connection and its
 *   rights**: without a key that is everybody who logs in with this browser
 * @property {string | ((how: {refresh: boolean}) => string | null | undefined | Promise<string | null | undefined>)} [token] credentials,
 *   for when there is no cookie; a function is asked before every dial, with refresh when the last were refused
 * @property {readonly string[]} [topics] subscribed to from the beginning
 * @property {Backoff} [backoff]
 * @property {number} [ring] how many messages of each topic are kept for tabs that are slower than others (1000)
 * @property {number} [window] how many may be on their way to a tab (256)
 * @property {false | 'session' | 'local'} [keep] where positions are kept, of up to 100 topics, so that a page goes on where
 *   it stood after a reload: session is of the tab, local of all tabs, where the one stood that wrote last. Connections of one
 *   page with the same url and key share them
 * @property {any} [workerUrl] of this file, for bundles: a string, a URL, or what a policy of Trusted Types has made of it
 *
 * @typedef {object} Message
 * @property {'message'} type
 * @property {string} topic
 * @property {any} data what JSON says, or a string that was none, or a Uint8Array
 * @property {string} pos to go on after this message
 * @property {number} at when it was stored, in milliseconds since 1970; 0 if that is not known
 * @property {string} key
 *
 * @typedef {object} Reset What follows does not follow what came before: there is no other way to miss a message.
 * @property {'reset'} type
 * @property {string} topic
 * @property {string} reason with trimmed, lagging and floor messages are missing; with any other what was built from the messages
 *   so far is void
 * @property {number} missed how many, 0 if that is not known
 * @property {any} snapshot takes the place of all before, if there is one; else undefined
 * @property {string} pos
 *
 * @typedef {object} Ephemeral
 * @property {'ephemeral'} type
 * @property {string} topic
 * @property {any} data
 *
 * @typedef {Message | Reset | Ephemeral} Event
 *
 * @typedef {object} Receipt
 * @property {'committed' | 'duplicate' | 'queued'} outcome queued: it is not stored yet. The server keeps it until it can be
 *   stored, but not for ever: with the default Outbox for a minute, and not over a restart. Nothing more is said about it
 * @property {string} [pos] where it is stored; not if queued
 * @property {string} id
 *
 * @typedef {'connecting' | 'open' | 'waiting' | 'denied' | 'closed'} State denied: the server does not want us; reauth and
 *   reconnect try once more
 */

/** Knows when somebody listens for messages: before that they are not taken. */
class Listened extends EventTarget {
  /** @protected */ live = false;
  /** @param {string} type @param {((e: CustomEvent) => void) | EventListenerObject | null} listener @param {boolean | AddEventListenerOptions} [options] */
  addEventListener(type, listener, options) {
    super.addEventListener(type, /** @type {any} */ (listener), options);
    if (['message', 'reset', 'ephemeral'].includes(type)) { this.live = true; queueMicrotask(() => this.listened()); }
  }
  /** For its types. @param {string} type @param {((e: CustomEvent) => void) | EventListenerObject | null} listener @param {boolean | EventListenerOptions} [options] */
  removeEventListener(type, listener, options) { super.removeEventListener(type, /** @type {any} */ (listener), options); }
  /** @protected */
  listened() {}
}

/**
 * The reading of a topic: read it with `for await`, or listen to `message`, `reset` and `ephemeral`, whose detail is the
 * event, here or at the Connection. Until one of these is done a window of messages is held, and none is lost. Only one
 * loop reads; to leave it ends the subscription.
 */
export class Subscription extends Listened {
  #tab; #s;
  /** @param {any} tab @param {any} s */
  constructor(tab, s) { super(); this.#tab = tab; this.#s = s; }
  /** @type {string} */
  get topic() { return this.#s.topic; }
  /** After which event the application stands: give it as `from` to go on there. Null until that is known. @type {string | null} */
  get position() { return this.#s.position; }
  /** Resolves when nothing that is published from then on is missed. @type {Promise<void>} */
  get ready() { return this.#s.ready; }
  /** @protected */
  listened() { this.#tab.flow(this.#s); }
  close() { this.#tab.end(this.#s); }
  /** @returns {AsyncIterableIterator<Event>} */
  [Symbol.asyncIterator]() {
    const tab = this.#tab, s = this.#s;
    s.pull = true;
    return {
      next: () => new Promise((resolve, reject) => {
        if (s.over) return s.error ? reject(s.error) : resolve({ value: undefined, done: true });
        s.wait.push({ resolve, reject });
        tab.flow(s);
      }),
      return: async () => { this.close(); return { value: undefined, done: true }; },
      [Symbol.asyncIterator]() { return this; },
    };
  }
}

/**
 * Events, with what they are about in `detail`: `message`, `reset` and `ephemeral` of all subscriptions, `state`
 * ({state, in, why, code, mode, hub}: why the connection was lost, and the close code. Code 4401 is told at once when the
 * user is logged out or a token has expired; it stays until the server lets the page in again or denies it), `update` (a page of another build of this file was opened), `error` ({topic,
 * error}: a subscription has ended).
 */
export class Connection extends Listened {
  #tab;
  /** @param {string | URL} url @param {Options} [options] @param {any} [env] for tests */
  constructor(url, options = {}, env = globalThis) {
    super();
    this.#tab = new Tab(String(url), options ?? {}, env, (type, detail) => this.dispatchEvent(new CustomEvent(type, { detail })));
    try {
      const topics = options?.topics ?? [];
      if (!Array.isArray(topics)) wrong('topics', 'array');
      for (const topic of topics) this.subscribe(topic);
    } catch (e) { this.close(); throw e; } // nobody would have it
  }
  /** @protected */
  listened() { this.#tab.live = true; for (const s of [...this.#tab.subs.values()]) this.#tab.flow(s); }
  /** open: the server has welcomed us. @type {State} */
  get state() { return /** @type {State} */ (this.#tab.state); }
  /** Without from and last, from now on; with `keep`, from where the page stood. A topic that is subscribed to already: the
   * same Subscription. @param {string} topic
   * @param {{from?: string | null, last?: number, floor?: string}} [options] from: a position; last: how many of the newest to
   *   begin with; floor: a position up to which nothing is wanted (heeded if all tabs give the same)
   * @returns {Subscription} */
  subscribe(topic, options) { return this.#tab.subscribe(topic, options); }
  /** @param {string} topic */
  unsubscribe(topic) { this.#tab.subs.get(topic)?.out.close(); }
  /** Resolves when the server has it, however many connections, workers and leaders that takes, and it is stored once. Rejects
   * with a HoldfastError after a minute, or when the server refuses. @param {string} topic
   * @param {any} data a JSON value, or a Uint8Array @param {{id?: string, key?: string}} [options] @returns {Promise<Receipt>} */
  publish(topic, data, options) { return this.#tab.publish(topic, data, options); }
  /** To those who are there now; it may get lost. @param {string} topic @param {any} data */
  ephemeral(topic, data) {
    check('topic', topic, 255, 1);
    this.#tab.post({ t: 'ephemeral', s: encode({ t: 'ephemeral', topic, ...payload(data) }) });
  }
  /** Asks for a new token and shows it to the server, before the old one expires or after. */
  reauth() { this.#tab.renew = true; this.#tab.reauth(); }
  /** Dials anew, for all tabs. */
  reconnect() { this.#tab.post({ t: 'reconnect' }); }
  /** For people and support: mode, state, why it was dropped last, tabs, cursors, counters. @returns {Promise<any>} */
  info() { return this.#tab.info(); }
  /** Publishes that are not answered fail. */
  close() { this.#tab.close(); }
}

/**
 * @param {string | URL} url of the gateway: ws, wss, http, https or relative to the page
 * @param {Options} [options]
 * @returns {Connection}
 */
export function connect(url, options) { return new Connection(url, options); }

/** For this package's tests. @internal @type {any} */
export const internal = { FRAMES, Fan, Link, Hub, Loop, Tab, T, PROTO, decode, encode, payload, value, identity, hold, watch, serveWorker, clock: (/** @type {() => number} */ f) => { now = f; } };

// ---- the worker

/** @param {any} scope a SharedWorkerGlobalScope */
function serveWorker(scope) {
  const hub = new Hub(scope), { locks } = scope.navigator ?? {};
  const lock = `hf:hub:${BUILD}|${scope.name}#${hub.id}`;
  const held = locks && hold(locks, lock).catch(() => null);
  scope.onconnect = async (/** @type {any} */ e) => {
    const port = e.ports[0], raw = (/** @type {any} */ m) => port.postMessage(m);
    const ours = await held; // nothing is answered before: it would be taken for dead (trap 1)
    /** @type {string | undefined} */
    let tab;
    port.onmessage = (/** @type {any} */ { data: m }) => {
      try {
        if (m.t === 'hello') { tab = m.id; hub.attach(m, raw, ours ? lock : undefined); } else if (!(tab && hub.recv(tab, m)) && m.t !== 'bye') raw({ t: 'who' }); // trap 19
      } catch (x) { raw({ t: 'fault', message: String(x) }); } // trap 19
    };
    raw({ t: 'who' }); // perhaps it is a port from before a restart (trap 19)
  };
}

// In a bundle this runs in whatever worker the application has: only ours is ours (trap 25). What it may connect to says
// the response that it came with, not the page (trap 16): see the Go handler, which also says how long it is kept (trap 24).
const scope = /** @type {any} */ (globalThis);
if (scope.SharedWorkerGlobalScope && scope instanceof scope.SharedWorkerGlobalScope && scope.name.startsWith(PREFIX)) serveWorker(scope);
