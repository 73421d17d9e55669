// Recipe 6.3 of the design: one cursor for each tab, positions compared for equality only.
import test from 'node:test';
import assert from 'node:assert/strict';
import { internal } from '../holdfast.js';

const { Fan } = internal;
let time = 0;
internal.clock(() => time);

/** A server's log, and tabs that check what they get: every entry once and in order, or a reset. */
class Tab {
  pos = null; got = []; resets = []; q = 0; messages = 0; acks = true; n = 1; told = [];
  constructor(fan, id) { this.fan = fan; this.id = id; }
  take(c, m) {
    this.messages++;
    if (m.t === 'at') { this.pos ??= m.pos; this.told.push(m.pos); return; }
    if (m.t === 'ephemeral') { this.got.push(m.s); return; }
    this.q = c.sent;
    if (m.t === 'reset') { this.resets.push(m); this.pos = m.base; } else {
      assert.equal(m.prev, this.pos, `${this.id}: broken link`);
      for (const s of m.list) { const e = JSON.parse(s); this.got.push(e.data); this.pos = e.pos; }
      assert.equal(this.pos, m.pos);
    }
    if (this.acks) queue.push(() => this.ack());
  }
  ack() { this.fan.ack(this.id, { n: this.n, q: this.q, passed: 0 }); }
}
let queue = [];
const settle = () => { while (queue.length) queue.splice(0).forEach(f => f()); };

function setup(max = 1000, window = 256) {
  const tabs = new Map();
  let posts = 0;
  const fan = new Fan(max, window, (cs, m) => { posts++; for (const c of cs) tabs.get(c.id)?.take(c, m); });
  return {
    fan, tabs, get posts() { return posts; },
    add(id, pos, last) {
      const tab = tabs.get(id) ?? new Tab(fan, id);
      if (pos !== undefined) tab.pos = pos;
      tabs.set(id, tab);
      const ok = fan.add(id, { n: tab.n, pos: tab.pos, last: last ?? 0 });
      settle();
      return ok;
    },
    restart(f) { fan.restart(f); settle(); },
    push(from, to, each = 1) {
      for (let i = from; i <= to; i += each) {
        const list = Array.from({ length: Math.min(each, to - i + 1) }, (_, k) => ({ pos: `p${i + k}`, s: JSON.stringify({ pos: `p${i + k}`, data: i + k }) }));
        assert.ok(fan.push(`p${i - 1}`, list), `push ${i}`);
        settle();
      }
    },
  };
}
const range = (a, b) => Array.from({ length: b - a + 1 }, (_, i) => a + i);

test('takeover: tabs at three places, a new one, one unknown and one trimmed', () => {
  const s = setup();
  for (const [id, pos] of [['a', 'p10'], ['b', 'p12'], ['c', 'p15'], ['new', null], ['alien', 'zzz'], ['old', 'p1']]) assert.equal(s.add(id, pos), false);
  assert.deepEqual(s.fan.wants(), { from: ['p10', 'p12', 'p15', 'zzz', 'p1'], last: 0, floor: undefined });
  s.restart({ base: 'p10', head: 'p15', late: [{ pos: 'p1', reason: 'trimmed', missed: 9 }] });
  s.push(11, 13);
  s.push(14, 20, 4);
  assert.deepEqual(s.tabs.get('a').got, range(11, 20));
  assert.deepEqual(s.tabs.get('b').got, range(13, 20));
  assert.deepEqual(s.tabs.get('c').got, range(16, 20));
  assert.deepEqual(s.tabs.get('new').got, range(16, 20), 'new begins at the head');
  assert.deepEqual(s.tabs.get('old').got, range(11, 20), 'late goes on at the base');
  assert.deepEqual(s.tabs.get('alien').got, range(16, 20));
  for (const [id, want] of [['a', 0], ['b', 0], ['c', 0], ['new', 0], ['old', 1], ['alien', 1]]) assert.equal(s.tabs.get(id).resets.length, want, id);
  assert.deepEqual({ ...s.tabs.get('old').resets[0], s: 0 }, { t: 'reset', reason: 'trimmed', missed: 9, base: 'p10', s: 0 });
  assert.equal(s.tabs.get('alien').resets[0].reason, 'unknown');
});

