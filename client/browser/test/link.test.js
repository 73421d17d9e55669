// The WebSocket, against a server that does what a test says, in virtual time.
import test, { beforeEach, afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { internal } from '../holdfast.js';

const { Link, T } = internal;
let sockets, link, events, token, random, realRandom;
class Socket {
  sent = []; closed = false;
  constructor(url, protocol) { Object.assign(this, { url, protocol }); sockets.push(this); if (/bad/.test(url)) throw new SyntaxError('bad URL'); }
  send(s) { if (!this.up) throw new Error('not open'); this.sent.push(JSON.parse(s)); }
  close() { this.closed = true; }
  open() { this.up = true; this.onopen?.({}); }
  push(f) { this.onmessage?.({ data: typeof f === 'string' ? f : JSON.stringify(f) }); }
  end(code, reason = '') { const f = this.onclose; this.onclose = null; f?.({ code, reason }); }
  welcome(more = {}) { this.open(); this.push({ t: 'welcome', v: 1, conn: 'c', beat: 25000, timeout: 10000, ...more }); }
}
/** Virtual time: tick jumps, then runs what is due. (The mock timers of Node.js 18 and 20 differ.) */
class Clock {
  now = 1e12; timers = new Map(); ids = 0;
  setTimeout(f, ms = 0) { this.timers.set(++this.ids, { f, at: this.now + Math.max(ms, 0) }); return this.ids; }
  clearTimeout(id) { this.timers.delete(id); }
  tick(ms) {
    this.now += ms;
    for (;;) {
      const [id, due] = [...this.timers].filter(([, t]) => t.at <= this.now).sort((a, b) => a[1].at - b[1].at || a[0] - b[0])[0] ?? [];
      if (!due) return;
      this.timers.delete(id);
      due.f();
    }
  }
}
let clock;
const tick = async ms => { clock.tick(ms); await new Promise(r => process.nextTick(r)); };
const last = () => sockets.at(-1);
async function make(o = {}, url = 'ws://x/') {
  const env = { WebSocket: Socket, setTimeout: (f, ms) => clock.setTimeout(f, ms), clearTimeout: t => clock.clearTimeout(t) };
  events = [];
  link = new Link(url, env, o, { token: async r => { events.push(`token ${r}`); return token(r); }, state: () => events.push(link.state), up() {}, down() { events.push('lost'); }, lost() {}, frame: f => events.push(f.t) });
  link.start();
  await tick(0);
}
beforeEach(() => {
  clock = new Clock();
  internal.clock(() => clock.now);
  realRandom = Math.random;
  random = 1 - Number.EPSILON;
  Math.random = () => random;
  sockets = []; token = () => undefined;
});
afterEach(() => { link?.stop(); Math.random = realRandom; });

test('it dials at once, says hello with beats, and is open with the welcome only', async () => {
  token = () => 'tok';
  await make();
  assert.deepEqual([last().url, last().protocol], ['ws://x/', 'holdfast.v1']);
  last().open();
  assert.deepEqual(last().sent, [{ t: 'hello', v: 1, token: 'tok', beats: true }]);
  assert.equal(link.state, 'connecting', 'onopen means nothing');
  link.send({ t: 'subscribe', topic: 'x' });
  assert.equal(last().sent.length, 1, 'nothing before the welcome');
  last().push({ t: 'welcome', v: 1, conn: 'c', limits: { pending: 3 } });
  assert.equal(link.state, 'open');
  assert.deepEqual(link.limits, { pending: 3 });
});

test('no welcome, late welcome: dialled anew (trap 10)', async () => {
  await make();
  last().open();
  await tick(T.dial - 1);
  assert.equal(link.state, 'connecting');
  await tick(1);
  assert.equal(link.state, 'waiting');
  assert.ok(sockets[0].closed);
  sockets[0].push({ t: 'welcome', v: 1 });
  assert.equal(link.state, 'waiting', 'too late');
  await tick(500);
  assert.equal(sockets.length, 2);
});

test('the deadline of a dial grows with the window', async () => {
  await make({ base: 20000 });
  last().end(1006);
  await tick(20000);
  await tick(T.dial + 4999);
  assert.equal(link.state, 'connecting');
  await tick(1);
  assert.equal(link.state, 'waiting');
});

test('close codes: what is final and what is not', async () => {
  for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 1013, 1014, 3000, 4000, 4001, 4429, 4430, 4999]) {
    await make();
    last().welcome();
    last().end(code, 'why');
    assert.equal(link.state, 'waiting', code);
    assert.equal(link.why, `${code} why`);
    link.stop();
  }
  for (const code of [1002, 1003, 1007, 1008, 1009, 1010, 4400, 4403, 4406]) {
    await make();
    last().welcome();
    last().end(code, 'why');
    assert.equal(link.state, 'denied', code);
    assert.equal(link.code, code);
    const n = sockets.length;
    link.nudge();
    await tick(3600e3);
    assert.equal(sockets.length, n, 'and nothing more is dialled');
    link.redial();
    await tick(1000);
    assert.equal(sockets.length, n + 1, 'but if told to');
    link.stop();
  }
});

