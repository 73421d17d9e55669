// What the tests run in: pages, workers and Web Locks that can be killed, and a gateway with a real log.
import { webcrypto } from 'node:crypto';
import { internal } from '../holdfast.js';

// Browsers and Node.js 20 have these.
globalThis.crypto ??= webcrypto;
globalThis.CustomEvent ??= class extends Event { constructor(type, { detail } = {}) { super(type); this.detail = detail; } };

export const sleep = ms => new Promise(r => setTimeout(r, ms));
/** Waits until f returns something that is true, and returns that. */
export async function until(f, what = String(f), ms = 5000) {
  const end = Date.now() + ms;
  for (;;) {
    const x = await f();
    if (x) return x;
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what}`);
    await sleep(2);
  }
}

/** navigator.locks of an origin. client() is that of one page or worker. */
export class Locks {
  all = []; // in the order of requests: {owner, name, mode, held, callback, resolve, reject}
  client(owner) {
    return {
      request: (name, options, callback = options) => new Promise((resolve, reject) => {
        if (owner.dead) return;
        const { mode = 'exclusive', signal, steal } = options;
        const l = { owner, name, mode, callback, resolve, reject, held: false };
        if (steal && signal) return reject(new DOMException('steal and signal', 'NotSupportedError'));
        if (signal?.aborted) return reject(signal.reason);
        signal?.addEventListener('abort', () => { if (!l.held && this.all.includes(l)) { this.drop(l); reject(signal.reason); } });
        if (steal) {
          for (const x of this.all.filter(x => x.name === name && x.held)) { this.drop(x); x.owner.run(() => x.reject(new DOMException('stolen', 'AbortError'))); }
          this.all.unshift(l);
        } else this.all.push(l);
        this.grant(name);
      }),
      query: async () => {
        const show = held => this.all.filter(l => l.held === held).map(({ name, mode, owner }) => ({ name, mode, clientId: owner.id }));
        return { held: show(true), pending: show(false) };
      },
    };
  }
  drop(l) {
    const i = this.all.indexOf(l);
    if (i >= 0) this.all.splice(i, 1);
    setImmediate(() => this.grant(l.name));
  }
  grant(name) {
    for (const l of this.all.filter(l => l.name === name)) {
      const before = this.all.slice(0, this.all.indexOf(l)).filter(x => x.name === name);
      if (l.held) continue;
      if (before.some(x => x.mode === 'exclusive' || l.mode === 'exclusive')) return;
      if (this.all.some(x => x.name === name && x.held && (x.mode === 'exclusive' || l.mode === 'exclusive'))) return;
      l.held = true;
      setImmediate(() => l.owner.run(async () => { // a task of its own: who is frozen has the lock, and does not know
        try { const x = await l.callback({ name, mode: l.mode }); if (this.all.includes(l)) { this.drop(l); l.resolve(x); } } catch (e) { this.drop(l); l.reject(e); }
      }));
    }
  }
  crash(owner) { for (const l of this.all.filter(l => l.owner === owner)) this.drop(l); }
}

let ids = 0;

/** A page or a worker: what is global there. */
class Agent extends EventTarget {
  dead = false; frozen = false; id = `agent${++ids}`; timers = new Set(); sockets = new Set(); channels = new Set(); held = [];
  constructor(world, { locks = true } = {}) {
    super();
    const agent = this;
    this.world = world;
    this.navigator = locks ? { locks: world.locks.client(this) } : {};
    this.location = { href: 'http://app.test/' };
    this.performance = { timeOrigin: Date.now() };
    this.lines = [];
    this.console = { warn: line => this.lines.push(line) };
    this.WebSocket = class extends Socket { constructor(url, protocol) { super(agent, url, protocol); } };
    this.BroadcastChannel = class extends BroadcastChannel {
      constructor(name) { super(world.name + name); agent.channels.add(this); this.unref(); }
      set onmessage(f) { super.onmessage = e => { if (!agent.dead) f(e); }; } // goes on when frozen
      postMessage(m) { if (!agent.dead) super.postMessage(m); }
      close() { agent.channels.delete(this); super.close(); }
    };
    this.MessageChannel = class { // rests when frozen
      constructor() {
        const { port1, port2 } = new MessageChannel();
        for (const p of [port1, port2]) { wrap(p, agent); p.unref(); }
        Object.assign(this, { port1, port2 });
      }
    };
    for (const kind of ['Timeout', 'Interval']) {
      this[`set${kind}`] = (f, ms) => {
        const t = globalThis[`set${kind}`](() => this.run(() => { if (!this.timers.has(t)) return; if (kind === 'Timeout') this.timers.delete(t); f(); }), ms);
        this.timers.add(t);
        return t;
      };
      this[`clear${kind}`] = t => { this.timers.delete(t); globalThis[`clear${kind}`](t); };
    }
  }
  /** Runs f as a task of this agent: never if it is dead, later if it is frozen. */
  run(f) { if (this.dead) return; if (this.frozen) this.held.push(f); else f(); }
  /** No event says so to anybody. */
  kill() {
    this.dead = true;
    for (const t of this.timers) { clearTimeout(t); clearInterval(t); }
    for (const c of [...this.channels]) c.close();
    for (const s of [...this.sockets]) s.cut();
    this.world.locks.crash(this);
  }
}

/** A tab's page. */
export class Page extends Agent {
  constructor(world, { worker = true, leader = true, ...o } = {}) {
    super(world, o);
    const page = this;
    this.document = new EventTarget();
    this.document.visibilityState = 'visible';
    const storage = (m = new Map()) => ({ getItem: k => m.get(k) ?? null, setItem: (k, v) => m.set(k, v) });
    this.sessionStorage = o.sessionStorage ?? storage();
    this.localStorage = world.localStorage ??= storage();
    this.ports = new Set();
    if (!leader) this.BroadcastChannel = undefined;
    if (worker) this.SharedWorker = class {
      constructor(url, { name }) {
        const { port1, port2 } = new MessageChannel();
        this.port = port1;
        port1.unref(); port2.unref();
        page.ports.add(port1);
        wrap(port1, page);
        world.connect(String(url), name, port2, this);
      }
    };
  }
  kill() { super.kill(); for (const p of this.ports) p.close(); }
  show(visible) {
    this.document.visibilityState = visible ? 'visible' : 'hidden';
    this.document.dispatchEvent(new Event('visibilitychange'));
  }
  freeze(event = true) {
    this.show(false);
    if (event) this.document.dispatchEvent(new Event('freeze'));
    this.frozen = true;
  }
  resume() {
    this.frozen = false;
    for (const s of [...this.sockets]) s.cut(); // as Chromium does
    this.held.splice(0).forEach(f => this.run(f));
    this.document.dispatchEvent(new Event('resume'));
    this.show(true);
  }
  hide() { this.dispatchEvent(Object.assign(new Event('pagehide'), { persisted: true })); }
  back() { this.dispatchEvent(Object.assign(new Event('pageshow'), { persisted: true })); }
}

/** What comes to a port is a task of the agent that has it. */
function wrap(port, agent) {
  const post = MessagePort.prototype.postMessage.bind(port);
  port.postMessage = m => { if (!agent.dead) post(m); };
  let f;
  Object.defineProperty(port, 'onmessage', {
    configurable: true,
    get: () => f,
    set: g => { f = g; port.removeAllListeners?.('message'); port.on('message', data => agent.run(() => f({ data }))); port.unref(); },
  });
}

export class World {
  locks = new Locks(); workers = new Map(); name = `world${++ids}|`; hung = new Set(); pages = []; blocked = null;
  constructor(server = new Gateway()) { this.server = server; }
  page(o) { const p = new Page(this, o); this.pages.push(p); return p; }
  connect(url, name, port, handle) {
    if (this.blocked) return void setImmediate(() => this.blocked && handle.onerror?.(new Event('error')));
    const key = url + ' ' + name;
    if (this.hung.has(key)) return; // as Firefox: nothing, ever
    const w = this.workers.get(key) ?? this.start(key, name, url);
    this.link(w, port);
  }
  link(w, port) {
    wrap(port, w);
    w.ports.push(port);
    setImmediate(() => w.run(() => w.onconnect({ ports: [port] })));
  }
  start(key, name, url) {
    const w = new Agent(this, { locks: this.pages[0].navigator.locks !== undefined });
    Object.assign(w, { name, ports: [] });
    this.workers.set(key, w);
    this.started = (this.started ?? 0) + 1;
    (this.builds?.[url] ?? internal).serveWorker(w);
    return w;
  }
  /** As WebKit may do: another worker has the same ports, and knows nothing. */
  restartWorker() {
    for (const [key, old] of [...this.workers]) {
      const w = this.start(key, old.name);
      old.kill();
      for (const p of old.ports) { p.removeAllListeners('message'); this.link(w, p); }
    }
  }
  get worker() { return [...this.workers.values()][0]; }
  /** Kills the process of the workers; hang: their names are of no use any more. */
  killWorker(hang = false) {
    for (const [key, w] of this.workers) {
      w.kill();
      for (const p of w.ports) p.close();
      if (hang) this.hung.add(key);
    }
    this.workers.clear();
  }
  end() {
    for (const p of this.pages) if (!p.dead) p.kill();
    this.killWorker();
    this.server.end?.();
  }
}

/** The client's end of a connection. Both directions are in order, and take a task. */
class Socket {
  readyState = 0; bufferedAmount = 0; protocol = '';
  constructor(agent, url, protocol) {
    if (!/^wss?:/.test(url)) throw new DOMException('URL', 'SyntaxError');
    this.agent = agent; this.url = url; this.asked = protocol;
    agent.sockets.add(this);
    agent.world.server.dials++;
    setImmediate(() => agent.world.server.accept(this));
  }
  // by the client
  send(text) {
    if (this.readyState === 0) throw new DOMException('connecting', 'InvalidStateError');
    if (this.readyState === 1) setImmediate(() => { if (this.conn) this.agent.world.server.receive(this.conn, text); });
  }
  close() {
    this.readyState = 3;
    this.agent.sockets.delete(this);
    setImmediate(() => this.agent.world.server.gone(this));
  }
  cut() { if (this.readyState < 2) { this.close(); this.event('onclose', { code: 1006, reason: '' }); } }
  // by the server
  event(type, e) { setImmediate(() => this.agent.run(() => this[type]?.(e))); }
  open() { setImmediate(() => this.agent.run(() => { if (this.readyState === 0) { this.readyState = 1; this.protocol = this.asked; this.onopen?.({}); } })); }
  push(f) { if (!this.agent.frozen) setImmediate(() => this.agent.run(() => { if (this.readyState === 1) this.onmessage?.({ data: typeof f === 'string' ? f : JSON.stringify(f) }); })); }
  end(code, reason = '') {
    setImmediate(() => this.agent.run(() => {
      if (this.readyState === 3) return;
      this.readyState = 3;
      this.agent.sockets.delete(this);
      this.onclose?.({ code, reason });
    }));
  }
}

const depth = v => typeof v === 'object' && v ? 1 + Math.max(0, ...Object.values(v).map(depth)) : 0;

/** A gateway in a few lines, with a log for each topic. */
export class Gateway {
  conns = new Set(); logs = new Map(); dials = 0; most = 0; up = true; ids = new Map(); committed = 0; duplicates = 0; subscribes = []; frames = []; ackLoss = 0; beats = 0;
  welcome = { beat: 25000, timeout: 10000, limits: { message: 32768, topics: 128, pending: 64, history: 1000 } };
  log(topic) {
    let l = this.logs.get(topic);
    if (!l) { l = { entries: [], kept: 0, start: `start-${topic.replace(/\W/g, '_')}-${Math.random().toString(36).slice(2, 8)}`, at: new Map() }; l.at.set(l.start, 0); this.logs.set(topic, l); }
    return l;
  }
  pos(l, n) { return n ? l.entries[n - 1].pos : l.start; }
  publish(topic, data, extra = {}) {
    const l = this.log(topic), e = { pos: `P${Math.random().toString(36).slice(2)}${l.entries.length}`, at: Date.now(), data, ...extra };
    l.entries.push(e);
    l.at.set(e.pos, l.entries.length);
    for (const c of this.conns) this.pump(c, topic);
    return e.pos;
  }
  trim(topic, kept) { const l = this.log(topic); l.kept = Math.max(l.kept, kept); }
  accept(ws) {
    if (!this.up) return ws.end(1006);
    const conn = { ws, subs: new Map(), open: false, id: Math.random().toString(36).slice(2) };
    ws.conn = conn;
    this.conns.add(conn);
    this.most = Math.max(this.most, this.conns.size);
    ws.open();
  }
  gone(ws) { this.conns.delete(ws.conn); ws.conn = null; }
  /** Ends all connections, or one. */
  drop(code = 1006, only, reason) { for (const c of only ? [only] : [...this.conns]) { this.gone(c.ws); c.ws.end(code, reason); } }
  receive(c, text) {
    if (!this.conns.has(c) || this.dumb) return;
    const f = internal.decode(text);
    if (depth(JSON.parse(text)) > 64) return this.drop(4400, c);
    this.frames.push(f);
    if (f.t === 'hello') {
      this.hello = f;
      if (this.refuse) { const code = this.refuse(f); if (code) { c.ws.push({ t: 'error', code: 'unauthenticated' }); return this.drop(code, c); } }
      c.open = true;
      return c.ws.push({ t: 'welcome', v: 1, conn: c.id, ...this.welcome });
    }
    if (!c.open) throw new Error(`${f.t} before welcome`);
    const l = f.topic && this.log(f.topic);
    switch (f.t) {
      case 'ping': c.ws.push({ t: 'pong' }); break;
      case 'beat': this.beats++; break;
      case 'auth': this.hello = f; c.ws.push({ t: 'ok', ref: f.ref }); break;
      case 'ephemeral': for (const x of this.conns) if (x.subs.has(f.topic)) x.ws.push(f); break;
      case 'unsubscribe': c.subs.delete(f.topic); c.ws.push({ t: 'unsubscribed', topic: f.topic, ref: f.ref }); break;
      case 'subscribe': this.subscribe(c, f, l); break;
      case 'publish': {
        const answer = this.answer?.(f);
        if (answer) { c.ws.push({ id: f.id, ...answer }); break; }
        const key = f.topic + ' ' + f.id, known = this.ids.get(key);
        if (known) this.duplicates++; else { this.ids.set(key, this.publish(f.topic, f.data ?? f.text ?? f.bin, f.key ? { key: f.key } : {})); this.committed++; }
        if (Math.random() < this.ackLoss) return this.drop(1006, c); // stored, and the answer is lost
        c.ws.push({ t: 'ack', id: f.id, outcome: known ? 'duplicate' : 'committed', pos: this.ids.get(key) });
      }
    }
  }
  subscribe(c, f, l) {
    this.subscribes.push(f);
    const refused = this.forbid?.(f);
    if (refused) { c.subs.delete(f.topic); return c.ws.push({ t: 'error', topic: f.topic, ref: f.ref, ...refused }); }
    const head = l.entries.length, answer = { t: 'subscribed', topic: f.topic, ref: f.ref, head: this.pos(l, head) };
    let at = head, reset;
    if (f.from?.length) {
      const known = f.from.map(pos => [pos, l.at.get(pos) ?? -1]).sort((a, b) => a[1] - b[1]);
      const ok = known.find(([, n]) => n >= l.kept), last = known.at(-1);
      at = ok ? ok[1] : l.kept;
      const gap = ([pos, n]) => ({ pos, reason: n < 0 ? 'forked' : 'trimmed', missed: n < 0 ? 0 : at - n });
      answer.late = known.filter(([, n]) => n < l.kept).map(gap);
      if (!ok) { // of the last one; the others say how much more they have missed
        reset = { t: 'reset', topic: f.topic, base: this.pos(l, at), ...gap(last), pos: undefined };
        answer.late = answer.late.filter(x => x.pos !== last[0]).map(x => ({ ...x, missed: x.missed && x.missed - reset.missed }));
      }
    } else at = Math.max(l.kept, head - (f.last ?? 0));
    if (!reset) answer.base = this.pos(l, at);
    c.ws.push(answer);
    if (reset) c.ws.push(reset);
    c.subs.set(f.topic, { at, ref: f.ref, pumping: false });
    this.pump(c, f.topic);
  }
  pump(c, topic) {
    const s = c.subs.get(topic), l = this.log(topic);
    if (!s || s.pumping || !this.conns.has(c) || this.dumb) return;
    s.pumping = true;
    const step = () => {
      s.pumping = false;
      if (c.subs.get(topic) !== s || !this.conns.has(c) || s.at >= l.entries.length) return;
      const to = Math.min(l.entries.length, s.at + 16);
      c.ws.push({ t: 'entries', topic, prev: this.pos(l, s.at), entries: l.entries.slice(s.at, to) });
      s.at = to;
      this.pump(c, topic);
    };
    setImmediate(step);
  }
}
