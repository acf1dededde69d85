// The page of one annotator: shows a pair or a group, takes a choice or a ranking by key or click, and has the next one ready
// before it is asked.

import { chooseByClick, introduce, keyOf, KEYS, LONGEST_S, STRENGTHS } from "./choices.js";
import { differences } from "./differences.js";
import { enterDimensions, showDimensions, takesKey } from "./dimensions.js";
import { draftOf, keep, markSaved, reopen } from "./drafts.js";
import { askComment, askEdit, askFlag, askSkip, isPreference, NAMES, paint as paintDraft } from "./remarks.js";
import { inWords as rankingInWords, paintRanks, ranksSoFar, showAnswers, takesRank, tiersOf, writeAnswers } from "./ranking.js";
import { rendered, showTurns, textOf } from "./rendering.js";
import { asking, once, Refused, requestId, token } from "./requests.js";

const at = (id) => document.getElementById(id);
const SKIPS = ["I know too little about this", "I cannot decide", "I do not read this language", "The question makes no sense"];
const POLL_S = 20;
const ENDS = {
  closed: "No more labels are needed. Thank you!",
  done: "Nothing is left for you here. Thank you!",
  later: "Nothing is left for you just now. Others are at the last ones: what they leave is shown here.",
};
let items = [];
let shownAt = 0;
let pending = Promise.resolve(); // what is on its way; a key pressed meanwhile waits for it, and none is lost
let waiting = false;
let isClosed = false;
let later = false; // others have pairs that may come back to this person
let dimensions = [];
let isRanked = false; // whether the items are groups to rank
let view = "rendered"; // or "raw", the texts as they were written, or "compared", the raw answers with their differences

function say(text, isBad = false) {
  at("message").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  at("message").classList.toggle("bad", isBad);
}

const ask = asking(say);

// Show the ranks of the group that is on the screen.
function paintRanking() {
  const { ranks, comment } = draftOf(items[0].item);
  const { answers } = items[0];
  const tiers = tiersOf(ranks, answers.length);
  paintRanks(at("group"), ranks);
  at("strength").textContent = tiers ? rankingInWords(tiers) : ranksSoFar(ranks, answers.length);
  at("note").textContent = comment && `Comment: ${comment}`;
  at("submit").disabled = tiers === null;
}

// Show what was said of the item that is on the screen.
function paint() {
  if (isRanked) {
    paintRanking();
    return;
  }
  const draft = draftOf(items[0].item);
  const { choice, strength } = draft;
  paintDraft(draft, isPreference(choice) ? `${NAMES[choice]} is ${STRENGTHS[strength]} (press again to change)` : "");
}

function choose(side) {
  if (at("work").hidden || isRanked) return;
  const draft = draftOf(items[0].item);
  draft.strength = isPreference(side) && side === draft.choice ? (draft.strength % 3) + 1 : 1;
  draft.choice = side;
  if (at("message").textContent.startsWith("Choose ")) say("");
  keep();
  paint();
}

function showTexts() {
  const item = items[0];
  if (!item) return;
  const isRaw = view !== "rendered";
  at("raw").setAttribute("aria-pressed", String(view === "raw"));
  if (isRanked) {
    showTurns(at("prompt"), item.prompt, { withRoles: true, isRaw });
    writeAnswers(at("group"), item.answers, isRaw);
    return;
  }
  const { edits } = draftOf(item.item);
  const answers = Object.fromEntries(Object.keys(NAMES).map((side) => [side, withEdit(item[side], edits[side])]));
  showTurns(at("prompt"), item.prompt, { withRoles: true, isRaw });
  const compared = view === "compared" ? differences(textOf(answers.left), textOf(answers.right)) : null;
  for (const [place, side] of Object.keys(NAMES).entries()) {
    if (compared) at(side).lastElementChild.replaceChildren(compared[place]);
    else showTurns(at(side).lastElementChild, answers[side], { isRaw });
  }
  at("compared").setAttribute("aria-pressed", String(view === "compared"));
  at("legend").textContent =
    view !== "compared" ? "" : compared ? "Underlined: what only this answer says." : "The answers are too long to compare.";
}

// An edit is the text of the last turn.
const withEdit = (turns, edit) => (edit ? [...turns.slice(0, -1), { ...turns.at(-1), content: edit }] : turns);

function toggle(name) {
  if (at("work").hidden || at(name).hidden) return;
  view = view === name ? "rendered" : name;
  showTexts();
}

const ended = () => ENDS[isClosed ? "closed" : later ? "later" : "done"];

function show() {
  const item = items[0];
  at("work").hidden = !item;
  for (const id of ["pair", "choices", "compared"]) at(id).hidden = !item || isRanked;
  at("group").hidden = !isRanked;
  for (const id of ["submit", "comment", "skip", "flag", "strength", "note"]) at(id).hidden = !item;
  at("controls").hidden = false; // at the end too: the last answer can be taken back
  if (!item) {
    say(ended());
    return;
  }
  if (isRanked) {
    showAnswers(at("group"), item.answers, draftOf(item.item).ranks, () => {
      if (!at("message").classList.contains("bad")) say(""); // it is about the answer before, and stands above the ranks
      keep();
      paint();
    });
  }
  showTexts();
  showDimensions(at("dimensions"), dimensions, draftOf(item.item).ratings, keep);
  paint();
  shownAt = performance.now();
  window.scrollTo(0, 0);
}

