// The page of a lead: how far and how fast it goes, who labels with care, and the pairs that need a decision.
// Prompts and answers are rendered as on the page of pairs; everything else that people wrote is text, never markup.

import { keyOf, KEYS, STRENGTHS } from "./choices.js";
import { inWords, paintRanks, ranksSoFar, showAnswers, takesRank, tiersOf, writeAnswers } from "./ranking.js";
import { showTurns } from "./rendering.js";
import { once, Refused, token, whyNot } from "./requests.js";

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const REFRESH_S = 15;
const EVEN = { tie: "No difference", "both good": "Both good", "both bad": "Both bad" };
const LISTS = {
  disagreements: ["Disagreements", "People gave different labels. Your verdict decides, and counts as no person's label."],
  flagged: ["Flagged", "Somebody flagged these pairs; they make no row unless you give a verdict."],
  skipped: ["Skipped", "Somebody skipped these pairs, and they still need labels."],
  stuck: ["Stuck", "The people here cannot complete these pairs: each person labels a pair once. Invite somebody, decide, or drop them."],
  open: ["Open", "These pairs still need labels."],
  adjudicated: ["Decided", "Pairs that a lead decided."],
};
// Those of live dialogues.
const LIVE_LISTS = {
  flagged: ["Flagged", "Somebody flagged these answers: they are in no row, and both models answered again."],
  skipped: ["Skipped", "Somebody skipped these answers: the dialogue went on with one of them, drawn by chance."],
  chosen: ["Chosen", "What people chose, the newest first. A choice that you drop makes no row, and another one takes its place."],
  waiting: ["Waiting", "These answers wait for their person's choice."],
};
const OF_SEVERAL = ["with_the_rest", "gold", "consistency"]; // figures that live dialogues do not have
// Key, heading, what it says. A figure below its bar is marked, never acted upon.
const COLUMNS = [
  ["labels", "Labels", "Labels of pairs of the batch; below it, skipped and flagged pairs."],
  ["per_hour", "Per hour", "Labels in an hour of work; pauses of more than ten minutes are left out. Below it, those of the last hour."],
  ["median_seconds", "Median", "Half of the labels took less time than this."],
  ["fast", "Fast", "Share of the labels that took less time than both answers take at 60 characters a second, which is scanning, not reading. They count like all others."],
  ["chose_left", "Left", "Share of the preferences for the answer on the left, with its interval. The sides are random, so it is near 50 % for who reads the answers."],
  ["with_the_rest", "With the rest", "Share of the labels that the majority of the others gave too."],
  ["gold", "Gold", "Share of the hidden pairs with a known answer on which the person gave it."],
  ["consistency", "Repeats", "Share of the pairs shown again, with the sides exchanged, on which the person said the same. Below it, how often the same side was chosen twice: left, right."],
];
const RETRY_S = [1, 2, 4, 8, 15];
let lead = "";
let isLive = false;
let lists = LISTS;
let columns = COLUMNS;
let overview = null;
let list = "disagreements";
let items = []; // of the list, those around the one that is shown
let offset = 0;
let total = 0;
let place = 0; // of the shown pair in the list
let choice = null;
let strength = 1;
let isRanked = false; // whether the items are groups to rank
let noun = "pair";
let ranks = {};
let opening = 0; // number of the last request for pairs
let timer = 0;

const ask = (name, body) => once(`lead/${name}`, body);

function say(text, isBad = false) {
  at("message").textContent = text;
  at("message").classList.toggle("bad", isBad);
}

function make(tag, properties = {}, ...inside) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...inside);
  return element;
}

const percent = (share) => `${Math.round(share * 100)} %`;
const interval = (one) => `${percent(one.low)} – ${percent(one.high)}`;
const count = (n) => n.toLocaleString();
const counted = (n, what = noun) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;

function figure(name, value, note) {
  return make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }, make("small", { textContent: note })));
}

