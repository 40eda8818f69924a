/** The byte vectors that every implementation is held to: comments, then cases of `key: JSON` lines. */
import { readFileSync } from 'node:fs';

/** @param {string} name such as `chunks.txt` @returns {object[]} */
export function readVectors(name) {
  const text = readFileSync(new URL(`../../../tests/wire/vectors/${name}`, import.meta.url), 'utf8');
  const lines = text.split('\n').filter((line) => !line.startsWith('#'));
  const blocks = lines.join('\n').split('\n\n').map((block) => block.split('\n').filter(Boolean));
  return blocks.filter((block) => block.length).map((block) => Object.fromEntries(block.map(pair)));
}

function pair(line) {
  const at = line.indexOf(': ');
  return [line.slice(0, at), JSON.parse(line.slice(at + 2))];
}

/** @param {string} text */
export const hex = (text) => Buffer.from(text, 'hex');
