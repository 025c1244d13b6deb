// The conversation as it is read: one list item per turn, with what was said, what was answered, and where the time went.

import { inMs, splitOf } from "./words.js";

export class Thread {
  #list;
  #announce;
  #turns = new Map();
  #typed = [];

  constructor(list, announcer) {
    this.#list = list;
    this.#announce = (text) => (announcer.textContent = text);
  }

  get isEmpty() {
    return this.#list.childElementCount === 0;
  }

  // A new session counts its turns from the beginning; what was said stays readable.
  forgetNumbers() {
    this.#turns.clear();
  }

  // The session is gone, and with it the answers that were still to come.
  forgetTyped() {
    this.#typed = [];
  }

  addTyped(text) {
    const turn = this.#make();
    turn.you.textContent = text;
    turn.you.dataset.state = "final";
    this.#typed.push(turn);
    this.#scroll();
  }

  receive(event) {
    const handle = HANDLERS[event.type];
    if (handle === undefined || !event.turn) return;
    const isNear = this.#isAtEnd();
    handle(this.#turn(event), event, this.#announce);
    if (isNear) this.#scroll();
  }

  #turn(event) {
    let turn = this.#turns.get(event.turn);
    if (turn === undefined) {
      turn = (event.type === "reply.started" && this.#typed.shift()) || this.#make();
      this.#turns.set(event.turn, turn);
    }
    return turn;
  }

  #make() {
    const item = document.querySelector("#turn").content.firstElementChild.cloneNode(true);
    const find = (name) => item.querySelector(`[data-part=${name}]`);
    this.#list.append(item);
    return { item, you: find("you"), reply: find("reply"), note: find("note"), split: find("split") };
  }

  #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = document.scrollingElement;
    return scrollHeight - scrollTop - clientHeight < 160;
  }

  #scroll() {
    document.scrollingElement.scrollTo({ top: document.scrollingElement.scrollHeight });
  }
}

function say(turn, text, state) {
  turn.you.textContent = text;
  turn.you.dataset.state = state;
}

function note(turn, text, isBad = false) {
  turn.note.textContent = text;
  turn.note.dataset.bad = isBad;
  turn.note.hidden = !text;
}

const NOTES = {
  interrupted: "You interrupted this.",
  cancelled: "Stopped.",
  limited: "Cut short: the longest allowed answer.",
  filtered: "Withheld by the endpoint's filter.",
};

const HANDLERS = {
  "speech.started": (turn) => say(turn, turn.you.textContent, "listening"),
  "speech.stopped": (turn) => {
    if (turn.you.dataset.state === "listening") turn.you.dataset.state = "waiting";
  },
  "transcript.partial": (turn, event) => say(turn, event.text, "partial"),
  "transcript.final": (turn, event, announce) => {
    say(turn, event.text || "No words were recognised.", event.text ? "final" : "none");
    announce(`You: ${event.text}`);
  },
  "transcript.failed": (turn, event) => {
    say(turn, "This could not be transcribed.", "none");
    note(turn, event.message, true);
  },
  "reply.started": (turn) => {
    turn.reply.dataset.state = "waiting";
    turn.reply.hidden = false;
  },
  "reply.text": (turn, event, announce) => {
    turn.reply.dataset.state = "speaking";
    turn.reply.textContent += event.text;
    announce(event.text);
  },
  "reply.filler": (turn, event) => {
    if (event.text) note(turn, `“${event.text}”, while the answer is late.`);
  },
  "reply.done": (turn, event) => {
    turn.reply.dataset.state = event.reason;
    turn.reply.hidden = !turn.reply.textContent;
    if (event.reason === "failed") note(turn, event.message || "The answer failed.", true);
    else note(turn, NOTES[event.reason] ?? "");
    if (event.timings) showSplit(turn.split, event.timings);
  },
  "playback.stop": (turn) => note(turn, NOTES.interrupted),
};

function showSplit(figure, timings) {
  const { parts, totalMs } = splitOf(timings);
  if (!totalMs) return;
  figure.hidden = false;
  const [caption, bar, legend] = figure.children;
  const from = timings.endpointing_ms == null ? "to the first sound" : "from your last word to the first sound";
  caption.replaceChildren(element("strong", inMs(totalMs)), ` ${from}`);
  bar.replaceChildren(...parts.map(({ name, ms }) => {
    const piece = element("i", "", { part: name });
    piece.style.flexGrow = String(Math.max(ms / totalMs, 0.004));
    return piece;
  }));
  legend.replaceChildren(...parts.map(({ name, label, ms }) => {
    const item = element("li", "", { part: name });
    item.append(label, " ", element("b", inMs(ms)));
    return item;
  }));
}

function element(name, text, data = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  Object.assign(made.dataset, data);
  return made;
}
