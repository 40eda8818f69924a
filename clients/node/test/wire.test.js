/** The golden vectors, both ways: what is written reads as it should, and what others wrote is read. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { messageType } from '../src/contract.js';
import { crc32c } from '../src/crc32c.js';
import { Breach, Trouble } from '../src/errors.js';
import * as limits from '../src/limits.js';
import {
  canonicalMeaning, canonicalModel, canonicalSchema, entryOf, modelDigest, parseMeaning, sha256,
} from '../src/model.js';
import { readRefusal } from '../src/status.js';
import {
  manifestParts, readChunk, readEntry, schemaParts, writeChunk, writeDuration, writeEntry,
} from '../src/wire.js';
import { hex, readVectors } from './vectors.js';

const tell = ({ case: name }) => name ?? '';

for (const vector of readVectors('models.txt')) {
  test(`model: ${tell(vector)}`, () => {
    const entries = vector.tensors.map(([name, dtype, shape, values]) => entryOf({ name, dtype, shape }, hex(values)));
    const digest = modelDigest(entries);
    assert.equal(canonicalModel(entries), vector.canonical);
    assert.deepEqual([digest.sha256.toString('hex'), digest.size], [vector.sha256, vector.size_bytes]);
  });
}

for (const vector of readVectors('schemas.txt')) {
  test(`schema or meaning: ${tell(vector)}`, () => {
    const text = vector.tensors ? canonicalSchema(vector.tensors.map(spec)) : canonicalMeaning(meaning(vector));
    assert.equal(text, vector.canonical);
    assert.equal(sha256(text).toString('hex'), vector.sha256);
    if (!vector.tensors) assert.deepEqual(parseMeaning(vector.canonical), meaning(vector));
  });
}

for (const vector of readVectors('manifests.txt')) {
  test(`manifest part: ${tell(vector)}`, () => {
    const type = messageType('ManifestPart');
    const entry = ([name, dtype, shape, digest, size]) => ({ name, dtype, shape, sha256: hex(digest), size });
    const entries = vector.entries.map(entry);
    assert.deepEqual(type.deserialize(hex(vector.message)).entries.map(readEntry), entries);
    const [part] = manifestParts(entries);
    assert.deepEqual(type.deserialize(type.serialize(part)), type.deserialize(hex(vector.message)));
  });
}

for (const vector of readVectors('chunks.txt')) {
  test(`chunk: ${tell(vector)}`, () => {
    const type = messageType('Chunk');
    const data = hex(vector.data);
    assert.equal(crc32c(data), vector.crc32c);
    const end = vector.write_offset + data.length;
    assert.deepEqual(readChunk(type.deserialize(hex(vector.message)), vector.write_offset, end), data);
    const written = type.serialize(writeChunk(vector.write_offset, data));
    assert.deepEqual(type.deserialize(written), type.deserialize(hex(vector.message)));
  });
}

for (const vector of readVectors('errors.txt')) {
  test(`error: ${vector.reason}`, () => {
    const read = readRefusal(hex(vector.status));
    for (const field of ['reason', 'message', 'metadata']) assert.deepEqual(read[field], vector[field]);
    if (vector.retry_seconds !== undefined) assert.equal(read.retrySeconds, vector.retry_seconds);
  });
}

// Entries in other encodings come in updates, which only a server reads.
const asItIs = (vector) => vector.type === 'TensorEntry' && !tell(vector).startsWith('encoded:');
for (const vector of readVectors('malformed.txt').filter(asItIs)) {
  test(`malformed ${tell(vector)}`, () => {
    const read = () => readEntry(messageType('TensorEntry').deserialize(hex(vector.message)));
    if (vector.reason === null) read(); else assert.throws(read, Breach);
  });
}

test('chunk that was damaged or is out of place is refused', () => {
  const chunk = writeChunk(5, Buffer.from('abc'));
  assert.throws(() => readChunk({ ...chunk, data: Buffer.from('abd') }, 5, 8), /damaged/);
  assert.throws(() => readChunk(chunk, 4, 8), /came for 5, not 4/);
  assert.throws(() => readChunk(chunk, 5, 7), /reaches to 8 of 7/);
  assert.throws(() => readChunk(writeChunk(0, Buffer.alloc(limits.MAX_CHUNK_BYTES + 1)), 0, 2 ** 30), Trouble);
  assert.throws(() => readChunk({ ...writeChunk(5, Buffer.alloc(0)), crc32c: 1 }, 5, 8), /damaged/);
  assert.throws(() => readChunk(null, 5, 8), Trouble);
});

test('of a chunk that begins before what is here, what is new is taken', () => {
  const chunk = writeChunk(5, Buffer.from('abc'));
  assert.deepEqual([5, 6, 8, 9].map((have) => readChunk(chunk, have, 9).toString()), ['abc', 'bc', '', '']);
});

test('spans are bounded as the contract has it', () => {
  assert.deepEqual(writeDuration(1e15), { seconds: '315576000000', nanos: 0 });
  assert.deepEqual(writeDuration(1.5), { seconds: '1', nanos: 500_000_000 });
});

test('schema and manifest of many tensors go in parts within the bounds', () => {
  const name = (index) => `${'n'.repeat(250)}${index}`;
  const entry = (_, at) => entryOf({ name: name(at), dtype: 'F32', shape: [1] }, Buffer.alloc(4));
  const entries = Array.from({ length: 2500 }, entry);
  const parts = manifestParts(entries);
  const sizes = parts.map((part) => messageType('ManifestPart').serialize(part).length);
  assert.deepEqual(parts.flatMap((part) => part.entries), entries.map(writeEntry));
  assert.ok(Math.max(...sizes) < 2 ** 20 && Math.max(...parts.map((part) => part.entries.length)) <= 1000);
  assert.deepEqual(schemaParts(entries).map(({ schema_part: { tensors, last } }) => [tensors.length, last]),
    [[1000, false], [1000, false], [500, true]]);
});

test('a seed beyond the numbers of JavaScript survives', () => {
  const type = messageType('Plan');
  const seed = '18446744073709551615';
  assert.equal(type.deserialize(type.serialize({ seed })).seed, seed);
});

function spec([name, dtype, shape, trainable, role]) {
  return { name, dtype, shape, trainable, role };
}

function meaning({ class_names: classNames, positive_class: positiveClass, preprocessing }) {
  return { classNames, positiveClass, preprocessing };
}
