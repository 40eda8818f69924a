/** Addresses as people write them: `HOST:PORT`, or `[V6ADDRESS]:PORT`. */

/**
 * Host and port of an address.
 * @param {string} address
 * @throws {Error} it is none
 */
export function splitAddress(address) {
  const [, host, port] = /^\[?(.+?)\]?:(\d{1,5})$/.exec(address) ?? [];
  if (!host || Number(port) > 65_535) {
    throw new Error(`${address} is no address; write HOST:PORT, such as fl.example.org:8443`);
  }
  return { host, port: Number(port) };
}

export function shownAddress(host, port) {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Whether only this machine can reach `host`. */
export function isLoopback(host) {
  return /^(localhost|127\.\d+\.\d+\.\d+|::1)$/.test(host);
}