function showFigures() {
  const { progress, agreement, alpha, alpha_ordinal: ordinal, kendall_tau_b: tau, people, leads } = overview;
  const { labels } = overview.hours;
  const sums = Array.from({ length: 24 }, (_, hour) => Object.values(labels).reduce((sum, one) => sum + one[hour], 0));
  const active = people.filter((one) => one.access === "active").length;
  const done = progress.wanted ? percent(progress.done / progress.wanted) : "–";
  at("progress").textContent = `${count(progress.done)} of ${count(progress.wanted)} labels${progress.closed ? ", closed" : ""}`;
  at("bar").max = Math.max(progress.wanted, 1);
  at("bar").value = progress.done;
  at("figures").replaceChildren(
    figure("Labels", `${count(progress.done)} (${done})`, `of ${count(progress.wanted)}, ${isLive ? `in ${counted(progress.dialogues, "dialogue")}` : `for ${counted(progress.pairs)}`}`),
    figure("In the last two hours", count(sums[22] + sums[23]), `${count(sums.reduce((a, b) => a + b))} in 24 hours`),
    ...(isLive ? alone() : [figure("Equal labels", agreement ? percent(agreement.value) : "–", agreement ? `${interval(agreement)}, on ${counted(agreement.n)}` : `no ${noun} has two labels`),
    ...(isRanked ? [figure("Kendall's tau-b", tau ? tau.value.toFixed(2) : "–", tau ? `${tau.low.toFixed(2)} – ${tau.high.toFixed(2)}, on ${counted(tau.n)}` : "no group has two rankings")] : []),
    figure("Krippendorff's alpha", alpha === null ? "–" : alpha.toFixed(2), ordinal === null ? "1 is agreement, 0 is chance" : `with strength ${ordinal.toFixed(2)}; 1 is agreement, 0 chance`)]),
    figure("People", String(people.length), `${active} active, ${leads.length} ${leads.length === 1 ? "lead" : "leads"}`),
    isLive ? figure("Dropped by leads", count(overview.lists.dropped), "make no row, and need others in their place") : figure("Decided by leads", count(overview.lists.adjudicated), `${count(overview.lists.dropped)} dropped`),
  );
  showHours(sums);
  at("close").textContent = progress.closed ? "Open the batch again" : "Close the batch";
}

// What live dialogues have in place of agreement.
function alone() {
  const { flagged, skipped, waiting } = overview.lists;
  return [
    figure("Skipped and flagged", `${count(skipped)}, ${count(flagged)}`, `${count(waiting)} wait for a choice`),
    figure("Agreement", "–", "nobody else sees a person's dialogue"),
  ];
}

function showHours(sums) {
  const most = Math.max(...sums, 1);
  const bars = sums.map((sum, hour) => {
    const bar = document.createElementNS(SVG, "rect");
    const height = (sum / most) * 80;
    Object.entries({ x: hour * 20 + 2, y: 86 - height, width: 16, height, rx: 2 }).forEach(([key, value]) => bar.setAttribute(key, value));
    const start = new Date((overview.hours.start + hour * 3600) * 1000);
    const title = document.createElementNS(SVG, "title");
    title.textContent = `${start.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}: ${counted(sum, "label")}`;
    bar.append(title);
    return bar;
  });
  const line = document.createElementNS(SVG, "line");
  Object.entries({ x1: 0, x2: 480, y1: 86.5, y2: 86.5 }).forEach(([key, value]) => line.setAttribute(key, value));
  at("hours").replaceChildren(...bars, line);
  at("hours-said").textContent = `Labels in each of the last 24 hours${isLive || isRanked ? "" : ", hidden pairs too"}: ${count(sums[23])} in the current hour, ${count(Math.max(...sums))} at most.`;
}

// Cells keep their elements while numbers change, so that the focus stays where it is.
function cell(row, key, label) {
  let one = row.querySelector(`[data-key="${key}"]`);
  if (!one) {
    one = make("td", {}, make("span"), make("small"));
    one.dataset.key = key;
    one.dataset.label = label;
    row.append(one);
  }
  return one;
}

function fill(one, text, note = "", isBad = false) {
  one.querySelector("span").textContent = text;
  one.querySelector("small").textContent = note;
  one.classList.toggle("warn", isBad);
}

