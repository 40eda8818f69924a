/**
 * The work on one offer, from the base model to the acknowledged update. It outlives the streams it is agreed on.
 *
 *     offered --confirm--> working --acknowledged--> delivered
 *     offered, working --cancel, withdraw, another offer--> dropped
 *     working --cannot be done--> failed
 *
 * A finished update is a record in the store (`offerId`, `uploadId`, `baseHex`, `entries`, `numExamples`, `metrics`,
 * `epochs`, `trainingSeconds`, and `packed` once it is ready to travel), so that nothing is trained twice for one
 * offer, whatever is killed in between.
 */
import { performance } from 'node:perf_hooks';
import { fetchModel } from './download.js';
import { whenTheDiskCan } from './durable.js';
import { isRefusal, Refusal } from './errors.js';
import { entryOf, modelDigest } from './model.js';
import { isOf, pack } from './packing.js';
import { Damaged, isAdmitted, Unwanted, Upload } from './upload.js';

/** A timer cannot wait for longer. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

class TookTooLong extends Error {}

export class Job {
  state = 'offered';
  reason = '';
  /** Whether the fine-tune itself failed. */
  trainingFailed = false;
  /** What it failed with. @type {Error | null} */
  failure = null;
  progress = { phase: 'PHASE_UNSPECIFIED', epoch: 0, epochs: 0, fraction: 0, metrics: {} };
  #site;
  #maxSeconds;
  #abort = new AbortController();
  #done = Promise.resolve();

  /**
   * @param {object} offer the contract's message
   * @param {object} site what jobs work with: connection, store, schema, training, experience,
   *   chunkSize, patience, federation (its name), encodings (those taken), log
   * @param {number | null} [maxSeconds] of training that the site allows
   */
  constructor(offer, site, maxSeconds = null) {
    this.offer = offer;
    this.#site = site;
    this.#maxSeconds = maxSeconds;
  }

  get #baseHex() {
    return this.offer.base_model.model_digest.sha256.toString('hex');
  }

  /** Whether the fine-tune is done and on disk, by this process or an earlier one. */
  async isTrained() {
    return (await this.#load()) !== null;
  }

  #load() {
    return this.#site.store.loadUpdate(this.offer.offer_id, this.#baseHex);
  }

  /**
   * Begin, once the server has confirmed. Nothing happens if it has begun already.
   * @param {object} plan
   * @param {() => import('./bench.js').Terms} terms as the latest welcome says
   */
  start(plan, terms) {
    if (this.state !== 'offered') return;
    this.state = 'working';
    this.#show('PHASE_DOWNLOADING', 0, 1);
    this.#done = this.#run(plan, terms);
  }

  /** Stop: the server does not want it any more. A job that has ended stays as it is. */
  drop(reason) {
    if (this.state === 'offered' || this.state === 'working') this.#end('dropped', reason);
    this.#abort.abort();
  }

  /** End without having begun: what was agreed cannot be done. */
  fail(reason) {
    if (this.state === 'offered') this.#end('failed', reason);
  }

  /** Resolves when nothing runs any more. */
  stopped() {
    return this.#done;
  }

  #end(state, reason = '') {
    Object.assign(this, { state, reason });
  }

  async #run(plan, terms) {
    const { log } = this.#site;
    try {
      const quarantined = await this.#work(plan, terms);
      const facts = quarantined ? { kept_aside_because: quarantined } : {};
      log(quarantined ? 'warning' : 'info', 'update delivered', { round: this.offer.round, ...facts });
      this.#end('delivered');
    } catch (error) {
      if (this.state !== 'working') return; // dropped meanwhile
      log(error instanceof Unwanted ? 'info' : 'error', 'the work on this round ended', { because: error.message });
      this.failure = error;
      this.#end(error instanceof Unwanted ? 'dropped' : 'failed', generalWords(error));
    }
  }

  async #work(plan, terms) {
    const { experience, federation, store } = this.#site;
    await this.#settleEarlierUpdates();
    const began = performance.now();
    const hooks = { signal: this.#abort.signal, onBytes: (done, all) => this.#show('PHASE_DOWNLOADING', done, all) };
    const { sha256 } = this.offer.base_model.model_digest;
    const base = await fetchModel(this.#site, sha256, terms().maxChunkBytes, hooks);
    await store.keepOnly(this.offer.offer_id, base);
    const fetched = performance.now();
    const first = await this.#update(base, plan);
    const trained = performance.now();
    const { quarantined, packed } = await this.#deliver(base, plan, first, terms);
    if (!quarantined && packed.leftOut.length) {
      await store.keepLeftOut(federation, this.offer.upload_id, packed.leftOut);
    }
    experience.transferSeconds = (fetched - began + performance.now() - trained) / 1000;
    experience.misfits = 0;
    return quarantined;
  }

  /**
   * Ask of updates that were sent and not heard of again, as by a client that was killed just then. What an encoding
   * left out before is in one that the server has: it would be added twice.
   */
  async #settleEarlierUpdates() {
    const { federation, store } = this.#site;
    for (const { offerId, uploadId, packed } of await store.unsettled()) {
      const isSentAgain = offerId === this.offer.offer_id;
      if (!isSentAgain && await isAdmitted(this.#site, uploadId, this.#abort.signal)) {
        await store.keepLeftOut(federation, uploadId, packed.leftOut);
      }
    }
  }

  /** Send it; what turns out to be damaged on this disk is made again, once: the same base and plan give the same. */
  async #deliver(base, plan, first, terms) {
    try {
      return await this.#send(base, first, terms);
    } catch (error) {
      if (!(error instanceof Damaged)) throw error;
      this.#site.log('warning', 'the update is damaged on this disk and is made again', { because: error.message });
      return this.#send(base, await this.#update(base, plan), terms);
    }
  }

  async #send(base, { record, isKept }, terms) {
    const packed = await this.#packed(base, record, terms().encodings);
    const onBytes = (done, all) => this.#show('PHASE_UPLOADING', done, all);
    const update = { ...record, entries: packed.entries };
    const upload = new Upload(this.#site, this.offer, update, terms, { onBytes, isBegun: isKept });
    return { quarantined: await upload.run(this.#abort.signal), packed };
  }

  /** The update in the first of these encodings, or as it was packed before: another manifest would be a conflict. */
  async #packed(base, record, encodings) {
    const { federation, store } = this.#site;
    if (record.packed && isOf(record.packed, encodings)) return record.packed;
    return this.#onDisk(async () => {
      const packed = await pack(store, base, record.entries, encodings[0], await store.leftOut(federation));
      await store.record({ ...record, packed });
      return packed;
    });
  }

  /** The finished update: what was trained for this offer before, or a new fine-tune. */
  async #update(base, plan) {
    const { log } = this.#site;
    const known = await this.#load();
    if (known === null) return { record: await this.#train(base, plan), isKept: false };
    log('info', 'this round is trained already; sending what was kept', { round: this.offer.round });
    return { record: known, isKept: true };
  }

  async #train(base, plan) {
    const { experience, log, store, training } = this.#site;
    log('info', 'training', { round: this.offer.round, epochs: plan.epochs });
    const weights = new Map();
    for (const entry of base) weights.set(entry.name, await store.read(entry));
    const began = performance.now();
    this.progress = { ...this.progress, phase: 'PHASE_TRAINING', fraction: 0 };
    const report = (news) => this.#report(news, (performance.now() - began) / 1000);
    const tuned = await this.#watched((signal) => training.fineTune(weights, plan, report, signal));
    const trainingSeconds = (performance.now() - began) / 1000;
    experience.epochSeconds = trainingSeconds / Math.max(1, tuned.epochs);
    const record = await this.#keep(tuned, trainingSeconds);
    const model = modelDigest(record.entries).sha256.toString('hex');
    log('info', 'trained', { round: this.offer.round, epochs: tuned.epochs, model, ...tuned.metrics });
    return record;
  }

  /** Within the site's limit on time: how long epochs take is known only once some have run. */
  async #watched(fineTune) {
    const limit = new AbortController();
    const milliseconds = Math.min(this.#maxSeconds * 1000, LONGEST_TIMER_MS);
    const timer = this.#maxSeconds === null ? null : setTimeout(() => limit.abort(), milliseconds);
    try {
      return await fineTune(AbortSignal.any([this.#abort.signal, limit.signal]));
    } catch (error) {
      this.trainingFailed = true;
      throw limit.signal.aborted ? new TookTooLong("the site's limit on training time was reached") : error;
    } finally {
      clearTimeout(timer);
    }
  }

  async #keep({ weights, numExamples, metrics, epochs }, trainingSeconds) {
    const { schema, store } = this.#site;
    const entries = schema.map((spec) => entryOf(spec, weights.get(spec.name)));
    const origin = { offerId: this.offer.offer_id, uploadId: this.offer.upload_id, baseHex: this.#baseHex };
    const record = { ...origin, entries, numExamples, metrics, epochs, trainingSeconds };
    await this.#onDisk(async () => {
      for (const entry of entries) if (!(await store.has(entry))) await store.put(entry, weights.get(entry.name));
      await store.record(record);
    });
    return record;
  }

  /** What was trained is not lost to a disk that is full: it waits for room. */
  #onDisk(write) {
    const waiting = 'what was trained waits for the disk';
    return whenTheDiskCan(write, { waiting, log: this.#site.log, signal: this.#abort.signal });
  }

  #report({ epoch, epochs, fraction, metrics }, seconds) {
    const done = fraction * epochs;
    // Also a fine-tune that is stopped teaches how long an epoch takes.
    if (done >= 1) this.#site.experience.epochSeconds = seconds / done;
    this.progress = { phase: 'PHASE_TRAINING', epoch, epochs, fraction, metrics };
  }

  #show(phase, done, total) {
    this.progress = { phase, epoch: 0, epochs: 0, fraction: total ? done / total : 1, metrics: {} };
  }
}

/** A reason that may leave this site: no file names, no paths. */
function generalWords(error) {
  if (error instanceof Unwanted || error instanceof TookTooLong) return error.message;
  if (isRefusal(error, 'UNKNOWN_MODEL')) return 'the base model is not published any more';
  return error instanceof Refusal ? `the server refused a call: ${error.reason}` : 'the work failed at the site';
}