test('takeover with nothing new: everybody is placed at once, who cannot be is told', () => {
  const s = setup();
  s.add('a', 'p10'); s.add('b', 'zzz'); s.add('c', null);
  s.fan.wants();
  s.restart({ base: 'p10', head: 'p10' });
  assert.deepEqual([...s.tabs.values()].map(t => t.resets.length), [0, 1, 0]);
  s.push(11, 11);
  for (const t of s.tabs.values()) assert.deepEqual(t.got, [11]);
});

test('a tab in the ring joins without the server, one behind it does not', () => {
  const s = setup(10);
  s.add('a', null);
  s.restart({ base: 'p0', head: 'p0' });
  s.push(1, 30);
  assert.equal(s.add('in', 'p25'), true);
  assert.deepEqual(s.tabs.get('in').got, range(26, 30));
  assert.equal(s.add('late', 'p5'), false);
  assert.deepEqual(s.fan.wants().from.sort(), ['p30', 'p5']);
  s.restart({ base: 'p5', head: 'p30' });
  s.push(6, 35, 3);
  assert.deepEqual(s.tabs.get('late').got, range(6, 35));
  assert.deepEqual(s.tabs.get('a').got, range(1, 35), 'what it had is not repeated');
  assert.deepEqual([...s.tabs.values()].flatMap(t => t.resets), []);
});

test('the newest: out of the ring if it has as many, else from the server, without a reset for others', () => {
  const s = setup();
  s.add('a', null);
  s.restart({ base: 'p10', head: 'p10' });
  s.push(11, 15);
  assert.equal(s.add('three', null, 3), true);
  assert.deepEqual(s.tabs.get('three').got, [13, 14, 15]);
  assert.equal(s.add('eight', null, 8), false);
  assert.deepEqual(s.fan.wants(), { from: [], last: 8, floor: undefined });
  s.restart({ base: 'p7', head: 'p15' });
  s.push(8, 16);
  assert.deepEqual(s.tabs.get('eight').got, range(8, 16));
  assert.deepEqual(s.tabs.get('a').got, range(11, 16));
  assert.equal(s.fan.again, false);
  // One that stands further back than the newest that were asked for: ask again, with its position.
  s.add('back', 'p2');
  s.tabs.get('eight').pos = null;
  s.fan.add('eight', { n: 1, pos: null, last: 20 });
  assert.deepEqual(s.fan.wants().from, []);
  s.restart({ base: 'p12', head: 'p16' });
  s.push(13, 16);
  assert.equal(s.fan.again, true);
  assert.deepEqual([...s.tabs.values()].flatMap(t => t.resets), []);
});

test('30 000 entries past a frozen tab: a window, one reset, the ring', () => {
  const s = setup(2000);
  s.add('live', null);
  const frozen = new Tab(s.fan, 'frozen');
  frozen.acks = false;
  s.tabs.set('frozen', frozen);
  s.restart({ base: 'p0', head: 'p0' });
  s.add('frozen', 'p0');
  for (let i = 0; i < 300; i++) { s.push(i * 100 + 1, i * 100 + 100, 10); time += 100; }
  assert.equal(s.fan.ring.length, 2000);
  assert.equal(frozen.got.length, 256);
  assert.equal(frozen.resets.length, 0);
  assert.ok(frozen.messages <= 257 + 1);
  frozen.acks = true;
  frozen.ack();
  settle();
  assert.deepEqual(frozen.resets.map(r => [r.reason, r.missed]), [['lagging', 27744]]);
  assert.equal(frozen.got.length, 256 + 2000);
  assert.equal(frozen.got.at(-1), 30000);
  assert.equal(s.tabs.get('live').got.length, 30000);
});