function cells(person) {
  const hours = overview.hours.labels[person.name];
  const share = (one, isBad) => (one ? [percent(one.value), interval(one), isBad] : ["–"]);
  const twice = person.same_side_twice;
  const left = person.chose_left;
  return {
    labels: [count(person.labels), `${person.skipped} skipped, ${person.flagged} flagged`],
    per_hour: [person.per_hour === null ? "–" : count(Math.round(person.per_hour)), hours ? `${hours[23]} this hour` : ""],
    median_seconds: [person.median_seconds === null ? "–" : `${person.median_seconds.toFixed(1)} s`],
    fast: person.fast ? [percent(person.fast.value), `of ${count(person.fast.n)}`, person.fast.low > 0.1] : ["–"],
    chose_left: share(left, left && (left.low > 0.5 || left.high < 0.5)),
    with_the_rest: share(person.with_the_rest),
    gold: share(person.gold, person.gold && person.gold.high < 0.8),
    consistency: person.consistency ? [percent(person.consistency.value), `${interval(person.consistency)}; ${twice.left}, ${twice.right}`, person.consistency.high < 0.8] : ["–"],
  };
}

function actions(person) {
  const again = { textContent: "New link", onclick: () => invite(person.name, true) };
  if (["revoked", "imported"].includes(person.access)) return [again];
  const isPaused = person.access === "paused";
  return [
    { textContent: isPaused ? "Resume" : "Pause", onclick: () => act(() => ask("access", { name: person.name, access: isPaused ? "active" : "paused" }), `${person.name} is ${isPaused ? "active again" : "paused"}.`) },
    again,
    { textContent: "Revoke", onclick: () => sure(`The link of ${person.name} ends for good. Their labels stay.`, "Revoke", () => act(() => ask("access", { name: person.name, access: "revoked" }), `The link of ${person.name} does not work any more.`)) },
  ];
}

function showPeople() {
  const body = at("people").tBodies[0];
  const rows = new Map([...body.rows].map((row) => [row.personName, row]));
  for (const person of overview.people) {
    let row = rows.get(person.name);
    rows.delete(person.name);
    if (!row) {
      row = make("tr", { personName: person.name }, make("th", { scope: "row" }, make("span"), make("small")));
      body.append(row);
    }
    row.cells[0].querySelector("span").textContent = person.name;
    row.cells[0].querySelector("small").textContent = person.access === "active" ? "" : person.access;
    const values = cells(person);
    for (const [key, label] of columns) fill(cell(row, key, label), ...values[key]);
    const last = row.querySelector(".actions") ?? row.appendChild(make("td", { className: "actions" }));
    if (row.access !== person.access) {
      row.access = person.access;
      const hadFocus = last.contains(document.activeElement);
      last.replaceChildren(...actions(person).map((one) => {
        const button = make("button", { type: "button", ...one });
        button.setAttribute("aria-label", `${one.textContent}: ${person.name}`);
        return button;
      }));
      if (hadFocus) last.firstElementChild.focus();
    }
  }
  for (const row of rows.values()) row.remove();
}

function showLists() {
  for (const button of at("lists").children) {
    const name = button.dataset.list;
    button.textContent = `${lists[name][0]} ${count(overview.lists[name])}`;
    button.setAttribute("aria-selected", String(name === list));
    button.tabIndex = name === list ? 0 : -1;
  }
}

async function refresh() {
  clearTimeout(timer);
  let pause = REFRESH_S;
  try {
    overview = await ask("overview");
    if (!overview.is_fresh) pause = 1;
    if (at("message").dataset.offline) say("");
    delete at("message").dataset.offline;
    showFigures();
    showPeople();
    showLists();
  } catch (error) {
    if (error instanceof Refused) throw error;
    say(`${whyNot(error)}. The figures are those of a moment ago.`, true);
    at("message").dataset.offline = "yes";
  }
  timer = setTimeout(() => (document.hidden ? undefined : refresh().catch((error) => say(error.message, true))), pause * 1000);
}

document.addEventListener("visibilitychange", () => document.hidden || !overview || refresh().catch((error) => say(error.message, true)));

