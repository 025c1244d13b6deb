// What the samples of /v1/stats say over time: rates, batch sizes and percentiles, all from differences of counters. Pure.

export const KEEP_MS = 300000;
const SHORTEST_MS = 60000;

export class Figures {
  #snapshots = []; // {atMs, metrics, capacity}, the oldest first

  add(atMs, { metrics, capacity }) {
    const started = (snapshot) => snapshot?.metrics.process_start_time_seconds?.[0][1];
    const isAnother = this.last && started(this.last) !== started({ metrics });
    if (isAnother) this.#snapshots = []; // another process: its counters began at zero
    this.#snapshots.push({ atMs, metrics, capacity });
    while (this.#snapshots[0].atMs < atMs - KEEP_MS) this.#snapshots.shift();
  }

  get last() {
    return this.#snapshots.at(-1);
  }

  // How much time a chart should show: a minute at first, then all there is.
  get spanMs() {
    const goneMs = this.last.atMs - this.#snapshots[0].atMs;
    return Math.max(SHORTEST_MS, goneMs);
  }

  get all() {
    return this.#snapshots;
  }

  // The newest snapshot that is at least so old; the oldest if none is.
  before(ageMs, from = this.#snapshots.length - 1) {
    const atMs = this.#snapshots[from].atMs - ageMs;
    let index = from;
    while (index > 0 && this.#snapshots[index].atMs > atMs) index--;
    return this.#snapshots[index];
  }

  // Sum of the samples that have these labels; undefined when the server exports no such metric.
  value(name, labels = {}, snapshot = this.last) {
    const samples = snapshot?.metrics[name];
    if (samples === undefined) return undefined;
    return samples.filter(([found]) => matches(found, labels)).reduce((sum, [, value]) => sum + value, 0);
  }

  samples(name, labels = {}) {
    return (this.last?.metrics[name] ?? []).filter(([found]) => matches(found, labels));
  }

  series(read) {
    return this.#snapshots.map((snapshot, index) => [snapshot.atMs, read(snapshot, index)]);
  }

  perMinute(name, labels = {}, index = this.#snapshots.length - 1) {
    const to = this.#snapshots[index];
    const from = this.before(60000, index);
    const elapsedMs = to.atMs - from.atMs;
    if (elapsedMs <= 0) return 0;
    return (((this.value(name, labels, to) ?? 0) - (this.value(name, labels, from) ?? 0)) / Math.max(elapsedMs, 60000)) * 60000;
  }

  // In the histogram's unit; null when nothing was observed in that time.
  percentile(name, share, labels = {}, ageMs = KEEP_MS, index = this.#snapshots.length - 1) {
    const to = this.#snapshots[index];
    const from = this.before(ageMs, index);
    const isWhole = from === to || (ageMs >= KEEP_MS && index === this.#snapshots.length - 1 && index < 5);
    const earlier = isWhole ? new Map() : buckets(from, name, labels);
    const counts = [...buckets(to, name, labels)].map(([limit, count]) => [limit, count - (earlier.get(limit) ?? 0)]);
    return quantile(counts, share);
  }
}

function matches(found, wanted) {
  return Object.entries(wanted).every(([name, value]) => found[name] === value);
}

function buckets(snapshot, name, labels) {
  const found = new Map();
  for (const [own, value] of snapshot?.metrics[`${name}_bucket`] ?? []) {
    if (matches(own, labels)) found.set(own.le === "+Inf" ? Infinity : Number(own.le), value);
  }
  return found;
}

// counts: [upper limit, how many at or below it], ascending. Linear within a bucket, as Prometheus does it.
export function quantile(counts, share) {
  const total = counts.at(-1)?.[1] ?? 0;
  if (!total) return null;
  const rank = share * total;
  let below = 0;
  let from = 0;
  for (const [limit, count] of counts) {
    if (count >= rank && count > below) {
      if (limit === Infinity) return from;
      return from + ((limit - from) * (rank - below)) / (count - below);
    }
    below = count;
    from = limit;
  }
  return from;
}
