// Writes holdfast.min.js, which the Go package serves: holdfast.js without comments and without what only tests need; and
// holdfast.min.js.gz, the same gzipped as small as it gets, which takes too long to be done by a server.
//
// Names inside of it are shortened too: those in `ours`, and of members of its own classes those that are nowhere a
// member of a message, an option or an event: pages of two builds talk to each other. So a name is left alone if it is
// in the types, or also the key of an object literal or pattern, or a word in a string.
import { readFileSync, writeFileSync } from 'node:fs';
import zopfli from '@gfx/zopfli';
import { parse } from 'acorn';
import { minify } from 'terser';
import { internal } from './holdfast.js';
import { domprops } from './node_modules/terser/tools/domprops.js';

const here = new URL('.', import.meta.url);
const source = readFileSync(new URL('holdfast.js', here), 'utf8').replace(/^export const internal = .*$/m, '')
  .replace(/(?<=[;{/] )\w+ = none;|^ +\w+ = none;|^ +removeEventListener\(.*$/gm, ''); // declared for the type checker only
// Of data that never leaves its page or worker, though they are keys or words.
const ours = 'stop open drop reset again after env link post heard queue phase fan told passing tries loop gap over wait seq until hello probe dial frame seen remote pull failed due unwanted resolve reject promise parked asked load ack bye detach status answer lost run sent race visible emit wake events storage save watch nudge closed down stepDown worker index wanted flush restart start sharing only';
const types = readFileSync(new URL('holdfast.d.ts', here), 'utf8').replace(/\/\*.*?\*\//gs, '');
/** Members of what leaves its page or worker: of the types, of frames, and of messages with a `t`. */
const said = new Set([...types.matchAll(/^ +(?:get |protected )*(\w+)\??[:(]/gm)].map(m => m[1]).concat(...internal.FRAMES.values(), 'at', 'history', 'pending', 'topics'));
const own = new Set(), spoken = new Set(['constructor', ...[...types.matchAll(/(\w+)\??:/g)].map(m => m[1])]);

(function walk(node, exported = false) {
  if (!node || typeof node !== 'object') return;
  if (Array.isArray(node)) return node.forEach(n => walk(n, exported));
  if (node.type === 'ExportNamedDeclaration') exported = true;
  if (node.type === 'MethodDefinition' || node.type === 'PropertyDefinition') (exported ? spoken : own).add(node.key.name);
  if (node.type === 'AssignmentExpression' && node.left.object?.type === 'ThisExpression') (exported ? spoken : own).add(node.left.property.name);
  if (node.type === 'ObjectExpression' && node.properties.some(p => p.key?.name === 't')) for (const p of node.properties) said.add(p.key?.name);
  if (node.type === 'MemberExpression' && globalThis[node.object.name]) said.add(node.property.name); // as Promise.reject
  if (node.type === 'Property') spoken.add(node.key.name ?? node.key.value);
  const text = node.type === 'TemplateElement' ? node.value.raw : node.type === 'Literal' ? node.value : '';
  if (typeof text === 'string') text.match(/\w+/g)?.forEach(w => spoken.add(w));
  for (const [k, n] of Object.entries(node)) if (k !== 'type') walk(n, exported);
})(parse(source, { ecmaVersion: 'latest', sourceType: 'module' }));

const wrong = ours.split(' ').filter(n => said.has(n));
if (wrong.length) throw new Error(`not ours alone: ${wrong.join(' ')}`);
const names = [...[...own].filter(n => n && !spoken.has(n) && !domprops.includes(n)), ...ours.split(' ')];
const { code } = await minify(source, {
  module: true, ecma: 2022,
  compress: { passes: 3, unsafe_arrows: true, pure_getters: true, hoist_funs: true, lhs_constants: false, unsafe: true },
  mangle: { properties: { regex: new RegExp(`^(${names.join('|')})$`), builtins: true } },
});
const min = Buffer.from(`// holdfast, MIT\n${code}\n`);
writeFileSync(new URL('holdfast.min.js', here), min);
writeFileSync(new URL('holdfast.min.js.gz', here), await zopfli.gzipAsync(min, { numiterations: 15 }));
