// Writes holdfast.min.js, which the Go package serves: holdfast.js without comments, and without what only tests need.
import { readFileSync, writeFileSync } from 'node:fs';
import { transform } from 'esbuild';

const here = new URL('.', import.meta.url);
const source = readFileSync(new URL('holdfast.js', here), 'utf8').replace(/^export const internal = .*$/m, '');
const { code } = await transform(source, { minify: true, format: 'esm', target: 'es2022', legalComments: 'none' });
writeFileSync(new URL('holdfast.min.js', here), `// holdfast, MIT\n${code}`);
