/**
 * One stream of the negotiation, from hello to its end.
 *
 *     greeting --welcome--> member --federation_outcome--> over
 *     greeting --schema_query--> greeting    the schema is sent
 *     greeting --declined--> over            raises Stop, as a welcome in another version does
 *     any --cut--> over                      raises Trouble; the work goes on, and a new session takes it up
 */
import { usable } from './encodings.js';
import { EXIT, Stop, Trouble } from './errors.js';
import * as limits from './limits.js';
import { readMetrics, schemaParts, seconds, writeMetrics } from './wire.js';

const LOOK_MS = 50;
/** Part of a lease after which it is renewed: two signs of life may be lost before the third is due. */
const LEASE_SHARE = 1 / 3;
/** Least time between two signs of progress that is news, where the lease is not much shorter. */
const PAUSE_SECONDS = 1;
const LAST_WORDS_MS = 3_000;
/** How often the server is told that the final model is still fetched: it leaves after a minute without a message. */
const COLLECTING_MS = 20_000;
/** Stands where an offer's id does in what is told when there are no more. */
const NO_OFFER = 'final model';
/** Of a server that names none. */
const DEFAULT_LEASE_SECONDS = 60;

export class Session {
  #stream;
  #site;
  #bench;
  #collect;
  #lease = null; // {offerId, seconds, told, toldAt}
  #hopeless = null; // why this client is to end, where that is found between two messages

  /**
   * @param {import('./stream.js').Stream} stream just opened
   * @param {object} site see `job.js`
   * @param {import('./bench.js').Bench} bench what offers are for
   * @param {(outcome: object) => Promise<void>} collect fetches the final model while the server is still there
   */
  constructor(stream, site, bench, collect) {
    this.#stream = stream;
    this.#site = site;
    this.#bench = bench;
    this.#collect = collect;
  }

  /**
   * Say hello, then listen to the end.
   * @param {object} hello
   * @param {() => void} onWelcome
   * @returns {Promise<object>} the federation's outcome
   */
  async run(hello, onWelcome) {
    const keeper = setInterval(() => this.#keepLease(), LOOK_MS);
    try {
      await this.#stream.write({ hello });
      for (;;) {
        const message = await this.#stream.read();
        if (message === null) throw new Trouble('the server ended the session');
        if (message.kind === 'welcome') onWelcome();
        if (this.#hopeless) continue; // good-bye is said, and only the end is waited for
        await this.#handle(message);
        if (message.kind === 'federation_outcome') {
          await this.#end();
          return message.federation_outcome;
        }
      }
    } catch (error) {
      throw this.#hopeless ?? error;
    } finally {
      clearInterval(keeper);
      this.#stream.cancel();
    }
  }

  /** Say good-bye, and wait for the server to end the stream, for a few seconds at most. */
  async leave(reason) {
    try {
      await this.#stream.write({ leave: { reason: limits.clipReason(reason) } });
      await this.#end();
    } catch {
      // The server is not there to hear it.
    }
  }

  /** Close our side. Work that is still under way has no more signs of life to give: a write after the end cuts the call. */
  async #end() {
    this.#lease = null;
    this.#stream.end();
    await this.#stream.ended(LAST_WORDS_MS);
  }

  /** A message of a kind that is not among these is ignored, as the contract has it. */
  async #handle(message) {
    const { log, schema } = this.#site;
    switch (message.kind) {
      case 'welcome': return this.#welcome(message.welcome);
      case 'declined': throw new Stop(EXIT.DECLINED, describeDeclined(message.declined));
      case 'schema_query':
        for (const part of schemaParts(schema)) await this.#stream.write(part);
        return undefined;
      case 'waiting': return log('info', 'the server is waiting', { because: message.waiting.reason });
      case 'offer': return this.#answer(message.offer);
      case 'confirm': return this.#confirm(message.confirm);
      case 'withdraw': return this.#bench.withdraw(message.withdraw);
      case 'lease_renewal': return this.#renew(message.lease_renewal);
      case 'cancel': return this.#bench.cancel(message.cancel);
      case 'round_outcome': return logRound(log, message.round_outcome);
      case 'federation_outcome': return this.#farewell(message.federation_outcome);
      default: return undefined;
    }
  }

