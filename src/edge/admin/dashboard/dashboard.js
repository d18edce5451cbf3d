// Puts what the stream brings into the page. The server writes and escapes all of it; here it is only compared with what
// is there, so that focus, selection and scrolling stay where they are. No markup is made here.
"use strict";

(() => {
  const live = document.getElementById("live");
  const link = document.getElementById("link");
  const pause = document.getElementById("pause");
  const parser = new DOMParser();
  // Figures that are older than this are told to be.
  const LOST_MS = 4000;
  const AGAIN_MS = 3000;
  let heard = Date.now();
  let source = null;
  let again = 0;
  let paused = false;

  const merge = (now, next) => {
    for (let at = 0; at < next.childNodes.length; at += 1) {
      const [here, there] = [now.childNodes[at], next.childNodes[at]];
      if (here === undefined) {
        now.append(document.importNode(there, true));
      } else if (here.nodeName !== there.nodeName || here.id !== there.id) {
        here.replaceWith(document.importNode(there, true));
      } else if (there.nodeType === Node.ELEMENT_NODE) {
        for (const { name } of [...here.attributes]) {
          if (!there.hasAttribute(name)) here.removeAttribute(name);
        }
        for (const { name, value } of there.attributes) {
          if (here.getAttribute(name) !== value) here.setAttribute(name, value);
        }
        merge(here, there);
      } else if (here.data !== there.data) {
        here.data = there.data;
      }
    }
    while (now.childNodes.length > next.childNodes.length) now.lastChild.remove();
  };

  // A part for screen readers that is told once, and one that counts.
  const said = document.createElement("span");
  const age = document.createElement("span");
  age.setAttribute("aria-hidden", "true");
  link.replaceChildren(said, age);

  const tell = () => {
    const silence = Date.now() - heard;
    const state = paused ? "paused" : silence > LOST_MS ? "lost" : "live";
    const words = { live: "● Live", lost: "✗ Connection lost, trying again", paused: "Ⅱ Paused" };
    document.documentElement.dataset.link = state;
    link.dataset.state = state;
    if (said.textContent !== words[state]) said.textContent = words[state];
    age.textContent = state === "live" ? "" : `: these figures are ${Math.round(silence / 1000)} s old`;
  };

  const close = () => {
    clearTimeout(again);
    if (source !== null) source.close();
    source = null;
  };

  const open = () => {
    close();
    if (paused || document.hidden) return;
    source = new EventSource("/live");
    source.addEventListener("figures", (event) => {
      heard = Date.now();
      merge(live, parser.parseFromString(event.data, "text/html").body);
      const title = document.getElementById("attention")?.dataset.title;
      if (title !== undefined) document.title = title;
      tell();
    });
    source.addEventListener("error", () => {
      // Where the browser has given up (the proxy was away, or too many watch), we have not.
      if (source !== null && source.readyState === EventSource.CLOSED) again = setTimeout(open, AGAIN_MS);
    });
  };

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    open();
    tell();
  });
  // A page nobody sees needs no stream: a browser opens only so many to one host.
  document.addEventListener("visibilitychange", open);
  setInterval(tell, 1000);
  tell();
  open();
})();
