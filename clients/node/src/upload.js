/**
 * Sending an update: manifest, the tensors the server lacks, finish; resumed at `committed_size` after any cut.
 *
 *     MANIFEST --missing tensors--> BODY --all sent--> FINISH --ack--> delivered
 *     BODY, FINISH --cut--> STATUS --> MANIFEST (the server has none) | BODY | FINISH | unwanted
 *
 * What is sent but not yet committed never exceeds the window, so that no cut costs more than that.
 */
import { untilDone } from './backoff.js';
import { Breach, isRefusal, Refusal, Stalled, Trouble } from './errors.js';
import { bodyOf, modelDigest } from './model.js';
import { STALL_MS } from './stream.js';
import { manifestParts, readIndexes, writeChunk, writeDigest, writeMetrics } from './wire.js';

const MOST_RESTARTS = 3;

/** The server does not wait for this update any more. */
export class Unwanted extends Error {}

/** What is on disk is not what was put there. */
export class Damaged extends Error {}

/**
 * Whether the server has an update in its round; not so where it does not know it.
 * @param {{connection: object, patience: object, log: Function}} site
 * @param {string} uploadId
 * @param {AbortSignal} signal
 */
export async function isAdmitted({ connection, patience, log }, uploadId, signal) {
  const once = () => connection.uploadStatus(uploadId, signal);
  const options = { howFar: () => 0, patience, doing: 'asking of an earlier update', log, signal };
  try {
    return (await untilDone(once, options)).state === 'UPLOAD_STATE_ADMITTED';
  } catch (error) {
    if (error instanceof Refusal) return false;
    throw error;
  }
}

export class Upload {
  #site;
  #offer;
  #update;
  #terms;
  #onBytes;
  #asksFirst;
  #body = null; // the tensors that travel, once the server has said which
  #grantedBytes = 0; // the window of this upload; 0 where the server has not said any
  #committed = 0;
  #highest = 0;
  #restarts = 0;
  #mostAtOnce = Infinity; // that the server takes, where it has refused more
  #beganAt = 0; // where the stream of chunks began
  #cut = null; // {chunkBytes, beganAt} of the last stream, if it was cut
  #signal;

  /**
   * @param {{connection: object, store: import('./store.js').Store, chunkSize: import('./chunk_size.js').ChunkSize,
   *   patience: object, log: Function}} site
   * @param {{upload_id: string}} offer
   * @param {object} update `entries` as packed, and the facts of the fine-tune
   * @param {() => {maxChunkBytes: number, windowBytes: number}} terms as the latest welcome says
   * @param {{onBytes?: (done: number, total: number) => void, isBegun?: boolean}} [options] whether it may have been
   *   sent before, so that the server knows more of it than is known here
   */
  constructor(site, offer, update, terms, { onBytes = () => {}, isBegun = false } = {}) {
    this.#site = site;
    this.#offer = offer;
    this.#update = update;
    this.#terms = terms;
    this.#onBytes = onBytes;
    this.#asksFirst = isBegun;
  }