test('a frozen tab costs nothing across reconnects either, and gets one reset', () => {
  const s = setup(100, 16);
  s.add('live', null);
  s.restart({ base: 'p0', head: 'p0' });
  const frozen = new Tab(s.fan, 'frozen');
  frozen.acks = false;
  s.tabs.set('frozen', frozen);
  s.add('frozen', 'p0');
  let at = 0;
  for (let round = 0; round < 20; round++) {
    s.push(at + 1, at + 1000, 50);
    time += 10000;
    at += 1000;
    const base = Math.min(...s.fan.wants().from.map(p => Number(p.slice(1))));
    assert.ok(round === 0 || at - base === 100, 'only the ring comes again');
    s.restart({ base: `p${base}`, head: `p${at}` });
    if (base < at) s.push(base + 1, at);
  }
  assert.equal(frozen.got.length, 16);
  assert.equal(frozen.resets.length, 0);
  frozen.acks = true;
  frozen.ack();
  settle();
  assert.equal(frozen.resets.length, 1);
  assert.equal(frozen.got.at(-1), 20000);
  assert.equal(frozen.resets[0].missed + frozen.got.length, 20000, 'it is told how many');
  assert.deepEqual(s.tabs.get('live').got, range(1, 20000));
});

test('a tab that answers is waited for while a backlog comes in', () => {
  const s = setup(100, 16);
  const slow = new Tab(s.fan, 'slow');
  slow.acks = false;
  s.tabs.set('slow', slow);
  s.add('slow', 'p0');
  s.restart({ base: 'p0', head: 'p700' });
  s.push(1, 700, 100);
  assert.equal(s.fan.ring.length, 700 - 16);
  slow.acks = true;
  slow.ack();
  settle();
  assert.deepEqual(slow.got, range(1, 700));
  assert.deepEqual(slow.resets, []);
  s.push(701, 701);
  assert.equal(s.fan.ring.length, 100, 'and then the ring is small again');
});

test("the server's reset is for all, once; with a snapshot; and not for who stands beyond", () => {
  const s = setup();
  s.add('a', 'p1'); s.add('b', 'p2');
  s.restart({ head: 'p50' }); // no base: a reset comes first
  assert.equal(s.fan.push('p1', []), false);
  assert.equal(s.fan.reset({ reason: 'epoch', missed: 0, base: 'p40' }, '{"data":7}'), false);
  s.push(41, 42);
  for (const t of s.tabs.values()) {
    assert.deepEqual(t.got, [41, 42]);
    assert.deepEqual(t.resets.map(r => [r.reason, r.base, r.s]), [['epoch', 'p40', '{"data":7}']]);
  }
  // b stands further on than a; what a has missed, b may have.
  const u = setup();
  u.add('a', 'p1'); u.add('b', 'p9');
  u.restart({ base: 'p1', head: 'p10' });
  assert.equal(u.fan.reset({ reason: 'floor', missed: 4, base: 'p5' }), true, 'subscribe again');
  assert.deepEqual(u.fan.wants().from, ['p9', 'p5']);
  u.restart({ base: 'p5', head: 'p10' });
  u.push(6, 11);
  assert.deepEqual(u.tabs.get('a').got, range(6, 11));
  assert.deepEqual(u.tabs.get('b').got, range(10, 11));
  assert.deepEqual([...u.tabs.values()].map(t => t.resets.length), [1, 0]);
});

test('positions left out: who stood there is told, and nobody waits for ever', () => {
  const s = setup();
  s.add('a', 'p1'); s.add('b', 'p3');
  s.fan.wants();
  s.restart({ base: 'p1', head: 'p5' });
  assert.ok(s.fan.push('p1', [{ pos: 'p2', s: '{"pos":"p2","data":2}' }, { pos: 'p6', s: '{"pos":"p6"}' }], true));
  settle();
  const at = () => [...s.tabs.values()].map(t => [t.pos, t.resets.length]);
  assert.deepEqual([at(), s.fan.again], [[['p6', 0], ['p3', 0]], true]);
  assert.deepEqual(s.fan.wants().from, ['p3']); // alone: then the first entry is that after it
  s.restart({ base: 'p3', head: 'p6' });
  assert.ok(s.fan.push('p3', [{ pos: 'p6', s: '{"pos":"p6"}' }], true));
  settle();
  assert.deepEqual([at(), s.fan.again], [[['p6', 0], ['p6', 0]], false]);
});

