// The drawer: how the session is set, which devices are used, what may be taken away, and every event. Loaded when it is opened.

import { change, settings } from "./settings.js";

const FORM = `
<form method="dialog" class="panel-top"><h2>Settings</h2><button class="quiet">Close</button></form>
<section><h3>Conversation</h3>
  <p class="buttons"><button type="button" class="quiet" data-do="anew">New conversation</button>
  <button type="button" class="quiet" data-do="text">Download transcript</button>
  <button type="button" class="quiet" data-do="wav">Download WAV</button></p></section>
<section><h3>Session</h3>
  <label>Voice<input data-set="voice" list="voices" placeholder="The server's own" autocomplete="off"></label><datalist id="voices"></datalist>
  <label>Language<input data-set="language" list="languages" placeholder="The server's own" autocomplete="off"></label>
  <datalist id="languages">${["ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru", "sv", "tr", "uk", "zh"].map((one) => `<option>${one}</option>`).join("")}</datalist>
  <label>Instructions<textarea data-set="instructions" rows="3" placeholder="The server's own"></textarea></label>
  <label>End of a turn<select data-set="turns"><option value="server">As the server has it</option><option value="pause">After a pause of</option><option value="hand">By hand: press to end it</option></select></label>
  <label data-if="pause">Pause, ms<input data-set="silenceMs" type="number" min="100" max="5000" step="50"></label>
  <p class="note" data-part="applies">Changes apply at once. What is left empty is the server's own from the next conversation on.</p></section>
<section><h3>Sound</h3>
  <label>Microphone<select data-set="microphone"></select></label>
  <label data-part="speaker">Loudspeaker<select data-set="speaker"></select></label>
  <label>Volume<input data-set="volume" type="range" min="0" max="1.5" step="0.05"></label></section>
<section><h3>Who answers</h3><dl class="rows" data-part="engines"></dl></section>
<section><h3>Appearance</h3>
  <label>Theme<select data-part="theme"><option value="">As the system has it</option><option value="light">Light</option><option value="dark">Dark</option></select></label></section>
<section><h3>Events</h3>
  <p class="log-bar"><input data-part="filter" type="search" placeholder="Filter, such as reply" aria-label="Filter events"><button type="button" class="quiet" data-do="copy">Copy</button></p>
  <ol class="log" data-part="log" aria-label="Events" tabindex="0"></ol></section>`;

const NAMES = { vad: "hears that you speak", stt: "understands the words", reply: "finds the answer", tts: "speaks it" };
const SHOWN = 300; // events

// page: {sound, log, update(), anew(), toText(), toWav(), session()}
export function makePanel(page) {
  document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/web/panel.css" }));
  const root = document.createElement("dialog");
  root.id = "panel";
  root.setAttribute("aria-label", "Settings");
  root.innerHTML = FORM;
  document.body.append(root);
  const part = (name) => root.querySelector(`[data-part=${name}]`);
  const act = (name, work) => root.querySelector(`[data-do=${name}]`).addEventListener("click", work);

  for (const label of root.querySelectorAll("label")) {
    label.querySelector("input, select, textarea").setAttribute("aria-label", label.firstChild.textContent);
  }
  for (const field of root.querySelectorAll("[data-set]")) {
    const name = field.dataset.set;
    field.addEventListener("change", () => {
      change({ [name]: field.type === "number" || field.type === "range" ? field.valueAsNumber || 0 : field.value.trim() });
      showIf();
      page.update(name);
    });
  }
  const showIf = () => (root.querySelector("[data-if=pause]").hidden = settings.turns !== "pause");

  part("theme").addEventListener("change", () => {
    localStorage.setItem("voiceserver-theme", part("theme").value);
    dispatchEvent(new Event("voiceserver-theme"));
  });
  act("anew", () => {
    page.anew();
    root.close();
  });
  act("text", () => download("conversation.txt", new Blob([page.toText()], { type: "text/plain" })));
  act("wav", () => download("conversation.wav", page.toWav()));

  const lines = () => {
    const wanted = part("filter").value.toLowerCase();
    return page.log.map(lineOf).filter((line) => line.toLowerCase().includes(wanted));
  };
  const showLog = () => {
    const shown = lines().slice(-SHOWN);
    const list = part("log");
    const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    list.replaceChildren(...shown.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
    if (isAtEnd) list.scrollTop = list.scrollHeight;
  };
  part("filter").addEventListener("input", showLog);
  act("copy", async ({ target }) => {
    const isCopied = await copy(lines().join("\n"), root);
    target.textContent = isCopied ? "Copied" : "Not allowed";
    setTimeout(() => (target.textContent = "Copy"), 2000);
  });
  root.addEventListener("click", (event) => {
    if (event.target === root && event.clientX < root.getBoundingClientRect().left) root.close();
  });
  let timer;
  root.addEventListener("close", () => clearInterval(timer));

  async function fill() {
    for (const field of root.querySelectorAll("[data-set]")) field.value = settings[field.dataset.set];
    part("theme").value = localStorage.getItem("voiceserver-theme") ?? "";
    showIf();
    await Promise.all([fillDevices(root), fillOffer(root, page)]);
  }

  return {
    open() {
      root.showModal();
      fill();
      showLog();
      clearInterval(timer);
      timer = setInterval(showLog, 1000);
    },
  };
}

async function fillDevices(root) {
  const devices = (await navigator.mediaDevices?.enumerateDevices().catch(() => [])) ?? [];
  for (const [name, kind] of [["microphone", "audioinput"], ["speaker", "audiooutput"]]) {
    const select = root.querySelector(`[data-set=${name}]`);
    const found = devices.filter((one) => one.kind === kind && one.deviceId && one.deviceId !== "default");
    const options = found.map(({ label, deviceId }, i) => new Option(label || `Device ${i + 1}`, deviceId));
    select.replaceChildren(new Option("As the system has it", ""), ...options);
    select.value = settings[name];
    if (select.selectedIndex < 0) select.value = "";
  }
  root.querySelector("[data-part=speaker]").hidden = !("setSinkId" in AudioContext.prototype);
}

async function fillOffer(root, page) {
  const offer = await page.session();
  const list = root.querySelector("[data-part=engines]");
  if (!offer) return list.replaceChildren(row("dt", "The server did not say."));
  list.replaceChildren(...Object.entries(offer.engines).flatMap(([stage, engine]) => [row("dt", NAMES[stage] ?? stage), row("dd", engine)]));
  root.querySelector("#voices").replaceChildren(...offer.voices.map((voice) => new Option(voice)));
  root.querySelector("[data-set=voice]").placeholder = offer.voice || "The server's own";
  root.querySelector("[data-set=language]").placeholder = offer.language || "The server's own";
}

const row = (name, text) => Object.assign(document.createElement(name), { textContent: text });

function lineOf({ atMs, isOut, event }) {
  const at = new Date(atMs).toLocaleTimeString("en-GB", { hour12: false });
  const { type, ...rest } = event;
  if (rest.resume_token) rest.resume_token = "…"; // whoever has it can take the call over
  return `${at} ${isOut ? "→" : "←"} ${type} ${JSON.stringify(rest)}`;
}

function download(name, blob) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// Pages on plain http have no clipboard; there a selection is copied.
async function copy(text, root) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    root.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}
