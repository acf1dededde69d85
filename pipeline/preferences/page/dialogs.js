// What is asked in a box of its own: why a pair is skipped or flagged, a comment, an edited answer.
//
// What was typed stays in `typed`, which the caller keeps, until OK: a box that was closed shows it again.

import { keyOf } from "./choices.js";

const at = (id) => document.getElementById(id);

// Else keys would still go into the field that is gone. The event comes later, when another key may have opened it again.
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.onclose = () => !dialog.open && dialog.contains(document.activeElement) && document.activeElement.blur();
}

// OK and Cancel are told by the form: the dialog's own event comes later, when another key may have opened it again.
function whenOk(dialog, act) {
  dialog.querySelector("form").onsubmit = (event) => {
    if (dialog.open && event.submitter?.value === "ok") act();
  };
}

// Ask for one of a few reasons and for own words.
//
//   heading: what is asked
//   reasons: what can be chosen, by number keys
//   isNeeded: whether one of them has to be chosen
//   typed: {reason, words}, what was said before; changed as somebody types
//   act: called with {reason, words} on OK
export function askWhy({ heading, reasons, isNeeded, typed, keep, act }) {
  const dialog = at("why");
  at("why-heading").textContent = heading;
  at("reasons").replaceChildren(
    ...reasons.map((reason, place) => {
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "reason", value: reason });
      input.checked = typed.reason === reason;
      input.required = isNeeded;
      input.onchange = () => {
        typed.reason = reason;
        keep();
      };
      const label = document.createElement("label");
      const key = Object.assign(document.createElement("kbd"), { textContent: place + 1 });
      label.append(input, key, " ", reason);
      return label;
    }),
  );
  const radios = [...at("reasons").querySelectorAll("input")];
  const words = at("words");
  words.value = typed.words ?? "";
  words.oninput = () => {
    typed.words = words.value;
    keep();
  };
  at("reasons").onkeydown = (event) => {
    const radio = radios[Number(keyOf(event)) - 1];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (radio) radio.click();
    else if (event.key.length === 1 && event.key !== " ") words.focus(); // a letter starts the own words
  };
  whenOk(dialog, () => act({ reason: typed.reason ?? "", words: words.value.trim() }));
  dialog.showModal();
  (radios.find((radio) => radio.checked) ?? radios[0]).focus();
}

// Ask for a text.
//
//   heading, hint: what is asked, and what becomes of it
//   name: name of the text in `typed`
//   text: what stands there at first
//   most: number of bytes at most
//   keep: called when `typed` has changed
//   act: called with the text on OK
export function askText({ heading, hint, name, text, most, typed, keep, act }) {
  const dialog = at("write");
  const field = at("text");
  at("write-heading").textContent = heading;
  at("hint").textContent = hint;
  field.value = typed[name] ?? text;
  field.setCustomValidity("");
  field.oninput = () => {
    const bytes = new TextEncoder().encode(JSON.stringify(field.value)).length - 2; // as they are sent
    field.setCustomValidity(bytes > most ? `This is too long: ${bytes} bytes, at most ${most}.` : "");
    typed[name] = field.value;
    keep();
  };
  field.onkeydown = (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    dialog.querySelector("form").requestSubmit(dialog.querySelector("[value=ok]"));
  };
  whenOk(dialog, () => {
    delete typed[name];
    act(field.value);
  });
  dialog.showModal();
  field.focus();
}
