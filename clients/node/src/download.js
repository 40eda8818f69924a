/** Getting a model: its manifest, then the tensors that are not on disk yet, resumed where the bytes on disk end. */
import { untilDone } from './backoff.js';
import { isRefusal, Trouble } from './errors.js';
import * as limits from './limits.js';
import { modelDigest } from './model.js';
import { STALL_MS } from './stream.js';
import { readChunk, readEntry } from './wire.js';

const MOST_REPAIRS = 3;

/**
 * Bring a model into the store.
 * @param {{connection: import('./connection.js').Connection, store: import('./store.js').Store,
 *   schema: import('./model.js').Spec[], patience: import('./backoff.js').Patience, log: Function}} site
 * @param {Buffer} digest sha256 of the model's canonical description
 * @param {number} maxChunkBytes
 * @param {{signal?: AbortSignal, onBytes?: (done: number, total: number) => void}} [hooks]
 * @returns {Promise<import('./model.js').Entry[]>} its manifest; every tensor is in the store
 */
export async function fetchModel(site, digest, maxChunkBytes, { signal, onBytes = () => {} } = {}) {
  const { connection, log, patience, schema, store } = site;
  let [received, repairs] = [0, 0];
  const options = { howFar: () => received, patience, doing: 'downloading a model', log, signal };
  return untilDone(async () => {
    const entries = await readManifest(connection.getManifest(digest, signal), digest, schema);
    for (let lacking = await lackingOf(store, entries); lacking.length; lacking = await lackingOf(store, entries)) {
      await receive(lacking);
    }
    return entries;
  }, options);

  /** One stream: the tensors that are lacking, the first of them from where its bytes on disk end. */
  async function receive(lacking) {
    const [{ entry: first }] = lacking;
    const kept = await store.partialSize(first);
    if (kept >= first.size) return store.adopt(first); // it had arrived, but was not counted yet; or it goes
    const total = lacking.reduce((sum, { entry }) => sum + entry.size, 0);
    const tensors = lacking.map(({ index }) => index);
    log('info', 'downloading a model', { bytes: total, kept, tensors: tensors.length });
    const request = { model_sha256: digest, tensors, read_offset: String(kept), max_chunk_bytes: maxChunkBytes };
    const stream = connection.readChunks(request, signal);
    const incoming = new Incoming(stream, kept);
    try {
      for (const { entry } of lacking) {
        signal?.throwIfAborted();
        await fill(entry, entry === first ? kept : 0, incoming, (offset) => onBytes(offset, total));
      }
    } catch (error) {
      if (!isRefusal(error, 'WRONG_OFFSET')) throw error;
      await store.dropPartial(first); // more is here than there is
      throw new Trouble(error.message);
    } finally {
      stream.cancel();
    }
  }

  async function fill(entry, from, incoming, tell) {
    if (from === 0) await store.dropPartial(entry);
    for (let have = from; have < entry.size;) {
      const data = await incoming.take(entry.size - have);
      await store.append(entry, data);
      have += data.length;
      received += data.length;
      tell(incoming.offset);
    }
    if (await store.adopt(entry)) return;
    repairs += 1;
    if (repairs > MOST_REPAIRS) throw new Error(`tensor ${entry.name} arrives damaged again and again`);
    throw new Trouble(`tensor ${entry.name} does not match its digest`);
  }
}

/** A body as it comes, chunk by chunk, cut where tensors end. */
class Incoming {
  #stream;
  #left = Buffer.alloc(0);
  #next;

  constructor(stream, offset) {
    this.#stream = stream;
    this.#next = offset;
  }

  /** Bytes of the body that were taken. */
  get offset() {
    return this.#next - this.#left.length;
  }

  /** The next bytes, `most` at most, one at least. */
  async take(most) {
    while (this.#left.length === 0) {
      const message = await this.#stream.read(STALL_MS);
      if (message === null) throw new Trouble(`the body ended after ${this.#next} bytes`);
      this.#left = readChunk(message.chunk, this.#next);
      this.#next += this.#left.length;
    }
    const data = this.#left.subarray(0, most);
    this.#left = this.#left.subarray(data.length);
    return data;
  }
}

async function readManifest(stream, digest, schema) {
  const entries = [];
  for (let message = await stream.read(STALL_MS); message; message = await stream.read(STALL_MS)) {
    entries.push(...(message.part?.entries ?? []).map(readEntry));
    if (entries.length > limits.MAX_TENSORS) throw new Trouble('the manifest is too long');
  }
  const fits = entries.length === schema.length && entries.every((entry, at) => isOf(entry, schema[at]));
  if (!fits || !modelDigest(entries).sha256.equals(digest)) throw new Trouble('the manifest is not of this model');
  return entries;
}

function isOf(entry, spec) {
  return entry.name === spec.name && entry.dtype === spec.dtype && entry.shape.join() === spec.shape.join();
}

async function lackingOf(store, entries) {
  const known = await Promise.all(entries.map((entry) => store.has(entry)));
  const indexed = entries.map((entry, index) => ({ entry, index }));
  const seen = new Set(); // two tensors of the same bytes are one file, and travel once
  return indexed.filter(({ entry, index }) => {
    const name = entry.sha256.toString('hex');
    return !known[index] && !seen.has(name) && seen.add(name);
  });
}
