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
  t.diagnostic(`${source.length} bytes, ${gzipSync(source, { level: 9 }).length} gzipped`);
});
