/** A certificate request (PKCS #10, RFC 2986) in DER form, as little of it as enrolment needs: a name and a key. */
import { createPublicKey, sign } from 'node:crypto';

const [INTEGER, BIT_STRING, UTF8_STRING, SEQUENCE, SET, NO_ATTRIBUTES] = [0x02, 0x03, 0x0c, 0x30, 0x31, 0xa0];
const COMMON_NAME = Buffer.from('0603550403', 'hex'); // 2.5.4.3
const ECDSA_WITH_SHA256 = Buffer.from('06082a8648ce3d040302', 'hex'); // 1.2.840.10045.4.3.2

/**
 * A request for a certificate that says that whoever has the key is `name`.
 * @param {import('node:crypto').KeyObject} key private, of P-256; it is not in the request
 * @param {string} name
 * @returns {Buffer}
 */
export function certificateRequest(key, name) {
  const subject = der(SEQUENCE, der(SET, der(SEQUENCE, COMMON_NAME, der(UTF8_STRING, Buffer.from(name)))));
  const publicKey = createPublicKey(key).export({ type: 'spki', format: 'der' });
  const version = der(INTEGER, Buffer.from([0]));
  const wish = der(SEQUENCE, version, subject, publicKey, der(NO_ATTRIBUTES));
  const noUnusedBits = Buffer.from([0]);
  const signature = der(BIT_STRING, noUnusedBits, sign('sha256', wish, key));
  return der(SEQUENCE, wish, der(SEQUENCE, ECDSA_WITH_SHA256), signature);
}

/** An element of DER: its tag, the length of what it holds, and that. */
function der(tag, ...parts) {
  const contents = Buffer.concat(parts);
  const { length } = contents;
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), contents]);
}
