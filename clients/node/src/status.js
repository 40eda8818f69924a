/** What a failed call means: only a decision of the server carries a `google.rpc.ErrorInfo` of our domain. */
import grpc from '@grpc/grpc-js';
import protobuf from 'protobufjs';
import { Refusal, Trouble } from './errors.js';

const DOMAIN = 'fedstream.v1';
const DETAILS = 'grpc-status-details-bin';
const LONGEST_DELAY_SECONDS = 86_400;

// The few standard messages that stand in the trailing metadata; their .proto files come with no package of ours.
const rpc = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message Delay { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Delay retry_delay = 1; }
`, { keepCase: true }).root;

/**
 * A `ServiceError` of gRPC as a Refusal or Trouble.
 * @param {import('@grpc/grpc-js').ServiceError} error
 * @returns {Refusal | Trouble}
 */
export function fromServiceError(error) {
  const [bytes] = error.metadata?.get(DETAILS) ?? [];
  const refusal = bytes === undefined ? null : readRefusal(bytes);
  return refusal ?? new Trouble(`${grpc.status[error.code] ?? 'BROKEN'}: ${error.details ?? error.message}`);
}

/**
 * The refusal that a serialised `google.rpc.Status` holds, or null if it is not one of this protocol.
 * @param {Uint8Array} bytes
 */
export function readRefusal(bytes) {
  try {
    const status = rpc.lookupType('google.rpc.Status').decode(bytes);
    const info = find(status, 'google.rpc.ErrorInfo');
    if (info?.domain !== DOMAIN) return null;
    const delay = find(status, 'google.rpc.RetryInfo')?.retry_delay;
    return new Refusal(info.reason, status.message, { ...info.metadata }, delay ? seconds(delay) : undefined);
  } catch {
    return null; // a proxy may have mangled it: then it is not the server's word
  }
}

function find(status, type) {
  const detail = status.details.find(({ type_url }) => type_url.endsWith(`/${type}`));
  return detail && rpc.lookupType(type).decode(detail.value);
}

function seconds(delay) {
  const value = Number(delay.seconds) + delay.nanos / 1e9;
  return Math.min(Math.max(value, 0), LONGEST_DELAY_SECONDS);
}