test('a position that the server said it can go on from, and does not, is told to be lost', () => {
  const s = setup();
  s.add('a', 'p1'); s.add('b', 'p3');
  s.fan.wants();
  s.restart({ base: 'p1', head: 'p2' });
  s.push(2, 2);
  assert.deepEqual([...s.tabs.values()].map(t => [t.pos, t.resets.map(r => r.reason)]), [['p2', []], ['p2', ['unknown']]]);
});

test('what does not follow is refused', () => {
  const s = setup();
  s.add('a', null);
  assert.equal(s.fan.push('p0', []), false, 'nothing is known');
  s.restart({ base: 'p0', head: 'p0' });
  assert.equal(s.fan.push('p1', [{ pos: 'p2', s: '{}' }]), false);
  assert.deepEqual(s.tabs.get('a').got, []);
});

test('acks of an earlier attachment and from nowhere change nothing', () => {
  const s = setup(1000, 4);
  const tab = new Tab(s.fan, 'a');
  tab.acks = false;
  s.tabs.set('a', tab);
  s.add('a', null);
  s.restart({ base: 'p0', head: 'p0' });
  s.push(1, 20);
  assert.equal(tab.got.length, 4);
  s.fan.ack('a', { n: 99, q: 4, passed: 0 });
  s.fan.ack('a', { n: 1, q: 1000, passed: 0 });
  s.fan.ack('a', { n: 1, q: -1, passed: 0 });
  s.fan.ack('b', { n: 1, q: 4, passed: 0 });
  assert.equal(tab.got.length, 4);
  s.fan.ack('a', { n: 1, q: 3, passed: 0 });
  assert.equal(tab.got.length, 7);
});

test('a hello for the second time starts a new cursor where the tab stands (trap 22)', () => {
  const s = setup();
  s.add('a', null);
  s.restart({ base: 'p0', head: 'p0' });
  const tab = s.tabs.get('a');
  tab.acks = false;
  s.push(1, 10);
  tab.n = 2;
  assert.equal(s.add('a', 'p7'), true); // frames with n 1 would have been dropped by the tab: here they were taken
  assert.deepEqual(tab.got, [...range(1, 10), 8, 9, 10]);
  assert.equal(s.fan.tabs.get('a').sent, 3);
});

test('tabs in step get one message together (trap 6)', () => {
  const s = setup();
  for (let i = 0; i < 10; i++) s.add(`t${i}`, null);
  s.restart({ base: 'p0', head: 'p0' });
  const before = s.posts;
  s.push(1, 100, 10);
  assert.equal(s.posts - before, 10);
});

test('ephemeral messages are bounded for who does not take them', () => {
  const s = setup();
  const tab = new Tab(s.fan, 'a');
  s.tabs.set('a', tab);
  s.add('a', null);
  s.restart({ base: 'p0', head: 'p0' });
  for (let i = 0; i < 1000; i++) s.fan.pass('x');
  assert.equal(tab.got.length, 64);
  s.fan.ack('a', { n: 1, q: 0, passed: 64 });
  s.fan.pass('y');
  assert.equal(tab.got.at(-1), 'y');
});

test('the ring is bounded in characters, too', () => {
  const s = setup();
  s.add('a', null);
  s.restart({ base: 'p0', head: 'p0' });
  const big = 'x'.repeat(1 << 20);
  for (let i = 1; i <= 50; i++) { s.fan.push(`p${i - 1}`, [{ pos: `p${i}`, s: JSON.stringify({ pos: `p${i}`, data: big }) }]); settle(); }
  assert.ok(s.fan.ring.length < 9);
  assert.equal(s.tabs.get('a').got.length, 50);
});

