/**
 * What can go wrong, in four kinds, since each asks for something else:
 *
 * - `Refusal`: the server decided. Its `reason` is one of the contract's; only LIMIT_EXCEEDED is waited for.
 * - `Trouble`: the network, a proxy or a crash. Come back, ask how far things are, resume.
 * - `Breach`: the server broke a rule of the contract: trying again is of little use.
 * - `Stop`: this client is to end, with an exit code and words for its operator.
 */
export class Refusal extends Error {
  /**
   * @param {string} reason such as `ROUND_CLOSED`
   * @param {string} message the server's words
   * @param {Record<string, string>} [metadata]
   * @param {number} [retrySeconds] when to come back, for LIMIT_EXCEEDED
   */
  constructor(reason, message, metadata = {}, retrySeconds = 1) {
    super(message);
    Object.assign(this, { reason, metadata, retrySeconds });
  }
}

export class Trouble extends Error {}

/** The Trouble of a stream on which nothing moves. */
export class Stalled extends Trouble {}

export class Breach extends Error {}

export class Stop extends Error {
  /** @param {number} exitCode one of EXIT; @param {string} message */
  constructor(exitCode, message) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** Exit codes; the same as those of the Python client. */
export const EXIT = Object.freeze({
  FINISHED: 0,
  DEFECT: 1,
  BAD_CONFIGURATION: 2,
  BAD_DATA: 3,
  DECLINED: 4,
  UNREACHABLE: 5,
  UNTRUSTED: 6,
  TRAINING_FAILED: 7,
  REPLACED: 8,
  HUNG_UP: 129,
  INTERRUPTED: 130,
  TERMINATED: 143,
});

/**
 * How a client ends that the server does not take, be that said in a session or while weights travel. The server's words
 * often say already what to do.
 * @param {Refusal} refusal
 */
export function notLetIn({ message }) {
  const advice = 'ask the coordinator';
  return new Stop(EXIT.UNTRUSTED, message.includes(advice) ? message : `${message}: ${advice}`);
}

/**
 * Whether the error is the server's decision for one of these reasons.
 * @param {unknown} error
 * @param {...string} reasons
 */
export function isRefusal(error, ...reasons) {
  return error instanceof Refusal && reasons.includes(error.reason);
}
