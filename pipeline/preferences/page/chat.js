// The page of live dialogues: a person says something, two models answer, the person chooses, and the dialogue goes on.

import { chooseByClick, introduce, KEYS, STRENGTHS } from "./choices.js";
import { rendered } from "./rendering.js";
import { asking, requestId, token } from "./requests.js";

const at = (id) => document.getElementById(id);
const WAYS = {
  either: "the dialogue goes on with one of them, drawn by chance",
  left: "the dialogue goes on with A",
  right: "the dialogue goes on with B",
  again: "both answer again",
};
const OVER = {
  turns: "This dialogue has all its messages.",
  context: "The dialogue is as long as the models can read: it ends here.",
  silent: "Neither model had an answer: this dialogue ends here.",
  failed: "The models could not answer: this dialogue ends here. Tell who gave you the link.",
};
const NOTES = {
  equal: "Both answers were the same: nothing to compare.",
  unfit: "One of the answers could not be compared: it was empty, or gave its model away.",
};
const POLL_S = 0.7;
let shown = null; // the dialogue as the server told it last
let choice = null;
let strength = 1;
let way = "either";
let shownAt = 0;
let busy = false; // something is on its way
let polling = 0;
let isRaw = false; // whether texts are shown as they were written

function say(text, isBad = false) {
  at("controls").hidden = false; // the message stands there
  at("message").textContent = text;
  at("message").classList.toggle("bad", isBad);
}

const ask = asking(say);

function turn({ role, content }) {
  const part = document.createElement("div");
  part.className = `turn ${role}`;
  const name = Object.assign(document.createElement("b"), { textContent: role === "user" ? "you" : role });
  part.append(name, rendered(content, isRaw));
  return part;
}

const showAnswers = () => ["left", "right"].forEach((id) => at(id).lastElementChild.replaceChildren(rendered(shown[id], isRaw)));

// Show all texts as they were written, or rendered again.
function turnOver() {
  isRaw = !isRaw;
  at("raw").setAttribute("aria-pressed", String(isRaw));
  at("dialogue").replaceChildren(...shown.turns.map(turn));
  if (isChoice()) showAnswers();
}

const isSame = (one, other) => one.role === other?.role && one.content === other?.content;

const isFinished = () => !shown || shown.progress.closed || shown.progress.done >= shown.progress.wanted;
const isChoice = () => shown?.phase === "choose" && !shown.progress.closed;

function choose(side) {
  if (side !== null && !isChoice()) return;
  const isPreference = side === "left" || side === "right";
  const ways = side === "both bad" ? ["either", "left", "right", "again"] : ["either", "left", "right"];
  strength = isPreference && side === choice ? (strength % 3) + 1 : 1;
  way = !isPreference && side === choice ? ways[(ways.indexOf(way) + 1) % ways.length] : "either";
  choice = side;
  for (const button of at("choices").children) button.setAttribute("aria-checked", String(button.dataset.choice === side));
  for (const id of ["left", "right"]) at(id).classList.toggle("chosen", id === side || (!isPreference && side && id === way));
  const text = isPreference ? STRENGTHS[strength] : WAYS[way];
  at("strength").textContent = side === null ? "" : `${text} (press again to change)`;
  at("submit").disabled = side === null;
}

function status() {
  const { done, wanted, own } = shown.progress;
  at("progress").textContent = `${done} of ${wanted} labels, ${own} yours`;
  at("bar").max = Math.max(wanted, 1);
  at("bar").value = done;
  if (isFinished() && !isChoice()) say("No more labels are needed. Thank you!");
  else if (shown.phase === "over") say(`${OVER[shown.over] ?? "This dialogue is over."} “New dialogue” begins another.`);
}

