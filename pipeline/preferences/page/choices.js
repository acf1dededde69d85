// What the pages share of choosing between two answers: keys, words of strength, and what a click does.

const at = (id) => document.getElementById(id);

export const KEYS = { 1: "left", 2: "right", 3: "tie", 4: "both bad", 5: "both good" };
export const STRENGTHS = ["", "slightly better", "clearly better", "much better"];

// Return the key that was pressed, in lower case. A letter or digit of another alphabet or layout is the one that a
// keyboard with Latin letters has there: `S` on a Russian keyboard, `1` without Shift on a French one.
export function keyOf(event) {
  const key = event.key.toLowerCase();
  if (key.length !== 1 || /[a-z0-9]/.test(key) || event.shiftKey) return key;
  const [, letter, digit] = /^(?:Key(.)|(?:Digit|Numpad)(.))$/.exec(event.code) ?? [];
  return digit ?? (key > "~" && letter ? letter.toLowerCase() : key);
}

// Choose by click: a button, or an answer itself, unless the click selected text or was for something within it.
export function chooseByClick(choose) {
  for (const button of at("choices").children) {
    button.onclick = (event) => {
      choose(button.dataset.choice);
      if (event.detail) at("submit").focus({ preventScroll: true }); // by mouse or finger: Enter saves then
    };
  }
  for (const id of ["left", "right"]) at(id).onclick = (event) => event.target.closest("a, button") || String(getSelection()) || choose(id);
}

// Say who somebody is and what they are asked.
export function introduce({ annotator, title, guidelines, ranked }, rendered) {
  at("title").textContent = `${title}: ${ranked ? "rank the answers" : "which answer is better?"}`;
  document.title = `${title} · ${annotator}`;
  at("guidelines").hidden = !guidelines;
  at("guidelines").lastElementChild.replaceChildren(rendered(guidelines));
}
