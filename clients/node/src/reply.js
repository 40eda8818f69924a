/**
 * What to answer to an offer: a pure decision from the offer, the site's limits and what the site has measured.
 *
 * @typedef {{maxEpochs: number, maxSeconds: number | null}} SiteLimits 0 and null are no limit
 * @typedef {{epochSeconds: number | null, transferSeconds: number, moreTimeRefused: boolean, misfits: number}} Experience
 *   `misfits` counts the offers in a row, since the last delivery, for which one epoch seemed to take too long
 */
import * as limits from './limits.js';

/** Epochs vary with what else a machine does; asking for a fifth more than was measured costs the round little. */
const SAFETY = 1.2;

/**
 * @param {{epochs: number, timeRemaining: number}} offer epochs of its plan, and seconds until the round closes
 * @param {SiteLimits} limits
 * @param {Experience} experience
 * @returns {({accept: true} | {decline: string} | {counter: {epochs: number, seconds: number | null, reason: string}})
 *   & {misfit?: true}}
 */
export function reply(offer, limits, experience) {
  const reasons = [];
  let { epochs } = offer;
  const lower = (most, reason) => {
    if (most >= epochs) return;
    epochs = most;
    reasons.push(reason);
  };
  if (limits.maxEpochs) lower(limits.maxEpochs, `this site allows at most ${limits.maxEpochs} epochs a round`);
  const { epochSeconds, transferSeconds, moreTimeRefused } = experience;
  if (epochSeconds === null) return counter(offer, epochs, null, reasons);
  if (limits.maxSeconds !== null) {
    lower(Math.floor(limits.maxSeconds / epochSeconds), `this site allows ${limits.maxSeconds} s of training a round`);
  }
  if (epochs < 1) return misfit(experience, 'one epoch takes longer than this site allows');
  const needed = epochs * epochSeconds * SAFETY + transferSeconds;
  if (needed <= offer.timeRemaining) return counter(offer, epochs, null, reasons);
  if (!moreTimeRefused) {
    reasons.push(`${epochs} epochs take about ${Math.round(needed)} s here`);
    return counter(offer, epochs, needed, reasons);
  }
  // The server would not wait longer the last time: fewer epochs in time are worth more than another withdrawal.
  lower(Math.floor((offer.timeRemaining - transferSeconds) / (epochSeconds * SAFETY)), 'fewer epochs fit the time');
  return epochs < 1 ? misfit(experience, 'not even one epoch fits the time') : counter(offer, epochs, null, reasons);
}

/**
 * Who always declines never measures again, and what was measured may be of one bad day. So with the second misfit, the
 * fourth, the eighth and so on an epoch is tried; the limit on time ends it, if need be.
 */
function misfit({ misfits }, reason) {
  const isWorthATry = misfits > 0 && Number.isInteger(Math.log2(misfits + 1));
  if (!isWorthATry) return { decline: reason, misfit: true };
  return { counter: { epochs: 1, seconds: null, reason: `one epoch is tried, though ${reason}` }, misfit: true };
}

function counter(offer, epochs, seconds, reasons) {
  if (epochs === offer.epochs && seconds === null) return { accept: true };
  return { counter: { epochs: epochs === offer.epochs ? 0 : epochs, seconds, reason: reasons.join('; ') } };
}

/**
 * What is wrong with a plan; empty if nothing is.
 * @param {{epochs: number, batch_size: number, learning_rate: number, settings: Record<string, string>} | null} plan
 */
export function planTrouble(plan) {
  if (plan === null) return 'the offer has no plan';
  if (plan.epochs < 1) return 'the plan has no epoch';
  if (plan.batch_size < 1) return 'the plan has no batch size';
  if (!Number.isFinite(plan.learning_rate)) return 'the plan has no finite learning rate';
  const words = Object.entries(plan.settings ?? {});
  const fits = words.flat().every((word) => Buffer.byteLength(word) <= limits.MAX_PLAN_SETTING_BYTES);
  return fits && words.length <= limits.MAX_PLAN_SETTINGS ? '' : "the plan's settings are too large";
}
