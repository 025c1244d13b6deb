// A streaming windowed-sinc resampler for the audio worklets: anti-aliased, 16 zero crossings a side, no seams between chunks.

const CROSSINGS = 16;
const PHASES = 256;

export class Resampler {
  constructor(fromHz, toHz) {
    this.isIdentity = fromHz === toHz;
    this.step = fromHz / toHz;
    const scale = Math.min(1, toHz / fromHz);
    this.half = Math.ceil(CROSSINGS / scale);
    this.table = makeTable(this.half, scale * 0.95);
    this.reset();
  }

  reset() {
    this.input = new Float32Array(this.half); // silence before the first sample
    this.at = this.half; // where in input the next output lies
  }

  // All output that chunk completes. The last `half` samples wait for what follows them.
  process(chunk) {
    if (this.isIdentity) return chunk;
    const input = new Float32Array(this.input.length + chunk.length);
    input.set(this.input);
    input.set(chunk, this.input.length);
    const last = input.length - this.half - 1;
    const count = Math.max(0, Math.floor((last - this.at) / this.step) + 1);
    const output = new Float32Array(count);
    for (let i = 0; i < count; i++) output[i] = this.value(input, this.at + i * this.step);
    this.at += count * this.step;
    const passed = Math.max(0, Math.floor(this.at) - this.half);
    this.input = input.slice(passed);
    this.at -= passed;
    return output;
  }

  flush() {
    return this.isIdentity ? new Float32Array(0) : this.process(new Float32Array(this.half + 1));
  }

  value(input, at) {
    const base = Math.floor(at);
    const phase = (at - base) * PHASES;
    const row = Math.floor(phase);
    const blend = phase - row;
    const width = 2 * this.half;
    const from = base - this.half + 1;
    let one = 0;
    let two = 0;
    for (let k = 0, a = row * width, b = a + width; k < width; k++) {
      const sample = input[from + k];
      one += sample * this.table[a + k];
      two += sample * this.table[b + k];
    }
    return one + (two - one) * blend;
  }
}

// Row r: the taps for an output that lies r / PHASES behind a sample; one row more than phases, to blend the last with.
function makeTable(half, cutoff) {
  const width = 2 * half;
  const table = new Float32Array((PHASES + 1) * width);
  for (let row = 0; row <= PHASES; row++) {
    let sum = 0;
    for (let k = 0; k < width; k++) {
      const x = k - half + 1 - row / PHASES;
      const window = Math.abs(x) < half ? 0.5 + 0.5 * Math.cos((Math.PI * x) / half) : 0;
      const angle = Math.PI * x * cutoff;
      const tap = (angle === 0 ? 1 : Math.sin(angle) / angle) * window;
      table[row * width + k] = tap;
      sum += tap;
    }
    for (let k = 0; k < width; k++) table[row * width + k] /= sum; // the same loudness at every phase
  }
  return table;
}
