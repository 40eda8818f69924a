/** Getting a model: its manifest, then the tensors that are not on disk yet, resumed where the bytes on disk end. */
import { untilDone } from './backoff.js';
import { Breach, isRefusal, Stalled, Trouble } from './errors.js';
import * as limits from './limits.js';
import { modelDigest } from './model.js';
import { STALL_MS } from './stream.js';
import { readChunk, readEntry } from './wire.js';

const MOST_REPAIRS = 3;

/**
 * Bring a model into the store.
 * @param {{connection: import('./connection.js').Connection, store: import('./store.js').Store,
 *   schema: import('./model.js').Spec[], chunkSize: import('./chunk_size.js').ChunkSize,
 *   patience: import('./backoff.js').Patience, log: Function}} site
 * @param {Buffer} digest sha256 of the model's canonical description
 * @param {number} maxChunkBytes
 * @param {{signal?: AbortSignal, onBytes?: (done: number, total: number) => void}} [hooks]
 * @returns {Promise<import('./model.js').Entry[]>} its manifest; every tensor is in the store
 * @throws {Breach} what comes is not this model, again and again
 */
export async function fetchModel(site, digest, maxChunkBytes, { signal, onBytes = () => {} } = {}) {
  const { chunkSize, connection, log, patience, schema, store } = site;
  let [received, repairs] = [0, 0];
  let cutBytes = 0; // of the chunks of which the last stream was cut before one came
  const options = { howFar: () => received, patience, doing: 'downloading a model', log, signal };
  return untilDone(async () => {
    const entries = await repaired(readManifest(connection.getManifest(digest, signal), digest, schema));
    // Now that the server has answered: one that is away says nothing of the line.
    if (cutBytes > 0) chunkSize.noteCut(cutBytes);
    cutBytes = 0;
    for (let lacking = await lackingOf(store, entries); lacking.length; lacking = await lackingOf(store, entries)) {
      await receive(lacking);
    }
    return entries;
  }, options);

  /** What may have been damaged on its way is asked for again, a few times. */
  async function repaired(work) {
    try {
      return await work;
    } catch (error) {
      if (!(error instanceof Breach)) throw error;
      repairs += 1;
      throw repairs > MOST_REPAIRS ? error : new Trouble(error.message);
    }
  }

  /** One stream: the tensors that are lacking, the first of them from where its bytes on disk end. */
  async function receive(lacking) {
    const [{ entry: first }] = lacking;
    const kept = await store.partialSize(first);
    if (kept >= first.size) return store.adopt(first); // it had arrived, but was not counted yet; or it goes
    const total = lacking.reduce((sum, { entry }) => sum + entry.size, 0);
    const tensors = lacking.map(({ index }) => index);
    log('info', 'downloading a model', { bytes: total, kept, tensors: tensors.length });
    const [chunkBytes, before] = [Math.min(maxChunkBytes, chunkSize.mostBytes), received];
    const request = { model_sha256: digest, tensors, read_offset: String(kept), max_chunk_bytes: chunkBytes };
    const stream = connection.readChunks(request, signal);
    const incoming = new Incoming(stream, kept, total);
    try {
      for (const { entry } of lacking) {
        signal?.throwIfAborted();
        await fill(entry, entry === first ? kept : 0, incoming, (offset) => {
          chunkSize.noteRun(received - before);
          onBytes(offset, total);
        });
      }
    } catch (error) {
      if (error instanceof Stalled) chunkSize.noteStall(chunkBytes);
      else if (error instanceof Trouble && received === before) cutBytes = chunkBytes;
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
    await repaired(Promise.reject(new Breach(`tensor ${entry.name} does not match its digest`)));
  }
}

/** A body as it comes, chunk by chunk, cut where tensors end. */
class Incoming {
  #stream;
  #left = Buffer.alloc(0);
  #next;
  #size;

  constructor(stream, offset, size) {
    this.#stream = stream;
    this.#next = offset;
    this.#size = size;
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
      this.#left = readChunk(message.chunk, this.#next, this.#size);
      this.#next += this.#left.length;
    }
    const data = this.#left.subarray(0, most);
    this.#left = this.#left.subarray(data.length);
    return data;
  }
}

async function readManifest(stream, digest, schema) {
  const entries = [];
  let announced = null;
  for (let message = await stream.read(STALL_MS); message; message = await stream.read(STALL_MS)) {
    announced ??= message.num_tensors;
    entries.push(...(message.part?.entries ?? []).map(readEntry));
    if (entries.length > limits.MAX_TENSORS) throw new Breach('the manifest is too long');
  }
  if (entries.length < (announced ?? 1)) throw new Trouble('the manifest ended too early');
  const fits = entries.length === schema.length && entries.every((entry, at) => isOf(entry, schema[at]));
  if (!fits || !modelDigest(entries).sha256.equals(digest)) throw new Breach('the manifest is not of this model');
  return entries;
}

function isOf(entry, spec) {
  return entry.name === spec.name && entry.dtype === spec.dtype && entry.shape.join() === spec.shape.join();
}

async function lackingOf(store, entries) {
  const lacking = [];
  const seen = new Set(); // two tensors of the same bytes are one file, and travel once
  for (const [index, entry] of entries.entries()) {
    const name = entry.sha256.toString('hex');
    if (!seen.has(name) && !(await store.has(entry))) lacking.push({ index, entry });
    seen.add(name);
  }
  return lacking;
}
