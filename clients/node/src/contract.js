/**
 * The contract, loaded as it stands from `protos/`: the services and, for tests, each message's serialiser.
 *
 * Fields keep the names they have in the .proto files. 64-bit numbers come as text, since a seed may be larger than
 * what a number of JavaScript holds; enum values come as their names; bytes as Buffers.
 */
import { fileURLToPath } from 'node:url';
import path from 'node:path';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const PROTOS = process.env.FEDSTREAM_PROTOS ?? fileURLToPath(new URL('../../../protos', import.meta.url));
const NAMES = ['common', 'enrolment', 'negotiation', 'transfer'];
const FILES = NAMES.map((name) => path.join('fedstream', 'v1', `${name}.proto`));
const PACKAGE = 'fedstream.v1';

const definition = protoLoader.loadSync(FILES, {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});

export const {
  CertificateService, EnrolmentService, NegotiationService, TransferService,
} = grpc.loadPackageDefinition(definition).fedstream.v1;

/**
 * The message type of that name, with `serialize(object) -> Buffer` and `deserialize(Buffer) -> object`.
 * @param {string} name such as `Chunk`
 */
export function messageType(name) {
  return definition[`${PACKAGE}.${name}`];
}
