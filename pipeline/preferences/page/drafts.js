// What a person has said of pairs and the server has not saved yet. It outlives a refusal, a link that was revoked and a
// reload of the page, in this tab.

const PLACE = "trueup-drafts";
// typed: texts whose box was closed without OK, by what they are; why: reasons, by what they are for.
const empty = () => ({ choice: null, strength: 1, ranks: {}, comment: "", edits: {}, ratings: {}, typed: {}, why: {} });
const drafts = new Map(Object.entries(stored()).map(([item, draft]) => [item, { ...empty(), ...draft }]));
const saved = new Set(); // pairs whose draft the server has; it comes back when the answer is taken back

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(PLACE)) ?? {};
  } catch {
    return {}; // no storage, or not ours
  }
}

// Return what was said of a pair; whoever changes it calls `keep`.
export function draftOf(item) {
  if (!drafts.has(item)) drafts.set(item, empty());
  return drafts.get(item);
}

export function keep() {
  const untold = JSON.stringify(empty());
  const unsaved = [...drafts].filter(([item, draft]) => !saved.has(item) && JSON.stringify(draft) !== untold);
  try {
    sessionStorage.setItem(PLACE, JSON.stringify(Object.fromEntries(unsaved)));
  } catch {
    // no storage: a reload loses what was typed
  }
}

export function markSaved(item) {
  saved.add(item);
  keep();
}

// An answer was taken back: what was written comes back with the pair, the choice is made anew. Ranks are there to be changed.
export function reopen(item) {
  saved.delete(item);
  Object.assign(draftOf(item), { choice: null, strength: 1 });
  keep();
}
