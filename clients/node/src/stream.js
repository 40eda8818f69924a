/** A stream of gRPC to read and write with `await`, at the pace of whoever reads. */
import { Stalled, Trouble } from './errors.js';
import { fromServiceError } from './status.js';

/** How long a stream of chunks may stand still before it is taken for broken. */
export const STALL_MS = 120_000;
const MOST_QUEUED = 4;

export class Stream {
  #call;
  #queue = [];
  #failure = null;
  #ended = false;
  #waiting = new Set();

  /**
   * @param {import('@grpc/grpc-js').ClientDuplexStream | import('@grpc/grpc-js').ClientReadableStream} call
   * @param {AbortSignal} [signal] cancels it
   */
  constructor(call, signal) {
    this.#call = call;
    if (signal?.aborted) call.cancel();
    const abort = () => call.cancel();
    signal?.addEventListener('abort', abort, { once: true });
    call.on('status', () => signal?.removeEventListener('abort', abort));
    call.on('data', (message) => {
      this.#queue.push(message);
      if (this.#queue.length >= MOST_QUEUED) call.pause();
      this.#wake();
    });
    call.on('error', (error) => {
      this.#failure ??= fromServiceError(error);
      this.#wake();
    });
    call.on('end', () => {
      // An error that ends the stream comes in the same turn, but may come after this.
      setImmediate(() => {
        this.#ended = true;
        this.#wake();
      });
    });
    call.on('drain', () => this.#wake());
  }

  /**
   * The next message, or null if the server has ended the stream with OK.
   * @param {number} [stallMs] longest wait; none by default
   */
  async read(stallMs) {
    while (this.#queue.length === 0) {
      if (this.#failure) throw this.#failure;
      if (this.#ended) return null;
      await this.#change(stallMs);
    }
    const message = this.#queue.shift();
    if (this.#call.isPaused()) this.#call.resume();
    return message;
  }

  /** Messages that have come already, without waiting. */
  *arrived() {
    while (this.#queue.length > 0) yield this.#queue.shift();
    if (this.#call.isPaused()) this.#call.resume();
  }

  /** Write one message; waits while gRPC's buffer is full. If the stream has ended, raises what it ended with. */
  async write(message) {
    this.#check();
    if (!this.#call.write(message)) {
      while (this.#call.writableNeedDrain) {
        await this.#change(STALL_MS);
        this.#check();
      }
    }
  }

  /** Say that nothing more will be written. */
  end() {
    this.#call.end();
  }

  /** Resolves when the server has ended the stream, or after so long. @param {number} milliseconds */
  async ended(milliseconds) {
    const timer = setTimeout(() => this.cancel(), milliseconds);
    while (!this.#ended && !this.#failure) await this.#change();
    clearTimeout(timer);
  }

  /** Give the stream up. */
  cancel() {
    this.#call.cancel();
  }

  #check() {
    if (this.#failure) throw this.#failure;
    if (this.#ended) throw new Trouble('the server ended the stream');
  }

  #wake() {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    waiting.forEach((resolve) => resolve());
  }

  async #change(stallMs) {
    let timer;
    await new Promise((resolve, reject) => {
      this.#waiting.add(resolve);
      if (stallMs) timer = setTimeout(() => reject(new Stalled(`nothing moved for ${stallMs / 1000} s`)), stallMs);
    }).finally(() => clearTimeout(timer));
  }
}
