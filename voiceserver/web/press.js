// The microphone's button and the space bar: a short press opens it until the next one, a long one is push-to-talk.

const HOLD_MS = 350; // a press that lasts longer is push-to-talk

const isTyping = (target) => target instanceof Element && target.closest("input, textarea, select, summary, a, dialog, button:not(#talk)");

// isOpen(): the microphone stays open already. begin(), end(): as they say. release(): a long press is over.
export function listenForPresses(button, { isOpen, begin, end, release }) {
  let pressedAt = 0;
  let wasOpen = false;

  function press({ timeStamp }) {
    if (button.disabled) return;
    wasOpen = isOpen();
    pressedAt = timeStamp;
    if (!wasOpen) begin();
  }

  function letGo({ timeStamp }) {
    if (!pressedAt) return;
    const isHold = timeStamp - pressedAt >= HOLD_MS;
    pressedAt = 0;
    if (wasOpen) end();
    else if (isHold) release();
  }

  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || button.disabled) return;
    button.setPointerCapture(event.pointerId);
    press(event);
  });
  button.addEventListener("pointerup", letGo);
  button.addEventListener("pointercancel", letGo);
  button.addEventListener("contextmenu", (event) => event.preventDefault());
  // From a keyboard or a screen reader: no pointer, so no hold.
  button.addEventListener("click", (event) => {
    if (event.detail !== 0) return;
    press(event);
    letGo(event);
  });
  document.addEventListener("keydown", (event) => {
    if (event.code !== "Space" || isTyping(event.target)) return;
    event.preventDefault();
    if (!event.repeat) press(event);
  });
  document.addEventListener("keyup", (event) => {
    if (event.code !== "Space" || isTyping(event.target)) return;
    event.preventDefault();
    letGo(event);
  });
}
