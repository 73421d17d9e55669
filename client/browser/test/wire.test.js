// The same vectors that the Go side runs, see client/PROTOCOL.md, section 10.
import test from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { internal } from '../holdfast.js';

const { decode, encode, payload, value } = internal;
const vectors = JSON.parse(readFileSync(new URL('../../../internal/wire/testdata/vectors.json', import.meta.url), 'utf8'));
const text = v => v.text ?? Buffer.from(v.bytes_base64, 'base64').toString('utf8');

/** Without the difference between -0 and 0, which JSON.stringify does not write. */
const plain = s => JSON.stringify(JSON.parse(s));

/** What a vector's decode says, in our form. */
function ours(d) {
  const f = {};
  for (const [k, v] of Object.entries(d)) {
    if (k === 'payload') {
      const bytes = v.utf8 !== undefined ? Buffer.from(v.utf8) : Buffer.from(v.base64, 'base64');
      f[v.kind] = v.kind === 'data' ? JSON.parse(v.utf8) : v.kind === 'text' ? v.utf8 : bytes.toString('base64');
    } else if (k === 'entries' || k === 'late') f[k] = v.map(ours);
    else f[k] = typeof v === 'string' && /^(ref|missed|retry|last|v|beat|timeout|window|conflated|at)$/.test(k) ? Number(v) : v;
  }
  return f;
}

test('vectors are decoded, refused and written', t => {
  let decoded = 0, refused = 0, loose = 0, same = 0, equal = 0;
  for (const v of vectors) {
    let f, error;
    try { f = decode(text(v)); } catch (e) { error = e; }
    try {
      if (v.error) {
        assert.ok(error, 'is taken for a frame');
        assert.equal(error.code, 'bad_frame');
        assert.equal(error.field, v.error.field ?? '');
        refused++;
        continue;
      }
      assert.ifError(error);
      assert.deepEqual(f, ours(v.decode));
      decoded++;
    } catch (e) {
      if (v.loose) { loose++; continue; }
      throw new Error(`${v.name} (${v.why}): ${e.message}`);
    }
    // Where JSON.stringify writes the same value in another way, the value counts.
    const written = encode(f);
    if (written === v.canonical) same++;
    else { assert.equal(plain(written), plain(v.canonical), v.name); equal++; }
    assert.deepEqual(decode(v.canonical), f, v.name);
    for (let n = 0; n < Math.min(v.canonical.length, 300); n++) assert.throws(() => decode(v.canonical.slice(0, n)), v.name);
  }
  t.diagnostic(`${vectors.length} vectors: ${decoded} decoded, ${refused} refused, ${loose} loose otherwise; written ${same} to the byte, ${equal} by value`);
  assert.equal(decoded + refused + loose, vectors.length);
});

test('payloads are what they were', () => {
  for (const v of [null, 0, '', 'ż', [1], { a: { b: null } }, false]) assert.deepEqual(value(payload(v)), v);
  const big = Uint8Array.from({ length: 100000 }, (_, i) => i * 7);
  assert.deepEqual(value(payload(big)), big);
  assert.equal(value({ text: 'no JSON' }), 'no JSON');
  for (const v of [undefined, () => 1, Symbol('x')]) assert.throws(() => payload(v), { code: 'bad_input' });
});
