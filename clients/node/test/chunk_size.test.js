/** What a line teaches about the size of chunks. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { ChunkSize } from '../src/chunk_size.js';
import * as limits from '../src/limits.js';

test('chunks are halved by cuts, quartered by standstills, and grow again with what gets through', () => {
  const size = new ChunkSize();
  assert.equal(size.mostBytes, limits.MAX_CHUNK_BYTES);
  size.noteCut(1 << 20);
  assert.equal(size.mostBytes, 1 << 19);
  size.noteCut(1 << 21); // of a stream that began before that
  size.noteStall(1 << 19);
  assert.equal(size.mostBytes, 1 << 17);
  size.noteRun((16 << 17) - 1);
  assert.equal(size.mostBytes, 1 << 17);
  size.noteRun(16 << 17);
  assert.equal(size.mostBytes, 1 << 18);
  for (let cut = 0; cut < 30; cut += 1) size.noteCut(size.mostBytes);
  assert.equal(size.mostBytes, 16 << 10);
});
