/** The one channel of a client, and its calls as promises and streams, with errors in the client's own kinds. */
import grpc from '@grpc/grpc-js';
import { CertificateService, EnrolmentService, NegotiationService, TransferService } from './contract.js';
import { fromServiceError } from './status.js';
import { Stream } from './stream.js';
import { channelOptions, credentials } from './trust.js';

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
  #trust;
  #channel = null;
  #certificates;
  #negotiation;
  #transfer;

  /** @param {import('./trust.js').Trust} trust */
  constructor(trust) {
    this.#trust = trust;
  }

  /** Check who answers, and open the channel if it is not open. Comes before each session. */
  async open() {
    const trusted = await credentials(this.#trust);
    if (this.#channel === null) this.#take(trusted);
  }

  /** Connect anew, with the credentials as they are now. Calls at work end on the connection that they are on. */
  async reopen() {
    const trusted = await credentials(this.#trust);
    const before = this.#channel;
    this.#take(trusted);
    before?.close();
  }

  close() {
    this.#channel?.close();
    this.#channel = null;
  }

  /** One channel for all services, so that there is one connection. */
  #take(trusted) {
    const { server } = this.#trust;
    this.#channel = new grpc.Channel(server, trusted, { ...OPTIONS, ...channelOptions(this.#trust) });
    const shared = { channelOverride: this.#channel };
    this.#certificates = new CertificateService(server, trusted, shared);
    this.#negotiation = new NegotiationService(server, trusted, shared);
    this.#transfer = new TransferService(server, trusted, shared);
  }

  describeTask() {
    return answer((done) => this.#negotiation.DescribeTask({}, within(QUICK_MS), done));
  }

  renewCertificate() {
    return answer((done) => this.#certificates.RenewCertificate({}, within(QUICK_MS), done));
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

/**
 * Exchange a token for a certificate, on a connection of its own. Nothing but a handshake goes out before the server's
 * certificate is known to be the token's.
 * @param {string} address @param {string} fingerprint @param {object} request
 */
export async function enrol(address, fingerprint, request) {
  const trust = { server: address, fingerprint };
  const service = new EnrolmentService(address, await credentials(trust), { ...OPTIONS, ...channelOptions(trust) });
  try {
    return await answer((done) => service.Enrol(request, within(QUICK_MS), done));
  } finally {
    service.close();
  }
}

function within(milliseconds) {
  return { deadline: new Date(Date.now() + milliseconds) };
}

function answer(begin, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted(); // nothing more is sent for what is not wanted
    const abort = () => call.cancel();
    const call = begin((error, response) => {
      signal?.removeEventListener('abort', abort);
      if (error) reject(fromServiceError(error)); else resolve(response);
    });
    signal?.addEventListener('abort', abort, { once: true });
  });
}
