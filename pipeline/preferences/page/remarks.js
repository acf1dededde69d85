// What the pages share of what a person says of two answers: the choice as it is shown, a comment, an edited answer, and why
// they are skipped or flagged. `draft` is what was said (drafts.js), and `keep` is called when it has changed.

import { askText, askWhy } from "./dialogs.js";

const at = (id) => document.getElementById(id);
export const NAMES = { left: "A", right: "B" };
const FLAGS = ["harmful", "personal data", "broken"];
const LONGEST_COMMENT = 2000; // bytes; the server counts characters
const LONGEST_EDIT = 48_000;

export const isPreference = (side) => side === "left" || side === "right";

// Show what was said; `strength` is what is said of the choice's strength.
export function paint({ choice, comment, edits }, strength) {
  for (const button of at("choices").children) button.setAttribute("aria-checked", String(button.dataset.choice === choice));
  for (const [side, name] of Object.entries(NAMES)) {
    at(side).classList.toggle("chosen", side === choice);
    at(side).querySelector(".edit span").textContent = edits[side] ? `Edited ${name}, edit again` : `Edit ${name}`;
  }
  at("strength").textContent = strength;
  const unused = Object.keys(edits).filter((side) => edits[side] && side !== choice);
  const left = unused.map((side) => `Your edit of ${NAMES[side]} is not saved unless ${NAMES[side]} is better.`);
  at("note").textContent = [comment && `Comment: ${comment}`, ...(choice ? left : [])].filter(Boolean).join(" · ");
  at("submit").disabled = choice === null;
}

export function askComment(draft, keep, act) {
  const said = (text) => {
    draft.comment = text.trim();
    keep();
    act();
  };
  const asked = { heading: "Comment", hint: "It is saved with your choice.", name: "comment", text: draft.comment };
  askText({ ...asked, most: LONGEST_COMMENT, typed: draft.typed, keep, act: said });
}

// Edit an answer, which becomes the better one.
export function askEdit(draft, side, text, keep, act) {
  const original = text.replace(/\r\n?/g, "\n"); // as a field gives it back
  const said = (edit) => {
    draft.edits[side] = edit.trim() && edit !== original ? edit : "";
    if (draft.choice !== side) Object.assign(draft, { choice: side, strength: 1 });
    keep();
    act();
  };
  const heading = `Edit answer ${NAMES[side]}`;
  const hint = "Your text becomes the better answer. An empty field brings the original back.";
  const asked = { heading, hint, name: side, text: draft.edits[side] || original };
  askText({ ...asked, most: LONGEST_EDIT, typed: draft.typed, keep, act: said });
}

// Ask why answers are skipped or flagged; `act` is called with what is sent.
function askLeave(name, question, body, draft, keep, act) {
  const typed = (draft.why[name] ??= {});
  const said = (why) => {
    const given = body(why);
    act({ ...given, reason: [given.reason, draft.comment].filter(Boolean).join(". ") }); // a comment is not lost
  };
  askWhy({ ...question, typed, keep, act: said });
}

const inWords = ({ reason, words }) => ({ reason: [reason, words].filter(Boolean).join(": ") });
export const askSkip = (heading, reasons, draft, keep, act) =>
  askLeave("skip", { heading, reasons, isNeeded: false }, inWords, draft, keep, act);
export const askFlag = (heading, draft, keep, act) =>
  askLeave("flag", { heading, reasons: FLAGS, isNeeded: true }, ({ reason, words }) => ({ flag: reason, reason: words }), draft, keep, act);
