/** Coming back after an error: exponential back-off with jitter, begun anew after every progress. */
import { setTimeout as sleep } from 'node:timers/promises';
import { isRefusal, Trouble } from './errors.js';

/**
 * @typedef {{firstSeconds: number, longestSeconds: number, giveUpAfterSeconds: number | null}} Patience
 *   the first wait, the longest, and how long to go on without any progress
 */

/**
 * Try `once` until it returns. Trouble and LIMIT_EXCEEDED are waited for; any other refusal is the server's last word.
 * @template T
 * @param {() => Promise<T>} once one try, which resumes where the last one got to
 * @param {{howFar: () => number, patience: Patience, doing: string, log: Function, signal?: AbortSignal}} options
 *   `howFar` grows with every progress
 * @returns {Promise<T>}
 */
export async function untilDone(once, { howFar, patience, doing, log, signal }) {
  let mark = howFar();
  let tries = 0;
  let since = Date.now();
  for (;;) {
    signal?.throwIfAborted();
    try {
      return await once();
    } catch (error) {
      signal?.throwIfAborted(); // a call that was cut because nobody wants it any more is no trouble
      if (!(error instanceof Trouble) && !isRefusal(error, 'LIMIT_EXCEEDED')) throw error;
      if (howFar() > mark) [mark, tries, since] = [howFar(), 0, Date.now()];
      const { giveUpAfterSeconds: most } = patience;
      const wait = waitSeconds(error, tries, patience) * 1000;
      if (most !== null && Date.now() - since + wait > most * 1000) throw error; // it would only be later to say so
      log('warning', 'trying again', { doing, because: error.message });
      await sleep(wait, undefined, { signal });
      tries += 1;
    }
  }
}

/** How long to wait before the next try; `random` gives 0 to below 1. */
export function waitSeconds(error, tries, { firstSeconds, longestSeconds }, random = Math.random) {
  // Whoever is told to come back at once, and is told so again, would do nothing else all the time.
  if (isRefusal(error, 'LIMIT_EXCEEDED')) return Math.max(error.retrySeconds, firstSeconds);
  // Whoever was cut off together should not come back together; and nobody waits longer than the longest.
  return Math.min(firstSeconds * 2 ** tries, longestSeconds) * (1 - 0.25 * random());
}
