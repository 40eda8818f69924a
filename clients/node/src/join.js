/**
 * Joining: from a token to a certificate.
 *
 *     KEY made and kept --> SERVER checked by the token's fingerprint --> ENROL with the token --> certificate KEPT
 *
 * It may be cut anywhere and done again with the same token: the key is kept before it is used, and the server gives
 * the same key the same certificate.
 */
import { createPrivateKey } from 'node:crypto';
import { untilDone } from './backoff.js';
import { certificateRequest } from './certificate_request.js';
import { checkAnswer, factsOf, toPem } from './certificates.js';
import { enrol } from './connection.js';
import { EXIT, Refusal, Stop, Trouble } from './errors.js';

const PATIENCE = { firstSeconds: 0.5, longestSeconds: 30, giveUpAfterSeconds: 30 };

/**
 * Join a federation.
 * @param {import('./token.js').Token} token
 * @param {{server: string, enrolment: string}} where
 * @param {import('./identity.js').IdentityFolder} identity
 * @param {Function} log
 * @returns {Promise<string>} what to say to the operator
 * @throws {Stop} with the exit code and what to do
 */
export async function join(token, { server, enrolment }, identity, log, patience = PATIENCE) {
  const { name } = token;
  requireRoom(identity, { name, server });
  const key = createPrivateKey(await orStop(identity.key()));
  const request = { client_name: name, token_id: token.id, token_secret: token.secret,
    certificate_request: certificateRequest(key, name) };
  const answer = await untilAnswered(enrolment, token.fingerprint, request, patience, log);
  const [certificate, authority] = readAnswer(answer, name, key);
  await orStop(identity.keep({ name, server }, certificate, authority));
  const until = factsOf(certificate).expires.toISOString().slice(0, 10);
  return `joined as ${name}; the certificate is valid until ${until} and renews itself`;
}

/** One folder is one site of one federation; it may join that again, with the same key. */
function requireRoom(identity, wanted) {
  const known = identity.membership();
  if (known === null || (known.name === wanted.name && known.server === wanted.server)) return;
  throw new Stop(EXIT.BAD_CONFIGURATION, `${identity.folder} is the identity of ${known.name} at ${known.server}: give `
    + 'another --identity, or remove it if it is out of use');
}

async function orStop(work) {
  try {
    return await work;
  } catch (error) {
    throw new Stop(EXIT.BAD_CONFIGURATION, `the identity cannot be kept: ${error.message}`);
  }
}

function readAnswer(answer, name, key) {
  try {
    const [certificate, authority] = [answer.certificate, answer.authority].map(toPem);
    checkAnswer(name, key, certificate, authority);
    return [certificate, authority];
  } catch (error) {
    throw new Stop(EXIT.DEFECT, `the server's answer cannot be used: ${error.message}`);
  }
}

async function untilAnswered(address, fingerprint, request, patience, log) {
  const once = () => enrol(address, fingerprint, request);
  try {
    return await untilDone(once, { howFar: () => 0, patience, doing: 'joining', log });
  } catch (error) {
    if (error instanceof Trouble) {
      const words = `cannot join at ${address}: ${error.message}. Nothing is lost: try again with the same token`;
      throw new Stop(EXIT.UNREACHABLE, words);
    }
    if (error instanceof Stop && error.exitCode === EXIT.UNTRUSTED) {
      throw new Stop(error.exitCode, `${error.message} Nothing was sent to it.`);
    }
    if (!(error instanceof Refusal)) throw error;
    if (error.reason === 'LIMIT_EXCEEDED') {
      throw new Stop(EXIT.UNREACHABLE, `the server has no time for this site: ${error.message}`);
    }
    throw new Stop(EXIT.UNTRUSTED, `the server refused (${error.reason}): ${error.message}`);
  }
}