test('4401: once with a new token, then denied; a welcome lets it be refreshed again', async () => {
  await make();
  last().open();
  last().push({ t: 'error', code: 'unauthenticated', message: 'expired' });
  last().end(4401);
  assert.deepEqual([link.state, link.why], ['waiting', '4401 expired']);
  await tick(500);
  assert.equal(events.filter(e => e === 'token true').length, 1);
  last().welcome();
  await tick(60000);
  last().push({ t: 'beat' });
  last().end(4401);
  await tick(5000);
  assert.equal(events.filter(e => e === 'token true').length, 2);
  last().open();
  last().end(4401);
  assert.equal(link.state, 'denied');
});

test('logged out, but for seconds it was waiting: after 4401 it is dialled at once, and the reason is told', async () => {
  await make();
  last().welcome();
  await tick(2000);
  last().end(4401, 'logged out');
  assert.deepEqual([link.state, link.why, link.code], ['connecting', '4401 logged out', 4401]);
  await tick(0);
  assert.equal(sockets.length, 2);
  last().end(1006);
  assert.deepEqual([link.state, link.why, link.code], ['waiting', '1006', 4401], 'still: nobody has let us in');
  await tick(link.in);
  assert.deepEqual([link.state, link.code], ['connecting', 4401]);
  last().end(1006);
  link.redial();
  assert.deepEqual([link.state, link.why, link.code], ['waiting', 'told to', 4401]);
  await tick(link.in);
  last().open();
  last().push({ t: 'error', code: 'unauthenticated', message: 'no session' });
  last().end(4401);
  assert.deepEqual([link.state, link.why, link.code], ['denied', '4401 no session', 4401]);
  link.redial(true);
  await tick(1000);
  last().welcome();
  assert.deepEqual([link.state, link.why, link.code], ['open', '', 0]);
});

test('a server that lets us in and logs us out is no hot loop', async () => {
  await make();
  let dials = 0;
  for (let t = 0; t < 600e3; t += 1000) {
    if (link.state === 'connecting') { dials++; last().welcome(); last().end(4401); }
    await tick(1000);
  }
  assert.ok(dials < 30, dials);
});

test('after 4401 with a goodbye it waits as the server has asked', async () => {
  await make();
  last().welcome();
  last().push({ t: 'goodbye', window: 3000 });
  last().end(4401);
  assert.deepEqual([link.state, link.in, link.code], ['waiting', 3000, 4401]);
});

test('the reason of a failed dial grew with each: 1006 1006 1006', async () => {
  await make();
  for (let i = 0; i < 3; i++) { last().end(1006); assert.equal(link.why, '1006'); await tick(link.in); }
});

test("a drain's window was not kept by a connection that was 2 s old", async () => {
  await make();
  for (let i = 0; i < 3; i++) { // one server after the other
    last().welcome();
    await tick(2000);
    last().push({ t: 'goodbye', reason: 'drain', window: 1000 });
    last().end(1012);
    assert.equal(link.in, 1000);
    await tick(1000);
  }
  last().end(1006); // and the last one is not up yet
  assert.equal(link.in, 5000);
});

test("the server's window is not forgotten after a failed dial", async () => {
  await make();
  last().welcome();
  await tick(20000);
  last().push({ t: 'goodbye', reason: 'drain', window: 25000 });
  const waits = [];
  for (let i = 0; i < 3; i++) { last().end(1006); waits.push(link.in); await tick(link.in); }
  assert.deepEqual(waits, [25000, 25000, 30000]);
});

test('a token that cannot be had costs no socket', async () => {
  token = () => { throw new Error('login'); };
  await make();
  assert.equal(link.state, 'waiting');
  assert.equal(link.why, 'no token: login');
  assert.equal(sockets.length, 0);
  token = () => 'x';
  await tick(500);
  assert.equal(sockets.length, 1);
});

test('stopped while the token is asked for: no socket', async () => {
  let give;
  token = () => new Promise(r => { give = r; });
  await make();
  link.stop();
  give('x');
  await tick(0);
  assert.equal(sockets.length, 0);
  assert.equal(link.state, 'closed');
});

test('windows grow, and First is for drops by the server only', async () => {
  await make();
  for (const wait of [500, 1000, 2000]) {
    last().end(1006);
    assert.equal(link.in, wait);
    await tick(wait);
  }
  last().welcome();
  for (let i = 0; i < 4; i++) { await tick(25000); last().push({ t: 'beat' }); }
  last().end(1012);
  assert.equal(link.in, 5000);
  await tick(5000);
  last().end(1006);
  assert.equal(link.in, 10000);
});

