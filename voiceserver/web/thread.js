// The conversation as it is read: one list item per turn, with what was said, what was answered, and where the time went.
//
// A turn is open from the question until its reply is over. What is open when the session is lost can be asked again.

import { inMs, splitOf } from "./words.js";

export class Thread {
  #list;
  #announce;
  #retry;
  #turns = new Map(); // by the server's number, in this session
  #asked = new Map(); // by the key that the page gave the question
  #open = new Set();
  #count = 0;
  #session = "";

  // retry(turn): somebody wants a failed answer once more.
  constructor(list, announcer, retry) {
    this.#list = list;
    this.#announce = (text) => (announcer.textContent = text);
    this.#retry = retry;
  }

  get isEmpty() {
    return this.#list.childElementCount === 0;
  }

  // Questions without an answer, the oldest first: those with words, and those that were only begun.
  get openTurns() {
    return [...this.#open];
  }

  // An answer was asked for, and has not begun.
  get isExpecting() {
    return this.openTurns.some(({ reply }) => reply.dataset.state === "waiting");
  }

  // A typed question.
  addTyped(text) {
    const turn = this.#make();
    say(turn, text, "final");
    this.#open.add(turn);
    this.#scroll();
    return turn;
  }

  // The key under which the answer to ``turn`` will come.
  expect(turn) {
    const key = `ask-${++this.#count}`;
    this.#asked.set(key, turn);
    this.#open.add(turn);
    turn.reply.textContent = "";
    turn.reply.dataset.state = "waiting";
    turn.reply.hidden = false;
    turn.split.hidden = true;
    turn.tools.replaceChildren();
    note(turn, "");
    return key;
  }

  // The question of ``key`` came to nothing.
  fail(key, message) {
    const turn = this.#asked.get(key);
    if (turn !== undefined) this.#fail(turn, message);
    return turn !== undefined;
  }

  isAsked(key) {
    return this.#asked.has(key);
  }

  remark(turn, words) {
    note(turn, words);
  }

  giveUp(turn, words = "") {
    this.#open.delete(turn);
    if (!turn.reply.textContent) turn.reply.hidden = true;
    if (words) note(turn, words, true);
  }

  // A new session: it counts its turns from the beginning; what was said stays readable. ``words``: why there is a new one.
  begin(session, words) {
    this.#session = session;
    this.#turns.clear();
    this.#asked.clear();
    const [first] = this.#open; // what is asked again belongs to the new session
    const above = first ? first.item.previousElementSibling : this.#list.lastElementChild;
    if (!words || !above || above.matches(".break")) return;
    const item = element("li", words);
    item.className = "break";
    above.after(item);
    this.#announce(words);
    this.#scroll();
  }

  clear() {
    this.#turns.clear();
    this.#asked.clear();
    this.#open.clear();
    this.#list.replaceChildren();
  }

  // The conversation in plain text.
  toText() {
    return [...this.#list.children].map(textOf).filter(Boolean).join("\n\n");
  }

  receive(event) {
    const handle = HANDLERS[event.type];
    const isKeyed = this.#asked.has(event.key);
    if (handle === undefined || (!event.turn && !isKeyed)) return;
    const isNear = this.#isAtEnd();
    const turn = this.#turn(event);
    handle(turn, event, this.#announce);
    if (event.type === "transcript.final" && event.text) this.#open.add(turn);
    if (event.type === "speech.started") this.#open.add(turn);
    if (isOver(event)) this.#close(turn);
    if (event.type === "reply.done" && event.reason === "failed") this.#fail(turn, event.message);
    if (isNear) this.#scroll();
  }

  // What was asked before an answer came is answered with it.
  #close(turn) {
    if (!this.#open.has(turn)) return;
    for (const one of this.#open) {
      this.#open.delete(one);
      if (one === turn) return;
    }
  }

  #fail(turn, message) {
    this.#open.delete(turn);
    turn.reply.hidden = !turn.reply.textContent;
    note(turn, message || "The answer failed.", true);
    turn.note.append(" ", button("Try again", () => this.#retry(turn)));
  }

  #turn(event) {
    const turn = this.#asked.get(event.key) ?? this.#turns.get(event.turn) ?? this.#make();
    if (event.turn) this.#turns.set(event.turn, turn);
    return turn;
  }

  #make() {
    const item = document.querySelector("#turn").content.firstElementChild.cloneNode(true);
    const find = (name) => item.querySelector(`[data-part=${name}]`);
    this.#list.append(item);
    const parts = Object.fromEntries(["you", "reply", "tools", "note", "split"].map((name) => [name, find(name)]));
    return { item, session: this.#session, ...parts };
  }

  #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = document.scrollingElement;
    return scrollHeight - scrollTop - clientHeight < 160;
  }

  #scroll() {
    document.scrollingElement.scrollTo({ top: document.scrollingElement.scrollHeight });
  }
}

const isOver = (event) => event.type === "reply.done" || event.type === "transcript.failed" || (event.type === "transcript.final" && !event.text);

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
  "reply.tool_call": (turn, event) => {
    if (!event.is_done) return;
    const item = element("li", "Tool call ");
    item.append(element("code", `${event.name}(${event.arguments})`));
    turn.tools.append(item);
  },
  "reply.done": (turn, event) => {
    turn.reply.dataset.state = event.reason;
    turn.reply.hidden = !turn.reply.textContent;
    const isCall = event.reason === "completed" && turn.reply.hidden && turn.tools.childElementCount > 0;
    note(turn, isCall ? "The model asked for a tool. This page runs none." : NOTES[event.reason] ?? "");
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

function textOf(item) {
  if (item.matches(".break")) return `— ${item.textContent} —`;
  const words = (part) => item.querySelector(`[data-part=${part}]`).textContent.trim();
  const calls = [...item.querySelectorAll("[data-part=tools] li")].map(({ textContent }) => textContent);
  const lines = [words("you") && `You: ${words("you")}`, words("reply") && `Server: ${words("reply")}`, ...calls];
  const remark = item.querySelector("[data-part=note]").firstChild?.textContent.trim();
  return [...lines, remark && `(${remark})`].filter(Boolean).join("\n");
}

function button(label, act) {
  const made = element("button", label);
  made.type = "button";
  made.className = "link";
  made.addEventListener("click", act);
  return made;
}

function element(name, text, data = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  Object.assign(made.dataset, data);
  return made;
}