function take({ items: next, progress, later: comes }) {
  items = next;
  later = comes ?? false;
  isClosed = progress.closed;
  at("progress").textContent = `${progress.done} of ${progress.wanted} labels; you answered ${progress.own}`;
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
    markSaved(given.item);
    if (items[0]?.item !== shown || !items.length) show();
  } catch (error) {
    items = before;
    const is409 = error instanceof Refused && error.status === 409;
    const told = is409 && (await once("next").catch(() => null)); // the pair may have been answered in another tab, say
    if (told) take(told);
    const isOther = told && items[0]?.item !== given.item;
    show();
    const why = `${error.message}.`;
    const then = items.length ? `This is the next ${isRanked ? "group" : "pair"}.` : ended();
    say(`${why} ${isOther ? then : "What you chose and wrote is kept in this tab."}`, true);
  }
}

async function takeBack() {
  try {
    const told = await ask("undo", { request: requestId() });
    if (told.undone) reopen(told.undone);
    take(told); // the pair whose answer was taken back is the first
    show();
    const isShown = told.undone && items[0]?.item === told.undone;
    const back = isShown ? "Your last answer is taken back." : `Your last answer is taken back. ${isRanked ? "Its group" : "Its pair"} needs no label any more, so it is not shown.`;
    say(told.undone ? back : "There is nothing to undo.");
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
  const given = { ...body, item, seconds: Math.min((performance.now() - shownAt) / 1000, LONGEST_S), request: requestId() };
  if (item) next(() => (items[0]?.item === item ? send(name, given) : undefined));
}

const undo = () => next(takeBack);

function comment() {
  if (items.length) askComment(draftOf(items[0].item), keep, paint);
}

// Edit the chosen answer, or the one of a side.
function edit(side) {
  if (!items.length || isRanked) return;
  const item = items[0];
  const draft = draftOf(item.item);
  const chosen = side ?? draft.choice;
  if (!isPreference(chosen)) {
    say("Choose A or B first: the answer you edit is the better one.", true);
    return;
  }
  askEdit(draft, chosen, item[chosen].at(-1).content, keep, () => {
    showTexts();
    paint();
  });
}

function submit() {
  if (!items.length) return;
  const { choice, strength, ranks, comment, edits, ratings: all } = draftOf(items[0].item);
  if (isRanked) {
    const ranking = tiersOf(ranks, items[0].answers.length);
    if (ranking) answer("rank", { ranking, comment });
    return;
  }
  // A draft may be older than the dimensions of the batch.
  const ratings = Object.fromEntries(Object.entries(all).filter(([name]) => dimensions.some((one) => one.name === name)));
  if (!choice) say("Choose first: which answer is better?", true);
  else answer("label", { choice, strength, comment, ratings, edit: (isPreference(choice) && edits[choice]) || "" });
}

const rate = () => enterDimensions(at("dimensions"));
const toggleRaw = () => toggle("raw");
const toggleCompared = () => toggle("compared");
function skip() {
  const act = (given) => answer("skip", given);
  if (items.length) askSkip("Why do you skip it? (may stay empty)", SKIPS, draftOf(items[0].item), keep, act);
}

function flag() {
  const act = (given) => answer("flag", given);
  if (items.length) askFlag("What is wrong with it? Nobody will be shown it again.", draftOf(items[0].item), keep, act);
}

const KEYS_OF_ACTS = { s: skip, f: flag, u: undo, m: toggleRaw, d: toggleCompared, c: comment, e: () => edit(), r: rate, enter: submit };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (takesKey(at("dimensions"), event)) return;
  if (isRanked && items.length && takesRank(at("group"), event, draftOf(items[0].item).ranks)) {
    event.preventDefault();
    return;
  }
  const key = keyOf(event);
  const onControl = event.target.closest?.("button, a, summary");
  // Enter and the space bar on a button press that button, and nothing else.
  if ((key === "enter" || key === " ") && onControl && onControl !== at("submit")) return;
  const arrow = { arrowleft: "left", arrowright: "right" }[key];
  if (arrow && (event.shiftKey || event.target.matches?.(".text [tabindex]"))) return; // a box that scrolls
  const side = arrow ?? KEYS[key];
  const act = KEYS_OF_ACTS[key] ?? (side && (() => choose(side)));
  if (!act) return;
  event.preventDefault();
  if (!event.repeat) act(); // a key that is held down acts once
});
// A button pressed by mouse or finger does not keep the focus: Enter and the other keys are the page's.
document.addEventListener("click", (event) => event.detail && event.target.closest("button")?.blur(), true);
chooseByClick(choose);
at("submit").onclick = submit;
at("comment").onclick = comment;
for (const side of Object.keys(NAMES)) at(side).querySelector(".edit").onclick = () => edit(side);
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
    const told = await ask("hello");
    dimensions = told.dimensions ?? [];
    isRanked = told.ranked;
    introduce(told, rendered);
    const first = await ask("next");
    at("guidelines").open = first.progress.own === 0;
    take(first);
    show();
  } catch (error) {
    say(error.message, true);
  }
}

// Who has nothing left is given what others leave.
async function look() {
  if (!later || items.length || document.hidden) return;
  try {
    take(await once("next"));
    if (items.length || !later) show();
  } catch {
    // the next time
  }
}
setInterval(() => later && !items.length && next(look), POLL_S * 1000);

begin();