// Do something on the server, say that it is done, and show what follows from it.
async function act(does, done) {
  for (let tries = 0; ; tries += 1) {
    try {
      await does();
      say(done);
      await refresh();
      return true;
    } catch (error) {
      if (error instanceof Refused || tries >= RETRY_S.length) {
        const unknown = `${whyNot(error)}. It may not have been done: look before you try again.`;
        say(error instanceof Refused ? error.message : unknown, true);
        return false;
      }
      say(`${whyNot(error)}. It is tried again in ${RETRY_S[tries]} s.`, true);
      await new Promise((resume) => setTimeout(resume, RETRY_S[tries] * 1000));
    }
  }
}

async function invite(name, replaces) {
  const go = async () => {
    let told;
    if (!(await act(async () => { told = await ask("invite", { name, replaces }); }, `${name} has a link.`))) return;
    const address = new URL(`./#${told.token}`, location.href.split("#")[0]);
    at("link-title").textContent = `The link of ${told.name}`;
    at("address").value = address.href;
    at("link").showModal();
    at("address").select();
    at("name").value = "";
  };
  if (replaces) sure(`A new link for ${name} ends the one there is.`, "Make a new link", go);
  else await go();
}

at("link").onclose = () => { if (!at("link").open) at("address").value = ""; };
at("copy").onclick = async () => {
  at("address").select();
  try {
    await navigator.clipboard.writeText(at("address").value);
    at("copy").textContent = "Copied";
    setTimeout(() => { at("copy").textContent = "Copy"; }, 2000);
  } catch {
    at("copy").textContent = "Press Ctrl+C";
  }
};
at("invite").onsubmit = (event) => {
  event.preventDefault();
  const name = at("name").value.trim();
  if (name) invite(name, false);
};

function sure(text, verb, does) {
  at("sure-text").textContent = text;
  at("sure-ok").textContent = verb;
  at("sure").returnValue = "";
  // Told by the form: the dialog's own event comes later, when another key may have opened it again.
  at("sure").querySelector("form").onsubmit = (event) => event.submitter?.value === "ok" && does();
  at("sure").showModal();
}

at("close").onclick = () => {
  const { closed, done } = { ...overview.progress };
  if (closed) act(() => ask("close", { closed: false }), "The batch is open again.");
  else sure(`The batch ends with ${counted(done, "label")}. It can be opened again.`, "Close the batch", () => act(() => ask("close", { closed: true }), "The batch is closed."));
};

// The pairs of a list, one at a time.
async function open(name, where = 0, takesFocus = false) {
  const turn = (opening += 1);
  list = name;
  if (overview) showLists();
  try {
    const first = Math.floor(where / 10) * 10;
    const told = await ask("items", { name, offset: first });
    if (turn !== opening) return undefined; // another list was opened meanwhile
    offset = first;
    ({ total, items } = told);
    place = Math.min(where, Math.max(total - 1, 0));
    if (total && !items[place - offset]) return open(name, place, takesFocus); // the list has become shorter
    showItem();
    if (takesFocus) at("panel").focus({ preventScroll: true });
  } catch (error) {
    say(error instanceof Refused ? error.message : `${whyNot(error)}.`, true);
  }
  return undefined;
}

const words = ({ choice: side, strength: how, ranking }) => ranking ? inWords(ranking) : (EVEN[side] ?? `${side === "left" ? "A" : "B"} is ${STRENGTHS[how]}`);

// What a label says; of an imported one it may not be known how long it took.
function said(one) {
  const seconds = one.seconds === null ? "" : `, in ${one.seconds.toFixed(1)}\u00a0s`;
  return `${words(one)}${seconds}${one.comment ? `: “${one.comment}”` : ""}${one.edit ? `; edited to “${one.edit}”` : ""}`;
}

