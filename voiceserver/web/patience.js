// Who is muted and does nothing holds a place that others may want: asked after a while, then released.

const ASK_MS = 180000;
const ASK_WANTED_MS = 60000; // when somebody waits, or nothing is free
export const LEAVE_MS = 30000;
const LOOK_MS = 15000; // between two looks at how full the server is

export class Patience {
  #isIdle;
  #ask;
  #stay;
  #release;
  #idleSince = performance.now();
  #askedAt = 0;
  #lookedAt = 0;

  // isIdle(); ask(): say that the call is about to end; stay(): somebody is there; release(): nobody was.
  constructor({ isIdle, ask, stay, release }) {
    this.#isIdle = isIdle;
    this.#ask = ask;
    this.#stay = stay;
    this.#release = release;
    for (const name of ["pointerdown", "keydown"]) document.addEventListener(name, () => this.move());
    setInterval(() => this.#tick(), 1000);
  }

  // Somebody is there.
  move() {
    this.#idleSince = performance.now();
    if (this.#askedAt) this.#stay();
    this.#askedAt = 0;
  }

  async #tick() {
    const now = performance.now();
    if (!this.#isIdle()) return this.move();
    if (this.#askedAt) {
      if (now - this.#askedAt < LEAVE_MS) return;
      this.#askedAt = 0;
      this.#idleSince = now;
      this.#release();
      return;
    }
    if (now - this.#idleSince < ASK_WANTED_MS || now - this.#lookedAt < LOOK_MS) return;
    this.#lookedAt = now;
    const since = this.#idleSince;
    const isWanted = await wanted();
    if (isWanted === undefined || since !== this.#idleSince || this.#askedAt || !this.#isIdle()) return;
    if (!isWanted && now - since < ASK_MS) return;
    this.#askedAt = performance.now();
    this.#ask();
  }
}

// Whether others want a place; undefined where there is no end of them.
async function wanted() {
  const answer = await fetch("/v1/capacity").catch(() => undefined);
  if (!answer?.ok) return undefined;
  const { talkers_limit: limit, waiting, free } = await answer.json();
  return limit ? waiting > 0 || free === 0 : undefined;
}
