// What the samples of /v1/stats say over time: rates, batch sizes and percentiles, all from differences of counters. Pure.
//
// Whole samples are kept for five minutes. What is older, and what the server knew before the page opened, has only the figures of
// /v1/history, one set every ten seconds, for an hour.

const KEEP_MS = 3600000;
const WHOLE_MS = 300000;
const OLD_STEP_MS = 9900;
const SHORTEST_MS = 60000;

export class Figures {
  #snapshots = []; // {atMs, metrics, capacity}, the oldest first
  #old = 0; // how many of them have only the figures of the history
  #lasting = []; // the names of those figures
  #memo = new Map(); // what was read of a snapshot is not read again

  shownMs = KEEP_MS; // what charts show

  // {ages_ms, series: [{name, labels, values}]} of /v1/history: counters are what they had reached by then.
  addPast(nowMs, { ages_ms: ages, series }) {
    this.#lasting = [...new Set(series.map(({ name }) => name))];
    const past = ages.map((ageMs, row) => {
      const metrics = {};
      for (const { name, labels, values } of series) if (values[row] !== null) (metrics[name] ??= []).push([labels, values[row]]);
      return { atMs: nowMs - ageMs, metrics };
    });
    this.#snapshots.unshift(...past);
    this.#old += past.length;
  }

  add(atMs, { metrics, capacity }) {
    const started = (snapshot) => snapshot?.metrics.process_start_time_seconds?.[0][1];
    const before = started(this.last);
    if (before !== undefined && before !== started({ metrics })) {
      this.#snapshots = []; // another process: its counters began at zero
      this.#old = 0;
    }
    this.#snapshots.push({ atMs, metrics, capacity });
    this.#age(atMs);
  }

  #age(nowMs) {
    while (this.#snapshots[this.#old].atMs < nowMs - WHOLE_MS) {
      const { atMs, metrics } = this.#snapshots[this.#old];
      const isSpare = this.#old > 0 && atMs - this.#snapshots[this.#old - 1].atMs < OLD_STEP_MS;
      if (isSpare) this.#snapshots.splice(this.#old, 1);
      else {
        const kept = this.#lasting.filter((name) => metrics[name]).map((name) => [name, metrics[name]]);
        this.#snapshots[this.#old++] = { atMs, metrics: Object.fromEntries(kept) };
      }
    }
    while (this.#snapshots[0].atMs < nowMs - KEEP_MS) {
      this.#snapshots.shift();
      this.#old--;
    }
  }

  get last() {
    return this.#snapshots.at(-1);
  }

  // How much time a chart should show: a minute at first, then all there is.
  get spanMs() {
    const goneMs = this.last.atMs - this.#snapshots[0].atMs;
    return Math.min(Math.max(SHORTEST_MS, goneMs), this.shownMs);
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

  // [time, value] of each snapshot that is shown. ``read`` must be the same function each time.
  series(read) {
    if (!this.#memo.has(read)) this.#memo.set(read, new WeakMap());
    const known = this.#memo.get(read);
    const fromMs = this.last.atMs - this.spanMs;
    const points = [];
    this.#snapshots.forEach((snapshot, index) => {
      if (snapshot.atMs < fromMs) return;
      if (!known.has(snapshot)) known.set(snapshot, read(snapshot, index));
      points.push([snapshot.atMs, known.get(snapshot)]);
    });
    return points;
  }

  perMinute(name, labels = {}, index = this.#snapshots.length - 1) {
    const to = this.#snapshots[index];
    const from = this.before(60000, index);
    const elapsedMs = to.atMs - from.atMs;
    if (elapsedMs <= 0) return 0;
    return (((this.value(name, labels, to) ?? 0) - (this.value(name, labels, from) ?? 0)) / Math.max(elapsedMs, 60000)) * 60000;
  }

  // In the histogram's unit; null when nothing was observed in that time.
  percentile(name, share, labels = {}, ageMs = WHOLE_MS, index = this.#snapshots.length - 1) {
    const to = this.#snapshots[index];
    const whole = this.#snapshots.length - this.#old;
    let from = this.before(ageMs, index);
    // The history has not all parts of a histogram.
    if (index >= this.#old && !buckets(from, name, labels).size) from = this.#snapshots[this.#old];
    const isWhole = from === to || (ageMs >= WHOLE_MS && index === this.#snapshots.length - 1 && whole < 5 && this.#old === 0);
    const earlier = isWhole ? new Map() : buckets(from, name, labels);
    const counts = [...buckets(to, name, labels)].map(([limit, count]) => [limit, count - (earlier.get(limit) ?? 0)]);
    return quantile(counts, share);
  }
}

function matches(found, wanted) {
  return Object.entries(wanted).every(([name, value]) => found[name] === value);
}

function buckets(snapshot, name, labels) {
  const key = `${name} ${JSON.stringify(labels)}`;
  const known = (snapshot.buckets ??= new Map());
  if (!known.has(key)) {
    const samples = (snapshot.metrics[`${name}_bucket`] ?? []).filter(([own]) => matches(own, labels));
    known.set(key, new Map(samples.map(([own, value]) => [own.le === "+Inf" ? Infinity : Number(own.le), value])));
  }
  return known.get(key);
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
