/** The one offer a client works on at a time, and the decisions about it. It outlives the negotiation's streams. */
import { EXIT, Stop } from './errors.js';
import { Job } from './job.js';
import { reply } from './reply.js';
import { seconds, writeDuration } from './wire.js';

/** Failed trainings in a row after which a person should have a look. */
const MOST_FAILURES = 3;

export class Bench {
  /** The work on the latest offer. @type {Job | null} */
  job = null;
  /** As the latest welcome says. @type {{maxChunkBytes: number, windowBytes: number} | null} */
  terms = null;
  #site;
  #limits;
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
   * again. One that was dropped comes again when a server was asked too early after its restart: it is taken up anew.
   */
  async consider(offer) {
    const { job } = this;
    const isRepeated = job?.offer.offer_id === offer.offer_id && job.state !== 'dropped';
    if (isRepeated && job.state === 'failed') return { decline: job.reason };
    if (isRepeated && job.state !== 'offered') return { accept: true };
    if (!isRepeated) {
      job?.drop('another offer came');
      await job?.stopped(); // two fine-tunes at a time would take each other's time and files
      this.job = new Job(offer, this.#site);
      if (await this.job.isTrained()) return { accept: true };
    }
    const terms = { epochs: offer.plan.epochs, timeRemaining: seconds(offer.time_remaining) };
    const answer = reply(terms, this.#limits, this.#site.experience);
    this.#site.log('info', 'offer', { round: offer.round, answer });
    if (!answer.counter) return answer;
    this.#askedForTime = answer.counter.seconds !== null;
    const { epochs, seconds: needed, reason } = answer.counter;
    return { counter: { epochs, time_needed: writeDuration(needed), reason } };
  }

  /** Begin, or go on with, what was agreed. */
  confirm({ offer_id, plan }) {
    if (this.job?.offer.offer_id === offer_id) this.job.start(plan, this.terms);
  }

  withdraw(withdrawal) {
    if (this.#askedForTime) this.#site.experience.moreTimeRefused = true;
    this.cancel(withdrawal);
  }

  cancel({ offer_id, reason }) {
    if (this.job?.offer.offer_id !== offer_id) return;
    this.#site.log('info', "the server does not want this round's update", { because: reason });
    this.job.drop(reason);
  }

  /** @throws {Stop} the work failed several times in a row */
  checkHealth() {
    const { job } = this;
    if (job === this.#counted || !['delivered', 'failed'].includes(job?.state)) return;
    this.#counted = job;
    this.#failures = job.failedHere ? this.#failures + 1 : 0;
    if (this.#failures < MOST_FAILURES) return;
    throw new Stop(EXIT.TRAINING_FAILED, `the work failed ${MOST_FAILURES} times in a row; the log says why`);
  }

  /** Drop what is being done, and wait until it is. */
  async close() {
    this.job?.drop('the client stops');
    await this.job?.stopped();
  }
}
