import test from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import * as holdfast from '../holdfast.js';

const source = readFileSync(new URL('../holdfast.js', import.meta.url), 'utf8');

test('what is exported, and that importing does nothing', () => {
  assert.deepEqual(Object.keys(holdfast).sort(), ['Connection', 'HoldfastError', 'Subscription', 'connect', 'internal']);
});

test('it is one file without dependencies, and every trap has its place', t => {
  assert.doesNotMatch(source, /^import |\bfrom '/m);
  const traps = new Set();
  for (const [, list] of source.matchAll(/\btraps? ([\d, ]+)/g)) for (const n of list.match(/\d+/g)) traps.add(Number(n));
  assert.deepEqual([...traps].sort((a, b) => a - b), Array.from({ length: 25 }, (_, i) => i + 1));
});

test('what is served is small, and has all that is for applications', async t => {
  const min = readFileSync(new URL('../holdfast.min.js', import.meta.url));
  const size = gzipSync(min, { level: 9 }).length;
  assert.ok(size < 16 << 10, `${size} bytes gzipped`);
  t.diagnostic(`${min.length} bytes, ${size} gzipped; with comments ${source.length}, ${gzipSync(source, { level: 9 }).length}`);
  const m = await import('../holdfast.min.js');
  assert.deepEqual(Object.keys(m).sort(), ['Connection', 'HoldfastError', 'Subscription', 'connect']);
  for (const name of ['Connection', 'Subscription', 'HoldfastError']) {
    const own = c => Object.getOwnPropertyNames(c.prototype).sort().filter(n => n !== 'listened');
    assert.deepEqual(own(m[name]), own(holdfast[name]));
  }
});
