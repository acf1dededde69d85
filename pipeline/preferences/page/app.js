// The page of one annotator: shows a pair, takes a choice by key or click, and has the next pair ready before it is asked.

import { differences } from "./differences.js";
import { rendered, showTurns, textOf } from "./rendering.js";

const token = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const KEYS = { 1: "left", 2: "right", 3: "tie", 4: "both bad", 5: "both good" };
const STRENGTHS = ["", "slightly better", "clearly better", "much better"];
let items = [];
let choice = null;
let strength = 1;
let shownAt = 0;
let pending = Promise.resolve(); // what is on its way; a key pressed meanwhile waits for it, and none is lost
let waiting = false;
let isClosed = false;
let view = "rendered"; // or "raw", the texts as they were written, or "compared", the raw answers with their differences

// The same request is sent again until the server has answered it: `request` in its body tells the server that it is the
// same one, so that a label whose reply was lost is not counted twice.
const RETRY_S = [1, 2, 4, 8, 15, 30];
let wake = () => {}; // ends the pause before the next try

class Refused extends Error {}

const requestId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

async function once(name, body) {
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token}` };
  const reply = await fetch(`api/${name}`, { method: "POST", headers, body: JSON.stringify(body) });
  if (reply.status >= 500 || reply.status === 429) throw new Error(`the server answered ${reply.status}`);
  const told = await reply.json();
  if (!reply.ok) throw new Refused(told.error);
  return told;
}

async function ask(name, body = {}) {
  for (let tries = 0; ; tries += 1) {
    try {
      const told = await once(name, body);
      if (tries) say("");
      return told;
    } catch (error) {
      if (error instanceof Refused) throw error;
      const pause = RETRY_S[Math.min(tries, RETRY_S.length - 1)];
      const why = navigator.onLine ? "The server cannot be reached" : "You are offline";
      say(`${why}. Nothing you said is lost: it is sent again in ${pause} s.`, true);
      await new Promise((resume) => {
        wake = resume;
        setTimeout(resume, pause * 1000);
      });
    }
  }
}

addEventListener("online", () => wake());

function say(text, isBad = false) {
  at("message").textContent = text;
  at("message").classList.toggle("bad", isBad);
}

function choose(side) {
  if (at("work").hidden) return;
  const isPreference = side === "left" || side === "right";
  strength = isPreference && side === choice ? (strength % 3) + 1 : 1;
  choice = side;
  for (const button of at("choices").children) button.setAttribute("aria-checked", String(button.dataset.choice === side));
  for (const id of ["left", "right"]) at(id).classList.toggle("chosen", id === side);
  at("strength").textContent = isPreference ? `${STRENGTHS[strength]} (press again to change)` : "";
  at("submit").disabled = side === null;
}

function showTexts() {
  const item = items[0];
  if (!item) return;
  const isRaw = view !== "rendered";
  showTurns(at("prompt"), item.prompt, { withRoles: true, isRaw });
  const compared = view === "compared" ? differences(...["left", "right"].map((side) => textOf(item[side]))) : null;
  for (const [place, side] of ["left", "right"].entries()) {
    if (compared) at(side).lastElementChild.replaceChildren(compared[place]);
    else showTurns(at(side).lastElementChild, item[side], { isRaw });
  }
  for (const name of ["raw", "compared"]) at(name).setAttribute("aria-pressed", String(view === name));
  at("legend").textContent =
    view !== "compared" ? "" : compared ? "Underlined: what only this answer says." : "The answers are too long to compare.";
}

function toggle(name) {
  if (at("work").hidden) return;
  view = view === name ? "rendered" : name;
  showTexts();
}

function show() {
  const item = items[0];
  choose(null);
  at("strength").textContent = "";
  at("work").hidden = !item;
  for (const id of ["choices", "submit", "skip", "flag"]) at(id).hidden = !item;
  at("controls").hidden = false; // at the end too: the last answer can be taken back
  if (!item) {
    say(isClosed ? "No more labels are needed. Thank you!" : "Nothing is left for you here. Thank you!");
    return;
  }
  showTexts();
  shownAt = performance.now();
  window.scrollTo(0, 0);
}

function take({ items: next, progress }) {
  items = next;
  isClosed = progress.closed;
  at("progress").textContent = `${progress.done} of ${progress.wanted} labels, ${progress.own} yours`;
  at("bar").max = Math.max(progress.wanted, 1);
  at("bar").value = progress.done;
}

// The next pair is on the screen while the answer travels; a refusal brings the old one back.
async function send(name, given) {
  const before = items;
  say("");
  items = items.slice(1);
  if (items.length) show();
  const shown = items[0]?.item;
  try {
    take(await ask(name, given));
    if (items[0]?.item !== shown || !items.length) show();
  } catch (error) {
    items = before;
    show();
    say(error.message, true);
  }
}

async function takeBack() {
  try {
    const told = await ask("undo", { request: requestId() });
    take(told); // the pair whose answer was taken back is the first
    show();
    say(told.undone ? "Your last answer is taken back." : "There is nothing to undo.");
  } catch (error) {
    say(error.message, true);
  }
}

// Do one thing after another; of what is pressed while something is on its way, the first.
async function next(act) {
  if (waiting) return;
  waiting = true;
  await pending;
  waiting = false;
  pending = act();
}

function answer(name, body) {
  const item = items[0]?.item;
  const given = { ...body, item, seconds: (performance.now() - shownAt) / 1000, request: requestId() };
  if (item) next(() => (items[0]?.item === item ? send(name, given) : undefined));
}

const undo = () => next(takeBack);

function leave(name, text) {
  if (!items.length) return;
  const dialog = at("why");
  dialog.querySelector("label").textContent = text;
  at("reason").value = "";
  // Not when it has closed: that is told later, when another key may have opened it again.
  dialog.querySelector("form").onsubmit = (event) => {
    if (dialog.open && event.submitter?.value === "ok") answer(name, { reason: at("reason").value });
  };
  dialog.onclose = () => document.activeElement.blur(); // else keys would still go into the field that is gone
  dialog.showModal();
}

const toggleRaw = () => toggle("raw");
const toggleCompared = () => toggle("compared");
const submit = () => choice && answer("label", { choice, strength });
const skip = () => leave("skip", "Why do you skip it? (may stay empty)");
const flag = () => leave("flag", "What is wrong with it? Nobody will be shown it again.");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("why").open) return;
  const key = event.key.toLowerCase();
  const onControl = event.target.closest?.("button, a, summary");
  // Enter and the space bar on a button press that button, and nothing else.
  if ((key === "enter" || key === " ") && onControl && onControl !== at("submit")) return;
  const arrow = { arrowleft: "left", arrowright: "right" }[key];
  if (arrow && !event.shiftKey) {
    event.preventDefault();
    choose(arrow);
    return;
  }
  const act = { s: skip, f: flag, u: undo, m: toggleRaw, d: toggleCompared, enter: submit }[key] ?? (KEYS[key] && (() => choose(KEYS[key])));
  if (!act) return;
  event.preventDefault();
  act();
});
for (const button of at("choices").children) {
  button.onclick = (event) => {
    choose(button.dataset.choice);
    if (event.detail) at("submit").focus({ preventScroll: true }); // by mouse or finger: Enter saves then
  };
}
for (const id of ["left", "right"]) at(id).onclick = (event) => event.target.closest("a") || String(getSelection()) || choose(id);
at("submit").onclick = submit;
at("skip").onclick = skip;
at("flag").onclick = flag;
at("undo").onclick = undo;
at("raw").onclick = toggleRaw;
at("compared").onclick = toggleCompared;
addEventListener("hashchange", () => location.reload());

async function begin() {
  if (!token) {
    say("Open the link you were given: it ends in a token of your own.", true);
    return;
  }
  try {
    const { annotator, title, guidelines } = await ask("hello");
    at("title").textContent = `${title}: which answer is better?`;
    document.title = `${title} · ${annotator}`;
    at("guidelines").hidden = !guidelines;
    at("guidelines").lastElementChild.replaceChildren(rendered(guidelines));
    const first = await ask("next");
    at("guidelines").open = first.progress.own === 0;
    take(first);
    show();
  } catch (error) {
    say(error.message, true);
  }
}

begin();
