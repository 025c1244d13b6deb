// The one place where the page says that something is in the way, and for how long.

export class Banner {
  #root;
  #parts = {};
  #timer;
  #untilMs = 0;
  #wholeMs = 0;
  #act;
  #dismissed = "";
  #base; // what is shown while nothing else is in the way

  kind = "";

  constructor(root) {
    this.#root = root;
    for (const part of root.querySelectorAll("[data-part]")) this.#parts[part.dataset.part] = part;
    this.#parts.act.addEventListener("click", () => this.#act?.());
    this.#parts.dismiss.addEventListener("click", () => this.dismiss());
  }

  // action: [label, what it does]. lines: further text, a paragraph each.
  show({ kind, title, detail, figures = [], lines = [], waitMs, action }) {
    const { title: heading, detail: text, figures: list, lines: more, act, wait } = this.#parts;
    const isKnown = this.kind === kind;
    // A wait that is told again goes on shrinking; it only grows when it became longer.
    const isSame = !this.#root.hidden && isKnown && waitMs <= this.#wholeMs;
    this.#wholeMs = isSame ? this.#wholeMs : (waitMs ?? 0);
    this.kind = this.#root.dataset.kind = kind;
    // Unchanged words are not read aloud again.
    if (heading.textContent !== title) heading.textContent = title;
    if (text.textContent !== detail) text.textContent = detail;
    list.replaceChildren(...figures.flatMap(([name, value]) => [made("dt", name), made("dd", value)]));
    more.replaceChildren(...lines.map(([words, code]) => paragraph(words, code)));
    [act.textContent, this.#act] = action ?? ["", undefined];
    act.hidden = !action;
    this.#untilMs = waitMs ? performance.now() + waitMs : 0;
    wait.hidden = !waitMs && !action;
    // What was dismissed comes back when it has another title, or after it was over.
    if (this.#dismissed !== title) this.#dismissed = "";
    this.#root.hidden = this.#dismissed !== "";
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tick(), 200);
    this.#tick();
  }

  // Shown whenever there is nothing else to show, until it is dismissed.
  showAlways(words) {
    this.#base = words;
    if (!this.kind) this.show(words);
  }

  dismiss() {
    if (this.kind === this.#base?.kind) this.#base = undefined;
    this.#dismissed = this.#parts.title.textContent;
    this.#root.hidden = true;
    clearInterval(this.#timer);
  }

  // Only some kinds, or whatever there is.
  hide(...kinds) {
    if (kinds.length && !kinds.includes(this.kind)) return;
    this.kind = this.#dismissed = "";
    this.#root.hidden = true;
    clearInterval(this.#timer);
    if (this.#base) this.show(this.#base);
  }

  #tick() {
    const leftMs = this.#untilMs - performance.now();
    const isTimed = this.#untilMs > 0;
    this.#parts.countdown.textContent = !isTimed ? "" : leftMs > 0 ? `about ${Math.ceil(leftMs / 1000)} s` : "any moment";
    const share = isTimed ? Math.max(0, leftMs / this.#wholeMs) : 0;
    this.#parts.bar.style.transform = `scaleX(${share})`;
  }
}

function paragraph(words, code) {
  const line = made("p", words);
  if (code) line.append(" ", made("code", code));
  return line;
}

function made(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}
