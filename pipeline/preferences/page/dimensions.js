// The dimensions of a comparison: each answer is rated, or one is better, with a reason in words where it is asked for.

import { keyOf } from "./choices.js";

const RESULTS = [["left", "A"], ["right", "B"], ["tie", "no difference"]];

// A group of radio buttons; a number key chooses the button and goes on to the next group.
function group(title, name, options, chosen, choose) {
  const part = document.createElement("div");
  part.className = "options";
  part.setAttribute("role", "radiogroup");
  part.setAttribute("aria-label", title);
  for (const [value, text] of options) {
    const input = Object.assign(document.createElement("input"), { type: "radio", name, checked: value === chosen });
    input.onchange = () => choose(value);
    const label = document.createElement("label");
    label.append(input, text);
    part.append(label);
  }
  return part;
}

function rationale(name, text, change) {
  const field = document.createElement("input");
  Object.assign(field, { type: "text", value: text ?? "", maxLength: 1000, placeholder: "Why?", dir: "auto" });
  field.setAttribute("aria-label", `${name}: why?`);
  field.oninput = () => change(field.value);
  return field;
}

// Show dimensions in an element.
//
//   ratings: what was said, by name of the dimension; changed as somebody chooses
//   changed: called after each change
export function showDimensions(where, dimensions, ratings, changed) {
  where.hidden = !dimensions.length;
  where.lastElementChild.replaceChildren(
    ...dimensions.map(({ name, rated, rationale: asks }, place) => {
      const rating = () => (ratings[name] ??= {});
      const set = (key) => (value) => {
        rating()[key] = value;
        changed();
      };
      const part = document.createElement("fieldset");
      part.append(Object.assign(document.createElement("legend"), { textContent: name }));
      if (rated) {
        const scale = Array.from({ length: rated }, (_, step) => [step + 1, String(step + 1)]);
        for (const [side, answer] of RESULTS.slice(0, 2)) {
          const row = group(`${name} of ${answer}`, `rating-${place}-${side}`, scale, ratings[name]?.[side], set(side));
          row.prepend(Object.assign(document.createElement("b"), { textContent: answer }));
          part.append(row);
        }
      } else {
        part.append(group(name, `rating-${place}`, RESULTS, ratings[name]?.better, set("better")));
      }
      if (asks) part.append(rationale(name, ratings[name]?.rationale, set("rationale")));
      return part;
    }),
  );
}

const stops = (where) => [...where.querySelectorAll(".options, input[type=text]")];
const focus = (stop) => (stop.querySelector?.("input:checked") ?? stop.querySelector?.("input") ?? stop).focus();

// Go to the first dimension.
export function enterDimensions(where) {
  const [first] = stops(where);
  if (first) focus(first);
}

// Return whether a key that was pressed in a dimension is its own.
export function takesKey(where, event) {
  const stop = event.target.closest?.(".options, input[type=text]");
  if (!stop || !where.contains(stop)) return false;
  const next = stops(where)[stops(where).indexOf(stop) + 1];
  const goOn = () => (next ? focus(next) : event.target.blur());
  if (event.key === "Escape") event.target.blur();
  else if (stop.matches("input")) {
    if (event.key === "Enter") goOn();
  } else if (/^[1-9]$/.test(keyOf(event))) {
    stop.querySelectorAll("input")[Number(keyOf(event)) - 1]?.click();
    goOn();
  } else return event.key.startsWith("Arrow") || event.key === " ";
  if (event.key !== "Escape" && !stop.matches("input")) event.preventDefault();
  if (event.key === "Enter") event.preventDefault();
  return true;
}
