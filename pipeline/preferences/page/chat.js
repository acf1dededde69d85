// The page of live dialogues: a person says something, two models answer, the person chooses, and the dialogue goes on.

import { chooseByClick, introduce, keyOf, KEYS, LONGEST_S, STRENGTHS } from "./choices.js";
import { differences } from "./differences.js";
import { enterDimensions, showDimensions, takesKey } from "./dimensions.js";
import { draftOf, keep, markSaved, reopen } from "./drafts.js";
import { askComment, askEdit, askFlag, askSkip, isPreference, NAMES, paint as paintDraft } from "./remarks.js";
import { rendered } from "./rendering.js";
import { asking, Refused, requestId, token } from "./requests.js";

const at = (id) => document.getElementById(id);
const SKIPS = ["I know too little about this", "I cannot decide", "I do not read this language"];
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
  again: "A model could not answer just now. It is asked again; you may wait, or begin a new dialogue.",
};
const DONE = {
  skip: () => "Skipped: the dialogue goes on with one of the two.",
  flag: () => "Flagged: both answer again.",
  undo: ({ undone }) => (undone ? "Your last answer is taken back." : "There is nothing to undo."),
};
const POLL_S = 0.7;
const REFUSED_S = 15; // until it is asked again whether a link works that was paused
let shown = null; // the dialogue as the server told it last
let shownAt = 0;
let busy = false; // something is on its way
let sent = 0; // number of things that were sent
let polling = 0;
let dimensions = [];
let message = {}; // what stands in the field for a message, while it is not sent
let view = "rendered"; // or "raw", the texts as they were written, or "compared", the raw answers with their differences

function say(text, isBad = false) {
  at("controls").hidden = false; // the message stands there
  at("message").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  at("message").classList.toggle("bad", isBad);
}

const ask = asking(say);

const isFinished = () => !shown || shown.progress.closed || shown.progress.done >= shown.progress.wanted;
const isChoice = () => shown?.phase === "choose" && !shown.progress.closed;
const isSame = (one, other) => one.role === other?.role && one.content === other?.content;
const draft = () => draftOf(shown.item);

function turn({ role, content }) {
  const part = document.createElement("div");
  part.className = `turn ${role}`;
  const name = Object.assign(document.createElement("b"), { textContent: role === "user" ? "you" : role });
  part.append(name, rendered(content, view === "raw"));
  return part;
}

function showAnswers() {
  const { edits } = draft();
  const texts = Object.keys(NAMES).map((side) => edits[side] || shown[side]);
  const compared = view === "compared" ? differences(...texts) : null;
  for (const [place, side] of Object.keys(NAMES).entries()) {
    at(side).lastElementChild.replaceChildren(compared?.[place] ?? rendered(texts[place], view !== "rendered"));
  }
  at("legend").textContent =
    view !== "compared" ? "" : compared ? "Underlined: what only this answer says." : "The answers are too long to compare.";
}

function showView() {
  for (const name of ["raw", "compared"]) at(name).setAttribute("aria-pressed", String(view === name));
  at("dialogue").replaceChildren(...shown.turns.map(turn));
  if (isChoice()) showAnswers();
  else at("legend").textContent = "";
}

function toggle(name) {
  if (name === "compared" && !isChoice()) return;
  view = view === name ? "rendered" : name;
  showView();
}

// Show what was said of the two answers.
function paint() {
  const { choice, strength, way = "either" } = draft();
  const how = isPreference(choice) ? `${NAMES[choice]} is ${STRENGTHS[strength]}` : WAYS[way];
  paintDraft(draft(), choice === null ? "" : `${how} (press again to change)`);
  if (choice !== null && !isPreference(choice)) for (const side of Object.keys(NAMES)) at(side).classList.toggle("chosen", side === way);
  at("submit").disabled = busy || choice === null;
}

function choose(side) {
  if (!isChoice() || busy) return;
  const said = draft();
  const ways = side === "both bad" ? ["either", "left", "right", "again"] : ["either", "left", "right"];
  const isAgain = side === said.choice;
  said.strength = isPreference(side) && isAgain ? (said.strength % 3) + 1 : 1;
  said.way = !isPreference(side) && isAgain ? ways[(ways.indexOf(said.way) + 1) % ways.length] : "either";
  said.choice = side;
  keep();
  paint();
}