function showItem() {
  const item = items[place - offset];
  at("said").textContent = total ? lists[list][1] : "There is none.";
  at("item").hidden = !item;
  if (!item) return;
  at("place").textContent = `${count(place + 1)} of ${count(total)}${item.missing ? `; lacks ${item.missing} ${item.missing === 1 ? "label" : "labels"}` : ""}`;
  showTurns(at("prompt"), item.prompt, { withRoles: true });
  if (isRanked) showGroup(item);
  else {
    showTurns(at("left").lastElementChild, item.left);
    showTurns(at("right").lastElementChild, item.right);
  }
  const line = (name, text) => make("li", {}, make("b", { textContent: name }), ` ${text}`);
  at("labels").replaceChildren(
    ...item.labels.map((one) => line(one.name, said(one))),
    ...item.skips.map((one) => line(one.name, `skipped it${one.reason ? `: ${one.reason}` : ""}`)),
    ...item.flags.map((one) => line(one.name, `flagged it${one.reason ? `: ${one.reason}` : ""}`)),
    ...(item.final ? [line(item.final.name, `decided: ${words(item.final)}${item.final.reason ? ` (${item.final.reason})` : ""}`)] : []),
  );
  at("labels").hidden = !at("labels").children.length;
  at("withdraw").hidden = !item.final;
  const canDrop = !isLive || list === "chosen";
  for (const part of [at("drop"), at("reason"), at("decide").querySelector("[for=reason]")]) part.hidden = !canDrop;
  at("reason").value = item.final?.reason ?? "";
  at("previous").disabled = place === 0;
  at("next").disabled = place >= total - 1;
  if (isRanked) rank();
  else choose(null);
}

function showGroup({ answers }) {
  ranks = {};
  showAnswers(at("group"), answers, ranks, rank);
  writeAnswers(at("group"), answers, false);
}

function rank() {
  const { answers } = items[place - offset];
  const tiers = tiersOf(ranks, answers.length);
  paintRanks(at("group"), ranks);
  at("strength").textContent = tiers ? inWords(tiers) : ranksSoFar(ranks, answers.length);
  at("save").disabled = tiers === null;
}

function choose(side) {
  const isPreference = side === "left" || side === "right";
  strength = isPreference && side === choice ? (strength % 3) + 1 : 1;
  choice = side;
  for (const button of at("choices").children) button.setAttribute("aria-checked", String(button.dataset.choice === side));
  for (const id of ["left", "right"]) at(id).classList.toggle("chosen", id === side);
  at("strength").textContent = isPreference ? `${side === "left" ? "A" : "B"} is ${STRENGTHS[strength]} (press again to change)` : "";
  at("save").disabled = side === null;
}

// A pair that is decided or dropped leaves its list; the next one takes its place.
async function decide(does, done) {
  const before = list;
  if ((await act(does, done)) && list === before) await open(list, place, true);
}

const shown = () => items[place - offset]?.item;
at("decide").onsubmit = (event) => {
  event.preventDefault();
  if (at("save").disabled || !shown()) return;
  const told = isRanked ? { choice: null, ranking: tiersOf(ranks, items[place - offset].answers.length) } : { choice, strength };
  const given = { item: shown(), ...told, reason: at("reason").value };
  decide(() => ask("adjudicate", given), "The verdict is saved.");
};
at("withdraw").onclick = () => {
  const item = shown();
  decide(() => ask("adjudicate", { item, choice: null }), "The verdict is taken back.");
};
at("drop").onclick = () => {
  const given = { item: shown(), reason: at("reason").value };
  const what = isLive ? "choice" : noun;
  const follows = isLive ? "It makes no row, and another one takes its place." : "It leaves the batch, needs no labels and makes no row.";
  sure(`Drop this ${what}? ${follows} This cannot be undone here.`, `Drop the ${what}`, () => decide(() => ask("drop", given), `The ${what} is dropped.`));
};
const step = (by) => total && place + by >= 0 && place + by < total && (items[place + by - offset] ? ((place += by), showItem()) : open(list, place + by));
at("previous").onclick = () => step(-1);
at("next").onclick = () => step(1);
for (const button of at("choices").children) button.onclick = () => choose(button.dataset.choice);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("item").hidden || document.querySelector("dialog[open]")) return;
  const isRank = isRanked && at("panel").contains(event.target) && event.target.type !== "text";
  if (isRank && takesRank(at("group"), event, ranks)) {
    event.preventDefault();
    if (document.activeElement === document.body) at("panel").focus({ preventScroll: true }); // Enter saves
    return;
  }
  if (event.target.closest("input, table, [role=tablist]")) return;
  const key = keyOf(event);
  const does = { j: () => step(1), k: () => step(-1) }[key] ?? (at("panel").contains(event.target) && !isLive && !isRanked && KEYS[key] && (() => choose(KEYS[key])));
  if (does) {
    event.preventDefault();
    if (!event.repeat) does();
  } else if (key === "enter" && event.target === at("panel") && !at("save").disabled && !event.repeat) {
    event.preventDefault();
    at("decide").requestSubmit();
  }
});

