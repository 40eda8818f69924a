/** How large the chunks of weights are that a line gets through, learned from what became of earlier ones. */
import * as limits from './limits.js';

/** Below it, what a chunk costs beside its data begins to count, and connections that carry less carry no session. */
const LEAST_BYTES = 16 << 10;
/** Of a line that is cut after so many chunks, one that is lost in the cut is then no large part. */
const RUN_CHUNKS = 16;

/**
 * The most bytes that a chunk to or from one server is to have, for both directions and through all sessions.
 *
 * It begins as large as the protocol allows. A chunk that is cut is lost as a whole, so a try that was cut before one got
 * through halves it, and a stream that stood still for two minutes quarters it. A stream that gets 16 such chunks
 * through without a cut doubles it. A server that cannot be reached says nothing of the line: that is no cut.
 */
export class ChunkSize {
  mostBytes = limits.MAX_CHUNK_BYTES;

  /** A stream with such chunks was cut before one of them got through. */
  noteCut(chunkBytes) {
    this.#lowerTo(Math.floor(chunkBytes / 2));
  }

  /** A stream with such chunks stood still until it was given up. */
  noteStall(chunkBytes) {
    this.#lowerTo(Math.floor(chunkBytes / 4));
  }

  /** One stream has got so many bytes through by now, without a cut. */
  noteRun(bytes) {
    while (this.mostBytes < limits.MAX_CHUNK_BYTES && bytes >= RUN_CHUNKS * this.mostBytes) {
      this.mostBytes = Math.min(2 * this.mostBytes, limits.MAX_CHUNK_BYTES);
    }
  }

  #lowerTo(bytes) {
    this.mostBytes = Math.min(this.mostBytes, Math.max(bytes, LEAST_BYTES));
  }
}
