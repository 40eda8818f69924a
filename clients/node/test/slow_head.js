/**
 * A training module for tests: train_head.js after a wait of `SLOW_HEAD_SECONDS`, in which a test may do its worst; with
 * `SLOW_HEAD_FAILS` it fails then.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { open as openHead, taskName } from '../src/train_head.js';

export { taskName };

export async function open(settings, dataPath) {
  const training = await openHead(settings, dataPath);
  const fineTune = async (base, plan, report, signal) => {
    report({ epoch: 1, epochs: plan.epochs, fraction: 0, metrics: {} });
    await sleep(Number(process.env.SLOW_HEAD_SECONDS ?? 3) * 1000, undefined, { signal });
    if (process.env.SLOW_HEAD_FAILS) throw new Error('broken');
    return training.fineTune(base, plan, report, signal);
  };
  return { ...training, fineTune };
}
