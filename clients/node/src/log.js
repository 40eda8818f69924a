/** Log lines for programs and people: one JSON object each, on standard error. */

/**
 * A function `log(level, event, facts)`.
 * @param {Record<string, unknown>} always facts of every line
 */
export function makeLog(always) {
  return (level, event, facts = {}) => {
    const line = { ...always, ...facts, event, level, timestamp: new Date().toISOString() };
    process.stderr.write(`${JSON.stringify(line)}\n`);
  };
}