function status() {
  const { done, wanted, own } = shown.progress;
  at("progress").textContent = `${done} of ${wanted} labels; you answered ${own}`;
  at("bar").max = Math.max(wanted, 1);
  at("bar").value = done;
  if (isFinished() && !isChoice()) say("No more labels are needed. Thank you!");
  else if (shown.phase === "over") say(`${OVER[shown.over] ?? "This dialogue is over."} “New dialogue” begins another.`);
}

function showPair(before) {
  if (before?.item === shown.item && isSameText(before)) return;
  showAnswers();
  showDimensions(at("dimensions"), dimensions, draft().ratings, keep);
  paint();
  shownAt = performance.now();
  document.activeElement?.blur(); // so that keys choose
  at("dialogue").lastElementChild?.scrollIntoView({ block: "start" }); // the message, and its answers below it
}

const isSameText = (before) => Object.keys(NAMES).every((side) => before[side] === shown[side]);

function showField(before) {
  const isBegun = shown.turns.some(({ role }) => role === "user");
  if (shown.offered && !isBegun && !at("said").value) at("said").value = shown.offered;
  if (before?.phase !== "say") at("said").focus({ preventScroll: true });
  window.scrollTo(0, document.body.scrollHeight);
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
  const answering = told.note === "again" ? NOTES.again : "Both are answering…";
  const asked = { answering, choose: isChoice() ? "Both have answered. Which answer is better?" : "" };
  at("waiting").textContent = asked[told.phase] ?? NOTES[told.note] ?? "";
  for (const id of ["pair", "choices", "submit", "skip", "flag", "comment", "strength", "note", "compared"]) at(id).hidden = !isChoice();
  at("raw").hidden = !told.turns.length;
  at("dimensions").hidden = !isChoice() || !dimensions.length;
  at("compose").hidden = !isOpen;
  at("new").hidden = isFinished();
  if (isChoice()) showPair(before);
  else if (view === "compared") toggle("compared");
  if (isOpen) showField(before);
  clearTimeout(polling);
  if (told.phase === "answering") polling = setTimeout(poll, POLL_S * 1000);
}

async function poll() {
  const number = sent;
  try {
    const told = await ask("dialogue");
    if (number !== sent) return; // the reply to what was sent meanwhile tells more
    if (at("message").classList.contains("bad")) say(""); // the link works again
    show(told);
  } catch (error) {
    if (number !== sent) return;
    say(error.message, true);
    polling = setTimeout(poll, REFUSED_S * 1000);
  }
}

function setBusy(is) {
  busy = is;
  for (const id of ["send", "undo", "new", "skip", "flag"]) at(id).disabled = is;
  at("said").readOnly = is;
  if (isChoice()) paint();
}

// Send something and show what the dialogue is then; a refusal shows how it stands.
async function send(name, body, then = () => {}) {
  if (busy) return;
  sent += 1;
  clearTimeout(polling);
  setBusy(true);
  say("");
  try {
    const told = await ask(name, { ...body, request: requestId() });
    then(told);
    show(told);
    if (DONE[name] && !at("message").textContent) say(DONE[name](told));
  } catch (error) {
    const told = error instanceof Refused ? await ask("dialogue").catch(() => null) : null;
    if (told) show(told);
    say(body.item ? `${error.message}. What you chose and wrote is kept in this tab.` : error.message, true);
  }
  setBusy(false);
}

function typed(text) {
  at("said").value = text;
  message.said = text;
  keep();
}

function speak() {
  const text = at("said").value.trim();
  if (text && shown?.phase === "say") send("say", { text }, () => typed(""));
}

// Say something of the two answers that are shown.
function answer(name, body) {
  const { item } = shown;
  const seconds = Math.min((performance.now() - shownAt) / 1000, LONGEST_S);
  send(name, { ...body, item, seconds }, () => markSaved(item));
}

