/** The one offer a client works on at a time, and the decisions about it. It outlives the negotiation's streams. */
import { EXIT, isRefusal, notLetIn, Stop } from './errors.js';
import { Job } from './job.js';
import { planTrouble, reply } from './reply.js';
import { seconds, writeDuration } from './wire.js';

/** Failed trainings in a row after which a person should have a look. */
const MOST_FAILURES = 3;

/** @typedef {{maxChunkBytes: number, windowBytes: number, encodings: string[]}} Terms of a session, best first */

export class Bench {
  /** The work on the latest offer. @type {Job | null} */
  job = null;
  /** As the latest welcome says. @type {Terms | null} */
  terms = null;
  #site;
  #limits;
  #answered = null; // the latest offer's id and the answer to it
  #agreedEpochs = 0; // at most, that may be trained for the offer
  #askedForTime = false;
  #counted = null;
  #failures = 0;

  /** @param {object} site see `job.js` @param {import('./reply.js').SiteLimits} siteLimits */
  constructor(site, siteLimits) {
    this.#site = site;
    this.#limits = siteLimits;
  }

  /**
   * What to answer to an offer. One that is worked on, or trained for, is accepted as it stands: a cut made it come
   * again. One that was dropped comes again when a server was asked too early after its restart, and one that was
   * delivered when the server lost it: it is taken up anew, and sent from disk.
   */
  async consider(offer) {
    const { job } = this;
    const before = this.#answered;
    // A cut made an unanswered offer come again: it is no further one.
    if (before?.offerId === offer.offer_id && (job.state === 'offered' || before.answer.decline)) return before.answer;
    const answer = await this.#decide(offer);
    this.#answered = { offerId: offer.offer_id, answer };
    return answer;
  }

  async #decide(offer) {
    const { job } = this;
    this.#askedForTime = false; // only this answer may ask
    const isOver = ['dropped', 'delivered'].includes(job?.state);
    const isRepeated = job?.offer.offer_id === offer.offer_id && !isOver;
    if (isRepeated && job.state === 'failed') return { decline: job.reason };
    if (isRepeated && job.state !== 'offered') return { accept: true };
    if (!isRepeated) {
      job?.drop('another offer came');
      await job?.stopped(); // two fine-tunes at a time would take each other's time and files
      this.job = new Job(offer, this.#site, this.#limits.maxSeconds);
      const trouble = planTrouble(offer.plan) || baseTrouble(offer);
      if (trouble) return this.#decline(trouble);
    }
    this.#agreedEpochs = this.job.offer.plan.epochs;
    if (await this.job.isTrained()) return { accept: true };
    const terms = { epochs: offer.plan.epochs, timeRemaining: seconds(offer.time_remaining) };
    const answer = reply(terms, this.#limits, this.#site.experience);
    this.#site.log('info', 'offer', { round: offer.round, answer });
    if (answer.misfit) this.#site.experience.misfits += 1;
    if (answer.decline) return this.#decline(answer.decline);
    if (answer.accept) return answer;
    this.#askedForTime = answer.counter.seconds !== null;
    const { epochs, seconds: needed, reason } = answer.counter;
    if (epochs) this.#agreedEpochs = epochs;
    return { counter: { epochs, time_needed: writeDuration(needed), reason } };
  }

  #decline(reason) {
    this.job.drop(reason);
    return { decline: reason };
  }

  /** Begin, or go on with, what was agreed. More is refused: what a site allows holds whatever the server says. */
  confirm({ offer_id, plan }) {
    if (this.job?.offer.offer_id !== offer_id) return;
    const [agreed, { maxEpochs }] = [this.#agreedEpochs, this.#limits];
    const excess = plan?.epochs > agreed && `${plan.epochs} epochs were confirmed, and ${agreed} agreed on`;
    const trouble = planTrouble(plan) || excess;
    if (trouble) return this.job.fail(trouble);
    // What is trained already was by an earlier agreement.
    const epochs = Math.min(plan.epochs, maxEpochs || plan.epochs);
    return this.job.start({ ...plan, epochs }, () => this.terms);
  }

  withdraw(withdrawal) {
    const isOurs = this.job?.offer.offer_id === withdrawal.offer_id;
    if (isOurs && this.#askedForTime) this.#site.experience.moreTimeRefused = true;
    this.cancel(withdrawal);
  }

  cancel({ offer_id, reason }) {
    if (this.job?.offer.offer_id !== offer_id || !['offered', 'working'].includes(this.job.state)) return;
    this.#site.log('info', "the server does not want this round's update", { because: reason });
    this.job.drop(reason);
  }

  /** @throws {Stop} training failed several times in a row, or the server does not take this site any more */
  checkHealth() {
    const { job } = this;
    if (job === this.#counted || !['delivered', 'failed'].includes(job?.state)) return;
    this.#counted = job;
    if (isRefusal(job.failure, 'UNAUTHENTICATED', 'PERMISSION_DENIED')) throw notLetIn(job.failure);
    this.#failures = job.trainingFailed ? this.#failures + 1 : 0;
    if (this.#failures < MOST_FAILURES) return;
    throw new Stop(EXIT.TRAINING_FAILED, `training failed ${MOST_FAILURES} times in a row; the log says why`);
  }

  /** Drop what is being done, and wait until it is. */
  async close() {
    this.job?.drop('the client stops');
    await this.job?.stopped();
  }
}

function baseTrouble({ base_model }) {
  return base_model?.model_digest?.sha256.length === 32 ? '' : 'the offer names no base model';
}
