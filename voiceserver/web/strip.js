// The last seconds of the conversation as a picture: your voice above the line, the reply below it.

const BAR_PX = 3;
const GAP_PX = 2;
const STEP_MS = 50;

export class Strip {
  #canvas;
  #levels;
  #history = [];
  #due = 0;
  #isStill = matchMedia("(prefers-reduced-motion: reduce)");

  // levels: () => [yours, the reply's], each 0 to 1.
  constructor(canvas, levels) {
    this.#canvas = canvas;
    this.#levels = levels;
    requestAnimationFrame((now) => this.#frame(now));
  }

  #frame(now) {
    if (now >= this.#due) {
      this.#due = now + STEP_MS;
      const levels = this.#levels().map(shape);
      this.#history.push(levels);
      if (this.#history.length > 600) this.#history.shift();
      this.#draw();
    }
    requestAnimationFrame((next) => this.#frame(next));
  }

  #draw() {
    const canvas = this.#canvas;
    const scale = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const style = getComputedStyle(canvas);
    const [mine, theirs, line] = ["--mine", "--theirs", "--line"].map((name) => style.getPropertyValue(name));
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    if (this.#isStill.matches) this.#drawStill(context, width, height, mine, theirs, line);
    else this.#drawMoving(context, width, height, mine, theirs, line);
  }

  #drawMoving(context, width, height, mine, theirs, line) {
    const middle = height / 2;
    const count = Math.floor(width / (BAR_PX + GAP_PX));
    const from = this.#history.length - count;
    for (let i = 0; i < count; i++) {
      const [you, reply] = this.#history[from + i] ?? [0, 0];
      const x = width - (count - i) * (BAR_PX + GAP_PX);
      bar(context, x, middle - 1, -you * (middle - 2), mine, line);
      bar(context, x, middle + 1, reply * (middle - 2), theirs, line);
    }
  }

  // Nothing slides: two bars that only grow and shrink.
  #drawStill(context, width, height, mine, theirs, line) {
    const [you, reply] = this.#history.at(-1) ?? [0, 0];
    context.fillStyle = line;
    context.fillRect(0, height / 2 - 7, width, 4);
    context.fillRect(0, height / 2 + 3, width, 4);
    context.fillStyle = mine;
    context.fillRect(0, height / 2 - 7, width * you, 4);
    context.fillStyle = theirs;
    context.fillRect(0, height / 2 + 3, width * reply, 4);
  }
}

function bar(context, x, from, length, color, line) {
  const tall = Math.abs(length);
  context.fillStyle = tall < 1 ? line : color;
  const height = Math.max(tall, 1);
  context.beginPath();
  context.roundRect(x, length < 0 ? from - height : from, BAR_PX, height, 1.5);
  context.fill();
}

// Loudness as it is felt: quiet speech should be visible, loud speech should fit.
function shape(level) {
  const db = 20 * Math.log10(level + 1e-6);
  return Math.max(0, Math.min(1, (db + 52) / 44));
}