function submit() {
  if (!isChoice() || draft().choice === null) return;
  const { choice, strength, way = "either", comment, edits, ratings: all } = draft();
  // A draft may be older than the dimensions of the batch.
  const ratings = Object.fromEntries(Object.entries(all).filter(([name]) => dimensions.some((one) => one.name === name)));
  const edit = (isPreference(choice) && edits[choice]) || "";
  answer("choose", { choice, strength, goes_on: isPreference(choice) ? "either" : way, comment, edit, ratings });
}

const canSay = () => isChoice() && !busy;
const skip = () =>
  canSay() && askSkip("Why do you skip them? (may stay empty)", SKIPS, draft(), keep, (given) => answer("skip", given));
const flag = () =>
  canSay() && askFlag("What is wrong with them? Both models answer again.", draft(), keep, (given) => answer("flag", given));
const comment = () => canSay() && askComment(draft(), keep, paint);

// Edit the chosen answer, or the one of a side; the dialogue goes on with it.
function edit(side) {
  if (!canSay()) return;
  const chosen = side ?? draft().choice;
  if (!isPreference(chosen)) {
    say("Choose A or B first: the answer you edit is the better one.", true);
    return;
  }
  askEdit(draft(), chosen, shown[chosen], keep, () => {
    say("");
    showAnswers();
    paint();
  });
}

const undo = () => send("undo", {}, ({ undone, item }) => undone && item && reopen(item));
const renew = () => !isFinished() && send("open", {}, () => typed(""));
const rate = () => isChoice() && enterDimensions(at("dimensions"));
const toggleRaw = () => toggle("raw");
const toggleCompared = () => toggle("compared");

const KEYS_OF_ACTS = { u: undo, n: renew, m: toggleRaw, d: toggleCompared, s: skip, f: flag, c: comment, e: () => edit(), r: rate, enter: submit };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !shown) return;
  if (document.querySelector("dialog[open]") || takesKey(at("dimensions"), event)) return;
  const key = keyOf(event);
  if (event.target === at("said")) {
    if (key === "escape") at("said").blur(); // then keys are keys again
    if (key !== "enter" || event.shiftKey) return;
    event.preventDefault();
    speak();
    return;
  }
  const onControl = event.target.closest?.("button, a, summary");
  // Enter and the space bar on a button press that button, and nothing else.
  if ((key === "enter" || key === " ") && onControl && onControl !== at("submit")) return;
  const arrow = { arrowleft: "left", arrowright: "right" }[key];
  const act = KEYS_OF_ACTS[key] ?? (KEYS[key] && (() => choose(KEYS[key])));
  const isSide = arrow && !event.shiftKey && isChoice() && !event.target.matches?.(".text [tabindex]"); // a box that scrolls
  if (!isSide && !act) return;
  event.preventDefault();
  if (event.repeat) return; // a key that is held down acts once
  if (isSide) choose(arrow);
  else act();
});
// A button pressed by mouse or finger does not keep the focus: Enter and the other keys are the page's.
document.addEventListener("click", (event) => event.detail && event.target.closest("button")?.blur(), true);
chooseByClick(choose);
at("compose").onsubmit = (event) => {
  event.preventDefault();
  speak();
};
at("said").oninput = () => typed(at("said").value);
at("submit").onclick = submit;
for (const side of Object.keys(NAMES)) at(side).querySelector(".edit").onclick = () => edit(side);
at("skip").onclick = skip;
at("flag").onclick = flag;
at("comment").onclick = comment;
at("undo").onclick = undo;
at("new").onclick = renew;
at("raw").onclick = toggleRaw;
at("compared").onclick = toggleCompared;
addEventListener("hashchange", () => location.reload());

async function begin() {
  if (!token) {
    say("Open the link you were given: it ends in a token of your own.", true);
    return;
  }
  try {
    const told = await ask("hello");
    dimensions = told.dimensions ?? [];
    introduce(told, rendered);
    message = draftOf(`message of ${told.annotator}`).typed;
    at("said").value = message.said ?? "";
    const first = await ask("dialogue");
    at("guidelines").open = first.progress.own === 0;
    show(first);
    if (first.phase === "none") send("open", {});
  } catch (error) {
    say(error.message, true);
  }
}

begin();
