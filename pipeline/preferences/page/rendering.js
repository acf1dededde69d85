// Texts as a person reads them: Markdown with code, tables and formulas, or word for word as the model wrote them.
//
// Texts are not trusted. markdown-it turns HTML in them into text, KaTeX writes MathML only, and DOMPurify keeps the elements
// and attributes listed here. The page's Content-Security-Policy would stop what came through all three.

/* global markdownit, mdItPluginTex, katex, DOMPurify */

const HTML = "p br hr strong em s code pre blockquote ul ol li h3 h4 h5 h6 table thead tbody tr th td a span div";
const MATHML =
  "math semantics annotation mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle mpadded mphantom menclose merror " +
  "msub msup msubsup munder mover munderover mmultiscripts mtable mtr mtd mlabeledtr";
const ATTRIBUTES =
  "href title start class dir display encoding xmlns mathvariant stretchy fence separator accent accentunder form lspace rspace " +
  "minsize maxsize symmetric largeop movablelimits linethickness columnalign columnspacing columnlines rowspacing " +
  "rowlines rowalign displaystyle scriptlevel width height depth voffset notation mathcolor";
const ALLOWED = {
  ALLOWED_TAGS: `${HTML} ${MATHML}`.split(" "),
  ALLOWED_ATTR: ATTRIBUTES.split(" "),
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
// What takes longer to render than a person waits is shown as it is: texts of so many characters or lines, formulas of so
// many characters, and those beyond so many of a text.
const [LONGEST, MOST_LINES] = [50_000, 3000];
const [LONGEST_FORMULA, MOST_FORMULAS] = [3000, 500];
let formulas = 0; // of the text that is being rendered

function formula(tex, displayMode) {
  try {
    formulas += 1;
    if (tex.length > LONGEST_FORMULA || formulas > MOST_FORMULAS) throw new RangeError();
    const limits = { maxExpand: 200, maxSize: 20, strict: "ignore", trust: false };
    const mathml = katex.renderToString(tex, { output: "mathml", displayMode, ...limits });
    const plain = mathml.replace(/ style="[^"]*"/g, ""); // the policy allows no style in an attribute
    return displayMode ? `<div class="formula">${plain}</div>` : plain;
  } catch {
    return `<code>${markdown.utils.escapeHtml(tex)}</code>`; // no formula that LaTeX knows, or too much of it
  }
}

const markdown = markdownit({ html: false, linkify: false, breaks: true }).use(mdItPluginTex.tex, {
  delimiters: "all",
  render: formula,
});
// The library takes `$$` at the start of a line for a block, even when text follows the formula or the block has no end, and
// all that follows for the formula. It does not know `$$…$$` and `\\[…\\]` within a line, which models write.
const dollars = markdown.block.ruler.__rules__.find((rule) => rule.name === "math_block_dollar").fn;
const blockOfDollars = (state, start, end, silent) => {
  const line = (at) => state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]).trimEnd();
  const first = line(start);
  if (!first.startsWith("$$")) return false;
  const inside = first.indexOf("$$", 2);
  if (inside > 0 && inside < first.length - 2) return false;
  state.env.lastDollars ??= Array.from({ length: state.lineMax }, (_, at) => at).findLast((at) => line(at).endsWith("$$")) ?? -1;
  if (inside < 0 && state.env.lastDollars <= start) return false;
  return dollars(state, start, end, silent);
};
markdown.block.ruler.at("math_block_dollar", blockOfDollars, { alt: ["paragraph", "reference", "blockquote", "list"] });
const displayed = (state, silent) => {
  const [open, close] = { $: ["$$", "$$"], "\\": ["\\[", "\\]"] }[state.src[state.pos]] ?? [];
  if (!open || !state.src.startsWith(open, state.pos)) return false;
  const end = state.src.indexOf(close, state.pos + 2);
  const tex = end < 0 ? "" : state.src.slice(state.pos + 2, end);
  if (!tex.trim() || tex.includes("$")) return false;
  if (!silent) state.push("math_displayed", "math", 0).content = tex;
  state.pos = end + 2;
  return true;
};
markdown.inline.ruler.before("escape", "math_displayed", displayed);
const escape = markdown.utils.escapeHtml;
const rules = markdown.renderer.rules;
rules.math_displayed = (tokens, at) => formula(tokens[at].content, true).replace(/^<div(.*)div>$/s, "<span$1span>"); // in a paragraph
// Nothing is loaded from elsewhere: an image is its description and its address.
rules.image = (tokens, at) => `<code>${escape(`[image: ${tokens[at].content}] ${tokens[at].attrGet("src")}`)}</code>`;
// The page has headings of its own above these.
for (const rule of ["heading_open", "heading_close"]) {
  rules[rule] = (tokens, at, options, env, self) => {
    tokens[at].tag = `h${Math.min(Number(tokens[at].tag.slice(1)) + 2, 6)}`;
    return self.renderToken(tokens, at, options);
  };
}
// A column is aligned by a class, since the policy allows no style in an attribute.
for (const rule of ["th_open", "td_open"]) {
  rules[rule] = (tokens, at, options, env, self) => {
    const align = /text-align:(\w+)/.exec(tokens[at].attrGet("style") ?? "")?.[1];
    tokens[at].attrs = [["dir", "auto"], ...(align ? [["class", align]] : [])];
    return self.renderToken(tokens, at, options);
  };
}
// What is wide scrolls in a box of its own.
rules.table_open = () => '<div class="wide"><table>';
rules.table_close = () => "</table></div>";
// A block has the direction of its text; what stands in a list or a quotation, that of the list or the quotation.
for (const rule of ["paragraph_open", "heading_open", "blockquote_open", "bullet_list_open", "ordered_list_open"]) {
  const before = rules[rule] ?? ((tokens, at, options, env, self) => self.renderToken(tokens, at, options));
  rules[rule] = (tokens, at, ...more) => {
    if (tokens[at].level === 0) tokens[at].attrSet("dir", "auto");
    return before(tokens, at, ...more);
  };
}

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A") return;
  node.setAttribute("target", "_blank"); // the pair stays where it is
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

function plain(text) {
  const part = document.createElement("div");
  part.className = "raw";
  part.dir = "auto";
  part.textContent = text;
  return part;
}

// Return a text as an element.
export function rendered(text, isRaw = false) {
  if (isRaw) return plain(text);
  const part = document.createElement("div");
  part.className = "text";
  if (text.length > LONGEST || text.split("\n", MOST_LINES + 1).length > MOST_LINES) {
    part.append(Object.assign(document.createElement("small"), { textContent: "Too long to be rendered: as it was written." }), plain(text));
    return part;
  }
  try {
    formulas = 0;
    part.append(DOMPurify.sanitize(markdown.render(text), ALLOWED));
    return part;
  } catch {
    return plain(text); // nested too deeply, say
  }
}

// Return the texts of turns as one.
export const textOf = (turns) => turns.map(({ content }) => content).join("\n\n");

// Show turns in an element, each with its role where several people speak.
export function showTurns(where, turns, { withRoles = false, isRaw = false } = {}) {
  where.replaceChildren(
    ...turns.map(({ role, content }) => {
      const part = document.createElement("div");
      part.className = "turn";
      if (withRoles) part.append(Object.assign(document.createElement("b"), { textContent: role }));
      part.append(rendered(content, isRaw));
      return part;
    }),
  );
  // The keyboard reaches a box that scrolls.
  for (const box of where.querySelectorAll("pre, .wide, .formula")) if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