test('accept and close is no hot loop', async () => {
  await make();
  let dials = 0;
  for (let t = 0; t < 600e3; t += 1000) {
    if (link.state === 'connecting') { dials++; last().welcome(); last().end(1000); }
    await tick(1000);
  }
  assert.ok(dials < 30, dials);
});

test('goodbye: nothing more is said, answers are heard, and the window is the server\'s', async () => {
  await make();
  last().welcome();
  await tick(20000);
  last().push({ t: 'goodbye', reason: 'drain', window: 60000 });
  link.send({ t: 'ping' });
  assert.equal(last().sent.length, 1);
  last().push({ t: 'ack', id: '1' });
  assert.equal(events.at(-1), 'ack');
  last().push({ t: 'beat' });
  assert.equal(last().sent.at(-1).t, 'beat');
  last().end(1012);
  assert.equal(link.in, 60000);
  link.nudge();
  await tick(59999);
  assert.equal(sockets.length, 1, 'a nudge does not cut what the server has asked for');
  await tick(1);
  assert.equal(sockets.length, 2);
});

test('goodbye, and the server does not close', async () => {
  await make();
  last().welcome();
  last().push({ t: 'goodbye', window: 1000 });
  await tick(T.goodbye);
  assert.equal(link.state, 'waiting');
  assert.ok(sockets[0].closed);
});

test('beats are answered; silence for beat and timeout is death', async () => {
  await make();
  last().welcome();
  for (let i = 0; i < 5; i++) {
    await tick(25000);
    last().push({ t: 'beat' });
    assert.equal(last().sent.filter(f => f.t === 'beat').length, i + 1);
  }
  await tick(34999);
  assert.equal(link.state, 'open');
  await tick(1);
  assert.equal(link.state, 'waiting');
  assert.equal(link.why, 'silent');
});

test('any frame is life', async () => {
  await make();
  last().welcome();
  for (let i = 0; i < 10; i++) { await tick(30000); last().push({ t: 'entries', topic: 'x' }); }
  assert.equal(link.state, 'open');
});

test('a server without a beat is believed', async () => {
  await make();
  last().welcome({ beat: 0 });
  await tick(3600e3);
  assert.equal(link.state, 'open');
});

test('slept: our lateness is not its silence, it is asked (trap 5)', async () => {
  let offset = 0;
  internal.clock(() => clock.now + offset);
  await make();
  last().welcome();
  offset = 3600e3; // the timer was not run for an hour
  await tick(35000);
  assert.equal(link.state, 'open');
  assert.equal(last().sent.at(-1).t, 'ping');
  last().push({ t: 'pong' });
  await tick(10000);
  assert.equal(link.state, 'open');
  offset += 3600e3;
  await tick(35000);
  assert.equal(last().sent.filter(f => f.t === 'ping').length, 2);
  await tick(10000);
  assert.equal(link.state, 'waiting', 'no pong: half open');
  assert.ok(link.in <= 100, 'and no reason to wait long');
});

test('a nudge probes an open connection, and cuts a wait, but does not make it longer nor a storm', async () => {
  await make();
  last().welcome();
  link.nudge(); link.nudge();
  assert.equal(last().sent.filter(f => f.t === 'ping').length, 1);
  last().push({ t: 'pong' });
  await tick(5000);
  assert.equal(link.state, 'open');
  link.nudge();
  await tick(5000);
  assert.equal(link.why, 'no answer');
  await tick(100);
  assert.equal(sockets.length, 2);
  await tick(1500);
  last().end(1006);
  assert.ok(link.in > 1000);
  link.nudge();
  await tick(100);
  assert.equal(sockets.length, 3);
  last().end(1006);
  for (let i = 0; i < 50; i++) { link.nudge(); await tick(10); }
  assert.equal(sockets.length, 3, 'not again within the second');
  random = 0;
  link.loop.random = () => 1 - Number.EPSILON;
  for (let i = 0; i < 20; i++) { link.nudge(); await tick(100); if (link.state === 'connecting') last().end(1006); }
  assert.ok(sockets.length <= 7, sockets.length);
});

test('rubbish, binary and a version that is none', async () => {
  for (const what of ['rubbish', new ArrayBuffer(3), { t: 7 }, []]) {
    await make();
    last().welcome();
    last().push(what);
    assert.equal(link.state, 'waiting', String(what));
    link.stop();
  }
  await make();
  last().welcome({ v: 2 });
  assert.equal(link.state, 'denied');
});

test('an URL that is none is final', async () => {
  await make({}, 'bad');
  assert.equal(link.state, 'denied');
});

test('stop closes, and nothing more is heard', async () => {
  await make();
  last().welcome();
  link.stop();
  assert.ok(last().closed);
  const n = events.length;
  last().push({ t: 'beat' });
  last().end(1006);
  await tick(3600e3);
  assert.equal(events.length, n);
  assert.equal(sockets.length, 1);
});