test('random: tabs come, go, freeze and stand anywhere; the server trims and reconnects', () => {
  let seed = 1, deliveries = 0, resets = 0;
  const random = n => { seed = (seed * 1103515245 + 12345) % 2147483648; return Math.floor(seed / 2147483648 * n); };
  for (let round = 0; round < 300; round++) {
    const s = setup(20 + random(50), 1 + random(20));
    let head = 100, kept = 0, at = null; // the server's log is kept+1..head; it has sent up to at
    const started = new Map();
    const num = p => Number(p.slice(1));
    const subscribe = () => {
      const w = s.fan.wants();
      if (!w.from.length) { at = Math.max(kept, head - w.last); return s.restart({ base: `p${at}`, head: `p${head}` }); }
      const ok = w.from.filter(p => num(p) >= kept).sort((a, b) => num(a) - num(b));
      const late = w.from.filter(p => num(p) < kept);
      if (!ok.length) {
        at = kept;
        s.restart({ head: `p${head}` });
        if (s.fan.reset({ reason: 'trimmed', missed: 1, base: `p${kept}` })) subscribe();
        return settle();
      }
      at = num(ok[0]);
      s.restart({ base: ok[0], head: `p${head}`, late: late.map(pos => ({ pos, reason: 'trimmed', missed: at - num(pos) })) });
    };
    s.add('t0', null); subscribe();
    for (let step = 0; step < 200; step++) {
      const id = `t${random(6)}`, tab = s.tabs.get(id);
      switch (random(9)) {
        case 0: head += random(30); break;
        case 1: case 2: {
          const n = Math.min(head - at, 1 + random(15));
          if (n > 0) { s.push(at + 1, at + n, n); at += n; if (s.fan.again) subscribe(); }
          break;
        }
        case 3: if (!tab) { if (!s.add(id, random(2) ? null : `p${Math.max(0, head - random(120))}`, random(3) ? 0 : random(30))) subscribe(); } break;
        case 4: if (tab) tab.acks = false; break;
        case 5: if (tab) { tab.acks = true; tab.ack(); settle(); } break;
        case 6: kept = Math.max(kept, Math.min(at, head - random(80))); break;
        case 7: if (!random(4)) subscribe(); break;
        case 8: time += random(3000); break;
      }
      for (let guard = 0; s.fan.again; guard++) { assert.ok(guard < 5); subscribe(); }
    }
    // In the end all are awake and up to date.
    for (let guard = 0; guard < 50; guard++) {
      while (at < head) { s.push(at + 1, head, 7); at = head; }
      for (const t of s.tabs.values()) { t.acks = true; t.ack(); }
      settle();
      if (s.fan.again) subscribe();
    }
    for (const t of s.tabs.values()) {
      assert.equal(t.pos, `p${head}`, `round ${round}: ${t.id}`);
      deliveries += t.got.length;
      resets += t.resets.length;
      assert.equal(new Set(t.got).size, t.got.length, 'nothing twice');
      const holes = t.got.filter((v, i) => i && v !== t.got[i - 1] + 1).length;
      assert.ok(holes <= t.resets.length, `${t.id}: ${holes} holes, ${t.resets.length} resets`);
      assert.ok(t.resets.every(r => r.reason !== 'unknown'), 'nobody is told what is not so');
    }
  }
  assert.ok(deliveries > 50000 && resets > 100, `${deliveries} ${resets}`);
});

test('a reset was that of the tab furthest on, for all: each is told what it has missed, and why', () => {
  const s = setup();
  for (const [id, pos] of [['low', 'p10'], ['high', 'p50'], ['old', 'x7']]) s.add(id, pos);
  s.fan.wants();
  s.restart({ head: 'p200', late: [{ pos: 'p10', reason: 'trimmed', missed: 40 }, { pos: 'x7', reason: 'epoch' }] });
  s.fan.reset({ reason: 'trimmed', missed: 50, base: 'p100' });
  settle();
  const told = id => s.tabs.get(id).resets.map(r => [r.reason, r.missed]);
  assert.deepEqual([told('low'), told('high'), told('old')], [[['trimmed', 90]], [['trimmed', 50]], [['epoch', 0]]]);
  s.push(101, 200);
  for (const t of s.tabs.values()) assert.deepEqual(t.got, range(101, 200));
});

test('more of the last than the ring has room for were cut in silence', () => {
  const s = setup(10);
  s.add('a', null, 50);
  s.fan.wants();
  s.restart({ base: 'p150', head: 'p200' });
  s.push(151, 200, 16);
  assert.deepEqual(s.tabs.get('a').got, range(151, 200));
});
