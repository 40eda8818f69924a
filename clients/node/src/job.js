/**
 * The work on one offer, from the base model to the acknowledged update. It outlives the streams it is agreed on.
 *
 *     offered --confirm--> working --acknowledged--> delivered
 *     offered, working --cancel, withdraw, another offer--> dropped
 *     working --cannot be done--> failed
 *
 * A finished update is a record in the store (`offerId`, `baseHex`, `entries`, `numExamples`, `metrics`, `epochs`,
 * `trainingSeconds`), so that nothing is trained twice for one offer, whatever is killed in between.
 */
import { performance } from 'node:perf_hooks';
import { fetchModel } from './download.js';
import { isRefusal, Refusal } from './errors.js';
import { entryOf, modelDigest } from './model.js';
import { Unwanted, Upload } from './upload.js';

export class Job {
  state = 'offered';
  reason = '';
  /** Whether it failed here, and not because the server refused something. */
  failedHere = false;
  progress = { phase: 'PHASE_DOWNLOADING', epoch: 0, epochs: 0, fraction: 0, metrics: {} };
  #site;
  #abort = new AbortController();
  #done = Promise.resolve();

  /**
   * @param {object} offer the contract's message
   * @param {object} site what jobs work with: connection, store, schema, training, experience, patience, log
   */
  constructor(offer, site) {
    this.offer = offer;
    this.#site = site;
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

  /** Begin, once the server has confirmed. Nothing happens if it has begun already. */
  start(plan, terms) {
    if (this.state !== 'offered') return;
    this.state = 'working';
    this.#done = this.#run(plan, terms);
  }

  /** Stop: the server does not want it any more. A job that has ended stays as it is. */
  drop(reason) {
    if (this.state === 'offered' || this.state === 'working') this.#end('dropped', reason);
    this.#abort.abort();
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
      this.failedHere = !(error instanceof Unwanted || error instanceof Refusal);
      this.#end(error instanceof Unwanted ? 'dropped' : 'failed', generalWords(error));
    }
  }

  async #work(plan, terms) {
    const { experience, store } = this.#site;
    const began = performance.now();
    const hooks = { signal: this.#abort.signal, onBytes: (done, all) => this.#show('PHASE_DOWNLOADING', done, all) };
    const base = await fetchModel(this.#site, this.offer.base_model.model_digest.sha256, terms.maxChunkBytes, hooks);
    await store.keepOnly(this.offer.offer_id, base);
    const fetched = performance.now();
    const update = await this.#update(base, plan);
    const trained = performance.now();
    const onBytes = (done, all) => this.#show('PHASE_UPLOADING', done, all);
    const quarantined = await new Upload(this.#site, this.offer, update, terms, onBytes).run(this.#abort.signal);
    experience.transferSeconds = (fetched - began + performance.now() - trained) / 1000;
    return quarantined;
  }

  /** The finished update: what was trained for this offer before, or a new fine-tune. */
  async #update(base, plan) {
    const { log } = this.#site;
    const known = await this.#load();
    if (known === null) return this.#train(base, plan);
    log('info', 'this round is trained already; sending what was kept', { round: this.offer.round });
    return known;
  }

  async #train(base, plan) {
    const { experience, log, schema, store, training } = this.#site;
    log('info', 'training', { round: this.offer.round, epochs: plan.epochs });
    const weights = new Map();
    for (const entry of base) weights.set(entry.name, await store.read(entry));
    const began = performance.now();
    this.progress = { ...this.progress, phase: 'PHASE_TRAINING', fraction: 0 };
    const tuned = await training.fineTune(weights, plan, (report) => this.#report(report), this.#abort.signal);
    const trainingSeconds = (performance.now() - began) / 1000;
    experience.epochSeconds = trainingSeconds / Math.max(1, tuned.epochs);
    const entries = schema.map((spec) => entryOf(spec, tuned.weights.get(spec.name)));
    const isKept = await Promise.all(entries.map((entry) => store.has(entry)));
    for (const [at, entry] of entries.entries()) if (!isKept[at]) await store.put(entry, tuned.weights.get(entry.name));
    const { numExamples, metrics, epochs } = tuned;
    const origin = { offerId: this.offer.offer_id, baseHex: this.#baseHex };
    const facts = { ...origin, numExamples, metrics, epochs, trainingSeconds };
    const hex = entries.map((entry) => ({ ...entry, sha256: entry.sha256.toString('hex') }));
    await store.record({ ...facts, entries: hex });
    const model = modelDigest(entries).sha256.toString('hex');
    log('info', 'trained', { round: this.offer.round, epochs, model, ...metrics });
    return { ...facts, entries };
  }

  #report({ epoch, epochs, fraction, metrics }) {
    this.progress = { phase: 'PHASE_TRAINING', epoch, epochs, fraction, metrics };
  }

  #show(phase, done, total) {
    this.progress = { phase, epoch: 0, epochs: 0, fraction: total ? done / total : 1, metrics: {} };
  }
}

/** A reason that may leave this site: no file names, no paths. */
function generalWords(error) {
  if (error instanceof Unwanted) return error.message;
  if (isRefusal(error, 'UNKNOWN_MODEL')) return 'the base model is not published any more';
  return error instanceof Refusal ? `the server refused a call: ${error.reason}` : 'the work failed at the site';
}