  /**
   * Send until the server has the update durably.
   * @param {AbortSignal} signal
   * @returns {Promise<string>} why it was kept aside; empty if it is in the round
   * @throws {Unwanted} the round is over
   * @throws {Damaged} what was to be sent is damaged here: it has to be made again
   */
  async run(signal) {
    this.#signal = signal;
    const { patience, log } = this.#site;
    const options = { howFar: () => this.#highest, patience, doing: 'sending the update', log, signal };
    try {
      return await untilDone(() => this.#once(), options);
    } catch (error) {
      if (isRefusal(error, 'ROUND_CLOSED', 'UNKNOWN_UPLOAD')) throw new Unwanted(error.message);
      throw error;
    }
  }

  async #once() {
    try {
      if (!(this.#asksFirst && await this.#canGoOn())) await this.#putManifest();
      if (this.#committed < this.#size) await this.#writeBody();
      return await this.#finish();
    } catch (error) {
      this.#asksFirst = true;
      throw await this.#react(error);
    }
  }

  /** What to raise for an error; Trouble means to come back. */
  async #react(error) {
    // Documented as: resume at `committed_size`.
    if (isRefusal(error, 'WRONG_OFFSET', 'CHECKSUM_MISMATCH', 'BODY_INCOMPLETE')) return new Trouble(error.message);
    if (isRefusal(error, 'SUPERSEDED')) return this.#countRestart(error);
    if (isRefusal(error, 'MANIFEST_REQUIRED')) return this.#beginAnew(error);
    if (!isRefusal(error, 'DIGEST_MISMATCH')) return error;
    if (await this.#site.store.recheck(this.#body.map(bodyOf))) return this.#beginAnew(error);
    return new Damaged(error.message);
  }

  #beginAnew(error) {
    this.#body = null;
    this.#asksFirst = false; // what the server has is known: nothing that counts
    return this.#countRestart(error);
  }

  #countRestart(error) {
    this.#restarts += 1;
    return this.#restarts > MOST_RESTARTS ? error : new Trouble(error.message);
  }

  #sendSmaller(error) {
    const refused = this.#chunkBytes;
    const allowed = Number(error.metadata.max_chunk_bytes);
    if (refused === 1) return error;
    this.#mostAtOnce = allowed >= 1 && allowed < refused ? allowed : Math.floor(refused / 2);
    return new Trouble(error.message);
  }

  /** At most half the window: else both ends could wait, this one for an answer and the server for more. */
  get #chunkBytes() {
    const most = Math.min(this.#terms().maxChunkBytes, this.#site.chunkSize.mostBytes, this.#mostAtOnce);
    return Math.max(1, Math.min(most, Math.floor(this.#windowBytes / 2)));
  }

  get #windowBytes() {
    return this.#grantedBytes || this.#terms().windowBytes;
  }

  get #size() {
    return this.#body.reduce((sum, entry) => sum + bodyOf(entry).size, 0);
  }

  async #putManifest() {
    const { entries, numExamples, metrics, epochs, trainingSeconds } = this.#update;
    const header = {
      upload_id: this.#offer.upload_id,
      num_tensors: entries.length,
      model_digest: writeDigest(modelDigest(entries)),
      num_examples: String(numExamples),
      metrics: writeMetrics(metrics),
      epochs,
      training_seconds: trainingSeconds,
    };
    const messages = [{ header }, ...manifestParts(entries).map((part) => ({ part }))];
    const answer = await this.#site.connection.putManifest(messages, this.#signal);
    this.#body = readIndexes(answer.missing_tensors, entries.length).map((index) => entries[index]);
    if (Number(answer.body_size_bytes) !== this.#size) throw new Breach('the server counts the body otherwise');
    this.#grantedBytes = answer.window_bytes;
    this.#commit(answer.committed_size);
    this.#site.log('info', 'sending the update', { bytes: this.#size, committed: this.#committed });
  }

  /** Ask how far the server is; whether it can go on from there, with the body as agreed if it is not finished. */
  async #canGoOn() {
    const status = await this.#site.connection.uploadStatus(this.#offer.upload_id, this.#signal);
    if (status.state === 'UPLOAD_STATE_CLOSED') throw new Unwanted('the round closed before the update was there');
    if (['UPLOAD_STATE_ADMITTED', 'UPLOAD_STATE_QUARANTINED'].includes(status.state)) {
      this.#body ??= [];
      this.#commit(this.#size);
      return true;
    }
    const isOpen = status.state === 'UPLOAD_STATE_OPEN' && this.#body !== null;
    if (!isOpen || Number(status.body_size_bytes) !== this.#size) return false;
    this.#grantedBytes = status.window_bytes;
    this.#commit(status.committed_size);
    this.#learnOfCut();
    this.#site.log('info', 'resuming the upload', { committed: this.#committed, of: this.#size });
    return true;
  }

  /** Take note of a stream of which nothing got through, now that the server says so: one that is away says nothing. */
  #learnOfCut() {
    if (this.#cut && this.#committed <= this.#cut.beganAt) this.#site.chunkSize.noteCut(this.#cut.chunkBytes);
    this.#cut = null;
  }

  async #writeBody() {
    const stream = this.#site.connection.writeChunks(this.#signal);
    const size = this.#size;
    this.#beganAt = this.#committed;
    try {
      await this.#sendChunks(stream, size);
      stream.end();
      while (await this.#hearCommit(stream));
    } catch (error) {
      const chunkBytes = this.#chunkBytes;
      if (error instanceof Stalled) this.#site.chunkSize.noteStall(chunkBytes);
      else if (error instanceof Trouble) this.#cut = { chunkBytes, beganAt: this.#beganAt };
      throw isRefusal(error, 'CHUNK_TOO_LARGE') ? this.#sendSmaller(error) : error;
    } finally {
      stream.cancel();
    }
    if (this.#committed < size) throw new Trouble(`the server ended the stream at ${this.#committed} of ${size} bytes`);
  }

  async #sendChunks(stream, size) {
    const windowBytes = this.#windowBytes;
    const most = this.#chunkBytes;
    const write = (offset, data) => (
      stream.write({ upload_id: this.#offer.upload_id, chunk: writeChunk(offset, data) }));
    // An empty one first: the server does not wait for long to hear whose stream it is, and a slow line may take a
    // minute for what follows.
    await write(this.#committed, Buffer.alloc(0));
    for (let offset = this.#committed; offset < size;) {
      this.#signal.throwIfAborted();
      const data = await this.#read(offset, most);
      while (offset + data.length > this.#committed + windowBytes) {
        if (!(await this.#hearCommit(stream))) throw new Trouble('the server ended the stream');
      }
      await write(offset, data);
      offset += data.length;
      for (const message of stream.arrived()) this.#heard(message);
    }
  }

  /** Bytes of the body from `offset` on, `most` at most: the tensors stand in it one after another. */
  async #read(offset, most) {
    const parts = [];
    let start = 0;
    let left = most;
    for (const piece of this.#body.map(bodyOf)) {
      const from = Math.max(offset - start, 0);
      if (from < piece.size && left > 0) {
        parts.push(await this.#site.store.read(piece, from, left));
        left -= parts.at(-1).length;
      }
      start += piece.size;
    }
    return Buffer.concat(parts);
  }

  /** Take in one `committed_size`; false at the stream's end. */
  async #hearCommit(stream) {
    const message = await stream.read(STALL_MS);
    if (message !== null) this.#heard(message);
    return message !== null;
  }

  #heard({ committed_size }) {
    this.#commit(committed_size);
    this.#site.chunkSize.noteRun(this.#committed - this.#beganAt);
  }

  #commit(committed) {
    this.#committed = Math.min(Number(committed), this.#size);
    this.#highest = Math.max(this.#highest, this.#committed);
    this.#onBytes(this.#committed, this.#size);
  }

  async #finish() {
    const { state, reason } = await this.#site.connection.finishUpload(this.#offer.upload_id, this.#signal);
    return state === 'UPLOAD_STATE_QUARANTINED' ? reason || 'no reason given' : '';
  }
}
