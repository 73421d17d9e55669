import test from 'node:test';
import assert from 'node:assert/strict';
import { internal } from '../holdfast.js';

const { Loop } = internal;
let time = 0;
internal.clock(() => time);
const high = () => 1 - Number.EPSILON;
const downs = (l, n) => Array.from({ length: n }, () => l.down());

test('no delay is negative or above the cap, for any options', () => {
  const odd = [undefined, 0, 1, 500, 1e9, 1e300, Infinity, -1, -Infinity, NaN, '5', null];
  let draws = 0;
  for (const base of odd) for (const cap of odd) for (const first of odd) {
    const l = new Loop({ base, cap, first, stable: first });
    for (let i = 0; i < 70; i++) {
      if (i % 20 === 10) l.up();
      if (i % 20 === 15) l.hint([5, NaN, -1, Infinity, 1e300][i % 5]);
      const hinted = l.hinted, d = l.down();
      draws++;
      assert.ok(Number.isInteger(d) && d >= 0 && d <= Math.max(l.cap, hinted) && d <= 2 ** 31 - 1, `${base} ${cap} ${first}: ${d}`);
    }
  }
  assert.ok(draws > 10000);
});

test('windows are those of the Go package', () => {
  const o = { random: high };
  assert.deepEqual(downs(new Loop({}, o.random), 8), [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000], 'never up');
  for (const [reason, opts, want] of [
    ['defaults', {}, [5000, 10000, 20000, 30000, 30000]],
    ['first given', { first: 8000 }, [8000, 16000, 30000, 30000]],
    ['no first', { first: 0 }, [500, 1000, 2000, 4000]],
    ['first above cap', { first: 3600e3 }, [30000, 30000]],
    ['base above first', { base: 7000 }, [7000, 14000, 28000, 30000]],
  ]) {
    const l = new Loop(opts, high);
    l.up();
    assert.deepEqual(downs(l, want.length), want, reason);
    l.random = () => 0;
    assert.equal(l.down(), 0, 'full jitter');
  }
});

test('only a stable connection clears the count', () => {
  for (const [stable, uptime, want] of [[undefined, 9999, 20000], [undefined, 10000, 5000], [undefined, 0, 20000], [60000, 59999, 20000], [60000, 60000, 5000], [0, 0, 5000]]) {
    const l = new Loop({ stable }, high);
    l.up();
    downs(l, 2);
    l.up();
    time += uptime;
    assert.equal(l.down(), want, `${stable} ${uptime}`);
  }
});

test('a hint takes the place of the next window only, and those after it are not narrower', () => {
  const l = new Loop({}, high);
  l.up(); time += 10000; l.hint(60000);
  assert.deepEqual(downs(l, 3), [60000, 30000, 30000]);
  for (const [ms, want] of [[100, [100, 5000, 10000]], [20000, [20000, 20000, 30000]], [1e15, [3600e3, 30000, 30000]], [0, [5000, 10000, 20000]]]) {
    const l = new Loop({}, high);
    l.up(); time += 10000; l.hint(ms);
    assert.deepEqual(downs(l, 3), want, ms);
  }
});

test('a hint before the first connection does not narrow windows', () => {
  const l = new Loop({}, high);
  l.hint(10);
  assert.deepEqual(downs(l, 3), [10, 500, 1000]);
});

test("a server's window counted only after a stable connection: in a rolling restart clients came back after 10 s instead of 1 s", () => {
  const l = new Loop({}, high);
  const goodbye = () => { l.up(); time += 2000; l.hint(1000); return l.down(); };
  assert.deepEqual(Array.from({ length: 9 }, goodbye), [1000, 1000, 1000, 1000, 5000, 10000, 20000, 30000, 30000], 'as in Go; accept, goodbye, close is not a hot loop');
  l.up(); time += 10000; l.down();
  assert.equal(goodbye(), 1000, 'a stable connection ends the row');
  l.up();
  assert.deepEqual(downs(l, 2), [10000, 20000], 'goodbyes are no failures');
});

test('a server that says goodbye instead of a welcome makes no hot loop either', () => {
  const l = new Loop({}, high);
  const waits = Array.from({ length: 9 }, () => { l.hint(1); return l.down(); });
  assert.deepEqual(waits, [1, 1, 1, 1, 500, 1000, 2000, 4000, 8000]);
});

test('10,000 clients at the cap are not in step', () => {
  const at = new Map();
  for (let i = 0; i < 10000; i++) {
    const l = new Loop();
    l.failures = 10;
    const slot = Math.floor(l.down() / 100);
    at.set(slot, (at.get(slot) ?? 0) + 1);
  }
  const worst = Math.max(...at.values());
  assert.ok(worst < 80, `${worst} in the worst 100 ms`); // 33 on average
});