// Make what is another in live dialogues: lists, columns, and whether a lead gives verdicts. It may be done again.
function furnish() {
  [lists, columns] = isLive ? [LIVE_LISTS, COLUMNS.filter(([key]) => !OF_SEVERAL.includes(key))] : [LISTS, COLUMNS];
  at("lists").replaceChildren(...Object.keys(lists).map((name) => {
    const button = make("button", { type: "button", onclick: () => open(name, 0, true) });
    button.setAttribute("role", "tab");
    button.setAttribute("aria-controls", "panel");
    button.dataset.list = name;
    return button;
  }));
  at("people").tHead.rows[0].replaceChildren(
    make("th", { scope: "col", textContent: "Person" }),
    ...columns.map(([, label]) => make("th", { scope: "col", textContent: label })),
    make("th", { scope: "col", textContent: "Link" }),
  );
  at("legend").replaceChildren(...columns.map(([, label, text]) => make("div", {}, make("dt", { textContent: label }), make("dd", { textContent: text }))));
  at("alone").hidden = at("no-verdict").hidden = !isLive;
  if (isLive) at("pairs-title").textContent = "Answers to look at";
  if (isLive) at("drop").textContent = "Drop choice";
  for (const part of [at("decide").querySelector("fieldset"), at("save")]) part.hidden = isLive;
}

at("lists").onkeydown = (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const tabs = [...at("lists").children];
  const to = tabs[(tabs.indexOf(event.target) + by + tabs.length) % tabs.length];
  to.focus();
  open(to.dataset.list);
};
addEventListener("hashchange", () => location.reload());

// What the page says of pairs, it says of groups; its columns, of each two answers of a ranking. Called before `furnish`.
function speakOfGroups() {
  noun = "group";
  at("pairs-title").textContent = "Groups to look at";
  at("drop").textContent = "Drop group";
  for (const list of Object.values(LISTS)) list[1] = list[1].replaceAll("pair", "group").replace("gave different labels", "ranked differently");
  const first = "Share of the preferences for the answer shown first, of each two answers of a ranking. The order is random, so it is near 50 % for who reads the answers.";
  const told = { chose_left: ["First", first], gold: ["Gold", "Applies to pairs only."], consistency: ["Repeats", "Applies to pairs only."] };
  for (const column of COLUMNS) column.splice(1, 2, ...(told[column[0]] ?? [column[1], column[2].replaceAll("pair", "group")]));
}

async function begin() {
  if (!token) {
    say("Open the link you were given: it ends in a token of your own.", true);
    return;
  }
  try {
    const { lead: name, title, live = false, ranked = false } = await ask("hello");
    isRanked = ranked;
    for (const id of ["pair", "choices"]) at(id).hidden = isRanked;
    at("group").hidden = !isRanked;
    if (isRanked) speakOfGroups();
    lead = name;
    isLive = live;
    furnish();
    at("title").textContent = `${title}: how it goes`;
    document.title = `${title} · ${lead}`;
    await refresh();
    if (!overview) throw new Error("no figures yet");
    say("");
    at("work").hidden = false;
    await open(Object.keys(lists).find((one) => overview.lists[one]) ?? Object.keys(lists)[0]);
  } catch (error) {
    if (error instanceof Refused) say(error.message, true);
    else {
      say(`${whyNot(error)}. It is tried again in ${RETRY_S.at(-1)} s.`, true);
      setTimeout(begin, RETRY_S.at(-1) * 1000);
    }
  }
}

begin();
