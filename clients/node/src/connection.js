/** The one channel of a client, and its calls as promises and streams, with errors in the client's own kinds. */
import grpc from '@grpc/grpc-js';
import { NegotiationService, TransferService } from './contract.js';
import { fromServiceError } from './status.js';
import { Stream } from './stream.js';
import { credentials, SERVER_NAME } from './trust.js';

/** Deadline of a call that only asks or tells: over it, the connection is taken for broken. */
const QUICK_MS = 60_000;
/** Deadline of a call in which the server digests a model. */
const LONG_MS = 600_000;

const OPTIONS = {
  // A NAT forgets an idle connection after minutes, some after one; a ping each half minute also finds a dead peer.
  'grpc.keepalive_time_ms': 30_000,
  'grpc.keepalive_timeout_ms': 20_000,
  'grpc.keepalive_permit_without_calls': 1,
  // Coming back is done by `backoff.js`, with a log line that says why.
  'grpc.enable_retries': 0,
  'grpc.initial_reconnect_backoff_ms': 200,
  'grpc.max_reconnect_backoff_ms': 5_000,
};

export class Connection {
  #options;
  #negotiation;
  #transfer;

  /** @param {object} options see `trust.js` */
  constructor(options) {
    this.#options = options;
  }

  /** Check who answers, and open the channel if it is not open. Comes before each session. */
  async open() {
    const trusted = await credentials(this.#options);
    if (this.#negotiation) return;
    const named = this.#options.plaintext ? {} : { 'grpc.ssl_target_name_override': SERVER_NAME };
    this.#negotiation = new NegotiationService(this.#options.server, trusted, { ...OPTIONS, ...named });
    this.#transfer = new TransferService(this.#options.server, trusted, { ...OPTIONS, ...named });
  }

  close() {
    this.#negotiation?.close();
    this.#transfer?.close();
    this.#negotiation = this.#transfer = undefined;
  }

  describeTask() {
    return answer((done) => this.#negotiation.DescribeTask({}, within(QUICK_MS), done));
  }

  /** @returns {Stream} */
  negotiate() {
    return new Stream(this.#negotiation.Negotiate());
  }

  // Transfers take a signal: when an offer is cancelled, what is under way for it ends at once.

  /** @param {object[]} messages the header, then the parts @param {AbortSignal} [signal] */
  putManifest(messages, signal) {
    return answer((done) => {
      const call = this.#transfer.PutManifest(within(LONG_MS), done);
      messages.forEach((message) => call.write(message));
      call.end();
      return call;
    }, signal);
  }

  /** @param {AbortSignal} [signal] @returns {Stream} */
  writeChunks(signal) {
    return new Stream(this.#transfer.WriteChunks(), signal);
  }

  uploadStatus(uploadId, signal) {
    return answer((done) => this.#transfer.GetUploadStatus({ upload_id: uploadId }, within(QUICK_MS), done), signal);
  }

  finishUpload(uploadId, signal) {
    return answer((done) => this.#transfer.FinishUpload({ upload_id: uploadId }, within(LONG_MS), done), signal);
  }

  /** @param {Buffer} modelSha256 @param {AbortSignal} [signal] @returns {Stream} */
  getManifest(modelSha256, signal) {
    return new Stream(this.#transfer.GetManifest({ model_sha256: modelSha256 }, within(LONG_MS)), signal);
  }

  /** @param {object} request @param {AbortSignal} [signal] @returns {Stream} */
  readChunks(request, signal) {
    return new Stream(this.#transfer.ReadChunks(request), signal);
  }
}

function within(milliseconds) {
  return { deadline: new Date(Date.now() + milliseconds) };
}

function answer(begin, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => call.cancel();
    const call = begin((error, response) => {
      signal?.removeEventListener('abort', abort);
      if (error) reject(fromServiceError(error)); else resolve(response);
    });
    signal?.addEventListener('abort', abort, { once: true });
  });
}