  #welcome(welcome) {
    if (welcome.protocol !== limits.PROTOCOL) { // the only one that the hello offers
      throw new Stop(EXIT.DEFECT, `the server welcomes this client in version ${welcome.protocol} of the protocol, and `
        + `it speaks ${limits.PROTOCOL}`);
    }
    this.#bench.terms = {
      maxChunkBytes: Math.min(welcome.max_chunk_bytes || limits.DEFAULT_CHUNK_BYTES, limits.MAX_CHUNK_BYTES),
      windowBytes: welcome.window_bytes || limits.DEFAULT_WINDOW_BYTES,
      encodings: usable(welcome.encodings, this.#site.encodings),
    };
    this.#site.log('info', 'welcome', { known_as: welcome.client_name, rounds: welcome.rounds });
  }

  async #answer(offer) {
    const answer = await this.#bench.consider(offer);
    const offer_id = offer.offer_id;
    if (answer.decline) return this.#stream.write({ decline: { offer_id, reason: limits.clipReason(answer.decline) } });
    // The answer is a sign of life, and the server may take its time to confirm.
    this.#lease = { offerId: offer_id, seconds: leaseOf(offer), told: this.#bench.job.progress, toldAt: Date.now() };
    if (answer.accept) return this.#stream.write({ accept: { offer_id } });
    return this.#stream.write({ counter_offer: { offer_id, ...answer.counter } });
  }

  #confirm(confirmation) {
    this.#bench.confirm(confirmation);
    if (this.#bench.job?.offer.offer_id !== confirmation.offer_id) return; // it crossed another offer
    this.#lease = { offerId: confirmation.offer_id, seconds: leaseOf(confirmation), told: null, toldAt: 0 };
  }

  #renew({ offer_id, lease }) {
    if (this.#lease?.offerId === offer_id && seconds(lease) > 0) this.#lease.seconds = seconds(lease);
  }

  /** Work that is still under way ends first: its transfers use the store that the final model is fetched into. */
  async #farewell(outcome) {
    await this.#bench.close();
    const tell = () => (
      this.#stream.write({ progress: { offer_id: NO_OFFER, phase: 'PHASE_DOWNLOADING' } })
        .catch(() => {})); // the server is gone: the fetching finds out by itself
    const teller = setInterval(tell, COLLECTING_MS);
    try {
      tell();
      await this.#collect(outcome);
    } finally {
      clearInterval(teller);
    }
  }

  async #keepLease() {
    try {
      await this.#tellProgress();
      this.#bench.checkHealth();
    } catch (error) {
      if (!(error instanceof Stop)) return; // the listener hears why the stream ended
      this.#hopeless ??= error;
      await this.leave(error.message); // a stream that is cut takes what was said last with it, such as the failure
      this.#stream.cancel();
    }
  }

  /** Tell how the agreed work goes: when it got on, and often enough to keep the lease. */
  async #tellProgress() {
    const [lease, job] = [this.#lease, this.#bench.job];
    if (lease === null || job?.offer.offer_id !== lease.offerId) return;
    if (!['offered', 'working'].includes(job.state)) {
      this.#lease = null;
      if (job.state === 'failed') {
        await this.#stream.write({ failure: { offer_id: lease.offerId, reason: limits.clipReason(job.reason) } });
      }
      return;
    }
    const age = (Date.now() - lease.toldAt) / 1000;
    const due = lease.seconds * LEASE_SHARE;
    if (age < (job.progress === lease.told ? due : Math.min(PAUSE_SECONDS, due / 2))) return;
    Object.assign(lease, { told: job.progress, toldAt: Date.now() });
    const metrics = writeMetrics(job.progress.metrics);
    await this.#stream.write({ progress: { offer_id: lease.offerId, ...job.progress, metrics } });
  }
}

function leaseOf({ lease }) {
  return seconds(lease) || DEFAULT_LEASE_SECONDS;
}

function logRound(log, outcome) {
  log(outcome.succeeded ? 'info' : 'warning', 'round over', {
    round: outcome.round,
    because: outcome.reason,
    our_part: outcome.outcome,
    our_part_because: outcome.outcome_reason,
    ...readMetrics(outcome.metrics),
  });
}

function describeDeclined({ message, differences, more_differences: more, server_meaning, client_meaning }) {
  const kind = (spec) => (spec.trainable ? 'trainable' : 'frozen');
  const shown = (spec) => (spec ? `${spec.name} ${spec.dtype} [${spec.shape}] ${kind(spec)}` : 'nothing');
  const both = ({ server, client }) => `  the federation has ${shown(server)}, this client ${shown(client)}`;
  const lines = differences.map(both);
  if (more) lines.push(`  and ${more} more`);
  if (server_meaning) lines.push(`  the federation means ${JSON.stringify(server_meaning)}`);
  if (client_meaning) lines.push(`  this client means ${JSON.stringify(client_meaning)}`);
  return [`the server declined this client: ${message}`, ...lines].join('\n');
}
