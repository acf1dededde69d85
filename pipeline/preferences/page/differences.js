// The words in which two answers differ.

/* global Diff */

const LONGEST = 50_000; // words and what stands between them, of both answers
const PATIENCE_MS = 1000;
const words = new Intl.Segmenter(undefined, { granularity: "word" }); // knows languages without spaces, too

const split = (text) => Array.from(words.segment(text), ({ segment }) => segment);

function marked(parts, isOther) {
  const text = document.createElement("div");
  text.className = "raw";
  text.dir = "auto";
  for (const { value, added, removed } of parts) {
    if (isOther ? removed : added) continue;
    const piece = value.join("");
    if (added || removed) text.append(Object.assign(document.createElement("mark"), { textContent: piece }));
    else text.append(piece);
  }
  return text;
}

// Return both texts as elements in which the words that only one of them has are marked; null for texts that are too long.
export function differences(one, other) {
  const [left, right] = [split(one), split(other)];
  if (left.length + right.length > LONGEST) return null;
  const parts = Diff.diffArrays(left, right, { timeout: PATIENCE_MS });
  return parts ? [marked(parts, false), marked(parts, true)] : null;
}
