// What a person chose for this page, kept in this browser; and what a session is told of it.

const KEY = "voiceserver-settings";
const DEFAULTS = { voice: "", language: "", instructions: "", turns: "server", silenceMs: 500, microphone: "", speaker: "", volume: 1 };

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

export const settings = { ...DEFAULTS, ...stored() };

export function change(changes) {
  Object.assign(settings, changes);
  localStorage.setItem(KEY, JSON.stringify(settings));
}

// The event for a new session; undefined where everything is the server's own.
export function sessionUpdate() {
  const { voice, language, instructions, turns, silenceMs } = settings;
  const chosen = Object.entries({ voice, language, instructions }).filter(([, value]) => value);
  if (turns === "hand") chosen.push(["turn_detection", null]);
  if (turns === "pause") chosen.push(["turn_detection", { silence_duration_ms: silenceMs }]);
  return chosen.length ? { type: "session.update", event_id: "settings", ...Object.fromEntries(chosen) } : undefined;
}
