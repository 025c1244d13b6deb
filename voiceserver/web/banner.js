// The one place where the page says that something is in the way, and for how long.

export class Banner {
  #root;
  #parts = {};
  #timer;
  #untilMs = 0;
  #wholeMs = 0;

  kind = "";

  constructor(root, onRetry) {
    this.#root = root;
    for (const part of root.querySelectorAll("[data-part]")) this.#parts[part.dataset.part] = part;
    this.#parts.retry.addEventListener("click", onRetry);
  }

  show({ kind, title, detail, figures, waitMs, canRetry = false }) {
    const { title: heading, detail: text, figures: list, retry, wait } = this.#parts;
    // A wait that is told again goes on shrinking; it only grows when it became longer.
    const isSame = !this.#root.hidden && this.kind === kind && waitMs <= this.#wholeMs;
    this.#wholeMs = isSame ? this.#wholeMs : (waitMs ?? 0);
    this.kind = this.#root.dataset.kind = kind;
    // Unchanged words are not read aloud again.
    if (heading.textContent !== title) heading.textContent = title;
    if (text.textContent !== detail) text.textContent = detail;
    list.replaceChildren(...figures.flatMap(([name, value]) => [made("dt", name), made("dd", value)]));
    retry.hidden = !canRetry;
    this.#untilMs = waitMs ? performance.now() + waitMs : 0;
    wait.hidden = !waitMs && !canRetry;
    this.#root.hidden = false;
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tick(), 200);
    this.#tick();
  }

  // Only one kind, or whatever there is.
  hide(...kinds) {
    if (kinds.length && !kinds.includes(this.kind)) return;
    this.kind = "";
    this.#root.hidden = true;
    clearInterval(this.#timer);
  }

  #tick() {
    const leftMs = this.#untilMs - performance.now();
    const isTimed = this.#untilMs > 0;
    this.#parts.countdown.textContent = !isTimed ? "" : leftMs > 0 ? `about ${Math.ceil(leftMs / 1000)} s` : "any moment";
    const share = isTimed ? Math.max(0, leftMs / this.#wholeMs) : 0;
    this.#parts.bar.style.transform = `scaleX(${share})`;
  }
}

function made(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}
