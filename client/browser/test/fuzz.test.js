// A Fan, a server that conflates, trims and begins anew, and tabs that come, stop and come back, at random: nothing is
// missing but what the server has left out, nothing comes twice, and nobody is told of a loss that was none.
import test from 'node:test';
import assert from 'node:assert/strict';
import { internal } from '../holdfast.js';

const { Fan } = internal, pos = n => `p${n}`, num = p => Number(p.slice(1));
let time = 0;
internal.clock(() => time);

class Run {
  head = 50; kept = 0; at = null; n = 0; queue = []; dropped = new Set(); tabs = new Map(); subscribes = 0; delivered = 0;
  constructor(random, conflate) {
    this.random = random;
    this.conflate = conflate;
    this.fan = new Fan(20 + random(40), 1 + random(20), (cursors, m) => { for (const c of cursors) this.queue.push([c.id, c.n, c.sent, m]); });
  }
  ack(id, t) { this.fan.ack(id, { n: t.n, q: t.done, passed: 0 }); }
  settle() {
    while (this.queue.length) {
      const [id, n, sent, m] = this.queue.shift(), t = this.tabs.get(id);
      if (t?.n !== n) continue;
      this.take(id, t, m);
      if (m.t !== 'at') t.done = sent;
      if (t.acks) this.ack(id, t);
    }
  }
  take(id, t, m) {
    if (m.t === 'at') { t.at ??= m.pos; t.last ??= num(m.pos); return; }
    if (m.t === 'reset') {
      assert.notEqual(m.reason, 'unknown', `${id} at ${t.last} is told of a loss`);
      t.at = m.base;
      t.last = num(m.base);
      return;
    }
    assert.equal(m.prev, t.at, `${id}: broken chain`);
    for (const s of m.list) {
      const e = JSON.parse(s), k = num(e.pos);
      assert.ok(k > t.last, `${id}: ${k} after ${t.last}`);
      for (let i = t.last + 1; i < k; i++) assert.ok(this.dropped.has(i), `${id}: ${i} is missing`);
      t.last = k;
      this.delivered++;
    }
    t.at = m.pos;
  }
  subscribe(depth = 0) {
    assert.ok(depth < 12, 'it subscribes for ever');
    this.subscribes++;
    const { from, last } = this.fan.wants(), places = from.map(num).sort((a, b) => a - b), good = places.find(p => p >= this.kept);
    this.at = good ?? (from.length ? this.kept : Math.max(this.kept, this.head - last));
    const late = places.filter(p => p < this.kept);
    const to = from.length && good === undefined ? late.pop() : this.at; // what the missed of the late are counted to
    this.fan.restart({ base: to === this.at ? pos(this.at) : undefined, head: pos(this.head), late: late.map(p => ({ pos: pos(p), reason: 'trimmed', missed: to - p })) });
    if (to !== this.at && this.fan.reset({ reason: 'trimmed', missed: this.kept - to, base: pos(this.kept) })) return this.subscribe(depth + 1);
    this.settle();
    if (this.fan.again) this.subscribe(depth + 1);
  }
  push(most) {
    const { at } = this, to = Math.min(this.head, at + 1 + this.random(most)), list = [];
    if (to <= at) return;
    for (let i = at + 1; i <= to; i++) {
      if (this.conflate && this.random(3) === 0 && i < to) this.dropped.add(i);
      else list.push({ pos: pos(i), s: JSON.stringify({ pos: pos(i) }) });
    }
    assert.ok(this.fan.push(pos(at), list, list.length < to - at));
    this.at = to;
    this.settle();
    if (this.fan.again) this.subscribe();
  }
  add(id, t) {
    Object.assign(t, { n: ++this.n, done: 0 });
    if (!this.fan.add(id, { n: t.n, pos: t.at, last: 0 })) this.subscribe();
    this.settle();
  }
  step() {
    const { random } = this, id = `t${random(6)}`, t = this.tabs.get(id);
    switch (random(9)) {
      case 0: this.head += random(25); break;
      case 1: case 2: case 3: if (this.at !== null) this.push(15); break;
      case 4: {
        if (t) break;
        const last = random(2) ? null : Math.max(0, this.head - random(80)), x = { at: last === null ? null : pos(last), last, acks: true };
        this.tabs.set(id, x);
        this.add(id, x);
        break;
      }
      case 5: if (t) { t.acks = !t.acks; if (t.acks) { this.ack(id, t); this.settle(); } } break;
      case 6: this.kept = Math.max(this.kept, Math.min(this.at ?? 0, this.head - random(60))); break;
      case 7: if (t && random(2)) this.add(id, t); else if (this.tabs.size && random(3) === 0) this.subscribe(); break;
      case 8: time += random(3000);
    }
  }
}

for (const conflate of [false, true]) {
  test(`a Fan at random${conflate ? ', of a topic that is conflated' : ''}`, t => {
    let seed = 7, subscribes = 0, delivered = 0;
    const random = n => { seed = (seed * 1103515245 + 12345) % 2 ** 31; return Math.floor(seed / 2 ** 31 * n); };
    for (let round = 0; round < 200; round++) {
      const run = new Run(random, conflate);
      for (let i = 0; i < 150; i++) run.step();
      for (let i = 0; run.at !== null && (run.at < run.head || i < 50); i++) {
        run.push(15);
        for (const [id, x] of run.tabs) { x.acks = true; run.ack(id, x); }
        run.settle();
      }
      for (const [id, x] of run.tabs) assert.equal(x.at, pos(run.head), `round ${round}: ${id} is stuck`);
      subscribes += run.subscribes;
      delivered += run.delivered;
    }
    t.diagnostic(`${delivered} delivered, ${subscribes} subscribes`);
  });
}
