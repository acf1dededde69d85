// Ranks of the answers to one prompt: each answer has a row of numbers, 1 for the best; equal numbers are a tie.

import { keyOf } from "./choices.js";
import { showTurns } from "./rendering.js";

const LETTERS = [..."ABCDEF"];
const articles = (where) => [...where.children];
const group = (article) => article.querySelector(".ranks");

// Return a ranking as places in tiers, best first; null while an answer has no rank.
//
//   ranks: by place of the answer, its number
export function tiersOf(ranks, count) {
  const places = Array.from({ length: count }, (_, place) => place);
  if (places.some((place) => !ranks[place])) return null;
  const numbers = [...new Set(places.map((place) => ranks[place]))].sort((one, other) => one - other);
  return numbers.map((number) => places.filter((place) => ranks[place] === number));
}

// Return a ranking in words: "B > A = C".
export const inWords = (tiers) => tiers.map((tier) => tier.map((place) => LETTERS[place]).join(" = ")).join(" > ");

// Return the ranks of some of the answers in words: "2 of 4 ranked: B > D".
export function ranksSoFar(ranks, count) {
  const given = Object.keys(ranks).map(Number);
  const numbers = [...new Set(given.map((place) => ranks[place]))].sort((one, other) => one - other);
  const said = inWords(numbers.map((number) => given.filter((place) => ranks[place] === number)));
  return `${given.length} of ${count} ranked${said ? `: ${said}` : "; 1 is best, equal numbers are a tie"}`;
}

function rankRow(place, count, choose) {
  const row = document.createElement("div");
  row.className = "ranks";
  row.setAttribute("role", "radiogroup");
  row.setAttribute("aria-label", `Rank of answer ${LETTERS[place]}, 1 is best`);
  for (let number = 1; number <= count; number += 1) {
    const input = Object.assign(document.createElement("input"), { type: "radio", name: `rank-${place}`, value: number });
    input.onchange = () => choose(number);
    const label = document.createElement("label");
    label.append(input, Object.assign(document.createElement("span"), { textContent: number }));
    row.append(label);
  }
  return row;
}

// Show the answers in an element, each with its row of numbers.
//
//   ranks: changed as somebody chooses
//   changed: called after each change
export function showAnswers(where, answers, ranks, changed) {
  where.replaceChildren(
    ...answers.map((_, place) => {
      const article = document.createElement("article");
      article.setAttribute("aria-label", `Answer ${LETTERS[place]}`);
      const top = Object.assign(document.createElement("div"), { className: "top" });
      const choose = (number) => {
        ranks[place] = number;
        changed();
      };
      top.append(Object.assign(document.createElement("h2"), { textContent: LETTERS[place] }), rankRow(place, answers.length, choose));
      article.append(top, document.createElement("div"));
      return article;
    }),
  );
}

// Write the texts of the answers into the element, rendered or as they were written.
export function writeAnswers(where, answers, isRaw) {
  for (const [place, article] of articles(where).entries()) showTurns(article.lastElementChild, answers[place], { isRaw });
}

// Mark the ranks that were given.
export function paintRanks(where, ranks) {
  for (const [place, article] of articles(where).entries()) {
    for (const input of group(article).querySelectorAll("input")) input.checked = Number(input.value) === ranks[place];
    article.classList.toggle("chosen", Boolean(ranks[place]));
  }
}

function focus(article) {
  const row = group(article);
  (row.querySelector("input:checked") ?? row.querySelector("input")).focus({ preventScroll: true });
  const { top, bottom } = article.getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) article.scrollIntoView({ block: "nearest" });
}

// Return whether a key is one of ranks, after doing what it says: a number ranks the answer that has the focus, or the first
// without a rank, and goes on to the next without one; arrows to the left and right go to the answer before and after.
export function takesRank(where, event, ranks) {
  const all = articles(where);
  const here = all.findIndex((article) => article.contains(event.target));
  const step = !event.shiftKey && { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const unranked = (from) => all.findIndex((_, place) => place >= from && !ranks[place]);
  if (step && event.target.matches?.(".text [tabindex]")) return false; // a box that scrolls
  if (step) {
    const next = here < 0 ? Math.max(unranked(0), 0) : Math.min(Math.max(here + step, 0), all.length - 1);
    focus(all[next]);
    return true;
  }
  const number = Number(keyOf(event));
  if (!(number >= 1 && number <= all.length)) return false;
  if (event.repeat) return true; // a key that is held down acts once
  const place = here < 0 ? unranked(0) : here;
  if (place < 0) return true; // every answer has a rank: an arrow says which is meant
  group(all[place]).querySelectorAll("input")[number - 1].click();
  const next = [unranked(place + 1), unranked(0)].find((one) => one >= 0);
  if (next === undefined) document.activeElement.blur(); // Enter saves
  else focus(all[next]);
  return true;
}