// Show a dialogue; what stands in the field for a message stays there.
function show(told) {
  const before = shown;
  shown = told;
  status();
  const isOpen = told.phase === "say" && !isFinished();
  at("work").hidden = at("controls").hidden = false;
  const kept = (before?.turns ?? []).findIndex((one, i) => !isSame(one, told.turns[i]));
  while (kept >= 0 && at("dialogue").children.length > kept) at("dialogue").lastElementChild.remove();
  at("dialogue").append(...told.turns.slice(at("dialogue").children.length).map(turn)); // a screen reader reads what is new
  at("note").textContent = NOTES[told.note] ?? "";
  at("waiting").hidden = told.phase !== "answering";
  for (const id of ["pair", "choices", "submit"]) at(id).hidden = !isChoice();
  at("compose").hidden = !isOpen;
  at("new").hidden = isFinished();
  if (isChoice() && before?.item !== told.item) {
    showAnswers();
    choose(null);
    shownAt = performance.now();
    document.activeElement?.blur(); // so that keys choose
    at("dialogue").lastElementChild?.scrollIntoView({ block: "start" }); // the message, and its answers below it
  }
  if (!isChoice()) choose(null);
  if (isOpen) {
    if (told.offered && !told.turns.some(({ role }) => role === "user") && !at("text").value) at("text").value = told.offered;
    if (before?.phase !== "say") at("text").focus({ preventScroll: true });
    window.scrollTo(0, document.body.scrollHeight);
  }
  clearTimeout(polling);
  if (told.phase === "answering") polling = setTimeout(poll, POLL_S * 1000);
}

async function poll() {
  if (busy) return; // its reply tells more
  try {
    const told = await ask("dialogue");
    if (!busy) show(told);
  } catch (error) {
    say(error.message, true);
  }
}

// Send something and show what the dialogue is then; a refusal shows how it stands.
async function send(name, body, then = () => {}) {
  if (busy) return;
  busy = true;
  say("");
  for (const id of ["send", "submit", "undo", "new"]) at(id).disabled = true;
  try {
    const told = await ask(name, { ...body, request: requestId() });
    then(told);
    show(told);
    if (name === "undo") say(told.undone ? "Your last choice is taken back." : "There is nothing to undo.");
  } catch (error) {
    const told = await ask("dialogue").catch(() => null);
    if (told) show(told);
    say(error.message, true);
  }
  busy = false;
  for (const id of ["send", "undo", "new"]) at(id).disabled = false;
  at("submit").disabled = choice === null;
  if (shown?.phase === "answering") poll();
}

function speak() {
  const text = at("text").value.trim();
  if (!text || shown?.phase !== "say") return;
  send("say", { text }, () => (at("text").value = ""));
}

function submit() {
  if (choice === null || !isChoice()) return;
  const seconds = (performance.now() - shownAt) / 1000;
  const goes_on = choice === "left" || choice === "right" ? "either" : way;
  send("choose", { item: shown.item, choice, strength, goes_on, seconds });
}

const undo = () => send("undo", {});
const renew = () => !isFinished() && send("open", {}, () => (at("text").value = ""));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !shown) return;
  const key = event.key.toLowerCase();
  if (event.target === at("text")) {
    if (key === "escape") at("text").blur(); // then keys are keys again
    if (key !== "enter" || event.shiftKey) return;
    event.preventDefault();
    speak();
    return;
  }
  const onControl = event.target.closest?.("button, a, summary");
  // Enter and the space bar on a button press that button, and nothing else.
  if ((key === "enter" || key === " ") && onControl && onControl !== at("submit")) return;
  const arrow = { arrowleft: "left", arrowright: "right" }[key];
  const act = { u: undo, n: renew, m: turnOver, enter: submit }[key] ?? (KEYS[key] && (() => choose(KEYS[key])));
  if (arrow && !event.shiftKey && isChoice()) choose(arrow);
  else if (act) act();
  else return;
  event.preventDefault();
});
chooseByClick(choose);
at("compose").onsubmit = (event) => {
  event.preventDefault();
  speak();
};
at("submit").onclick = submit;
at("undo").onclick = undo;
at("new").onclick = renew;
at("raw").onclick = turnOver;
addEventListener("hashchange", () => location.reload());

async function begin() {
  if (!token) {
    say("Open the link you were given: it ends in a token of your own.", true);
    return;
  }
  try {
    introduce(await ask("hello"), rendered);
    const first = await ask("dialogue");
    at("guidelines").open = first.progress.own === 0;
    show(first);
    if (first.phase === "none") renew();
  } catch (error) {
    say(error.message, true);
  }
}

begin();
