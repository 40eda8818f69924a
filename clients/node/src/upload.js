/**
 * Sending an update: manifest, the tensors the server lacks, finish; resumed at `committed_size` after any cut.
 *
 *     MANIFEST --missing tensors--> BODY --all sent--> FINISH --ack--> delivered
 *     BODY, FINISH --cut--> STATUS --> MANIFEST (the server has none) | BODY | FINISH | unwanted
 *
 * What is sent but not yet committed never exceeds the window, so that no cut costs more than that.
 */
import { untilDone } from './backoff.js';
import { isRefusal, Trouble } from './errors.js';
import { modelDigest } from './model.js';
import { STALL_MS } from './stream.js';
import { manifestParts, readIndexes, writeChunk, writeDigest, writeMetrics } from './wire.js';

const MOST_RESTARTS = 3;

/** The server does not wait for this update any more. */
export class Unwanted extends Error {}

export class Upload {
  #site;
  #offer;
  #update;
  #terms;
  #onBytes;
  #body = null; // the tensors that travel, once the server has said which
  #committed = 0;
  #highest = 0;
  #restarts = 0;
  #signal;

  /**
   * @param {{connection: object, store: import('./store.js').Store, patience: object, log: Function}} site
   * @param {{upload_id: string}} offer
   * @param {object} update a record as `job.js` makes it
   * @param {{maxChunkBytes: number, windowBytes: number}} terms
   * @param {(done: number, total: number) => void} onBytes
   */
  constructor(site, offer, update, terms, onBytes) {
    this.#site = site;
    this.#offer = offer;
    this.#update = update;
    this.#terms = terms;
    this.#onBytes = onBytes;
  }

  /**
   * Send until the server has the update durably.
   * @param {AbortSignal} signal
   * @returns {Promise<string>} why it was kept aside; empty if it is in the round
   * @throws {Unwanted} the round is over, or another update was begun for the offer
   */
  async run(signal) {
    this.#signal = signal;
    const { patience, log } = this.#site;
    const options = { howFar: () => this.#highest, patience, doing: 'sending the update', log, signal };
    try {
      return await untilDone(() => this.#once(), options);
    } catch (error) {
      if (isRefusal(error, 'ROUND_CLOSED', 'UNKNOWN_UPLOAD', 'MANIFEST_CONFLICT')) throw new Unwanted(error.message);
      throw error;
    }
  }

  async #once() {
    try {
      if (this.#body === null || !(await this.#canResume())) await this.#putManifest();
      if (this.#committed < this.#size) await this.#writeBody();
      return await this.#finish();
    } catch (error) {
      // Documented as: resume at `committed_size`.
      if (isRefusal(error, 'WRONG_OFFSET', 'CHECKSUM_MISMATCH', 'BODY_INCOMPLETE')) throw new Trouble(error.message);
      if (isRefusal(error, 'MANIFEST_REQUIRED', 'DIGEST_MISMATCH', 'SUPERSEDED')) throw this.#beginAnew(error);
      throw error;
    }
  }

  #beginAnew(error) {
    this.#restarts += 1;
    if (this.#restarts > MOST_RESTARTS) return error;
    this.#body = null;
    return new Trouble(error.message);
  }

  get #size() {
    return this.#body.reduce((sum, entry) => sum + entry.size, 0);
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
    if (Number(answer.body_size_bytes) !== this.#size) throw new Trouble('the server counts the body otherwise');
    this.#commit(answer.committed_size);
    this.#site.log('info', 'sending the update', { bytes: this.#size, committed: this.#committed });
  }

  /** Ask how far the server is; whether it can go on from there with the body as agreed. */
  async #canResume() {
    const status = await this.#site.connection.uploadStatus(this.#offer.upload_id, this.#signal);
    if (status.state === 'UPLOAD_STATE_CLOSED') throw new Unwanted('the round closed before the update was there');
    if (['UPLOAD_STATE_ADMITTED', 'UPLOAD_STATE_QUARANTINED'].includes(status.state)) {
      this.#commit(this.#size);
      return true;
    }
    if (status.state !== 'UPLOAD_STATE_OPEN' || Number(status.body_size_bytes) !== this.#size) return false;
    this.#commit(status.committed_size);
    this.#site.log('info', 'resuming the upload', { committed: this.#committed, of: this.#size });
    return true;
  }

  async #writeBody() {
    const stream = this.#site.connection.writeChunks(this.#signal);
    const size = this.#size;
    try {
      await this.#sendChunks(stream, size);
      stream.end();
      while (await this.#hearCommit(stream));
    } finally {
      stream.cancel();
    }
    if (this.#committed < size) throw new Trouble(`the server ended the stream at ${this.#committed} of ${size} bytes`);
  }

  async #sendChunks(stream, size) {
    const { maxChunkBytes, windowBytes } = this.#terms;
    const most = Math.min(maxChunkBytes, windowBytes);
    for (let offset = this.#committed; offset < size;) {
      this.#signal.throwIfAborted();
      const data = await this.#read(offset, most);
      while (offset + data.length > this.#committed + windowBytes) {
        if (!(await this.#hearCommit(stream))) throw new Trouble('the server ended the stream');
      }
      await stream.write({ upload_id: this.#offer.upload_id, chunk: writeChunk(offset, data) });
      offset += data.length;
      for (const message of stream.arrived()) this.#commit(message.committed_size);
    }
  }

  /** Bytes of the body from `offset` on, `most` at most: the tensors stand in it one after another. */
  async #read(offset, most) {
    const parts = [];
    let start = 0;
    let left = most;
    for (const entry of this.#body) {
      const from = Math.max(offset - start, 0);
      if (from < entry.size && left > 0) {
        parts.push(await this.#site.store.read(entry, from, left));
        left -= parts.at(-1).length;
      }
      start += entry.size;
    }
    return Buffer.concat(parts);
  }

  /** Take in one `committed_size`; false at the stream's end. */
  async #hearCommit(stream) {
    const message = await stream.read(STALL_MS);
    if (message !== null) this.#commit(message.committed_size);
    return message !== null;
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
