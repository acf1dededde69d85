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
const LONGEST = 200_000; // characters; a longer text is shown as it is

function formula(tex, displayMode) {
  try {
    const limits = { maxExpand: 200, maxSize: 20, strict: "ignore", trust: false };
    const mathml = katex.renderToString(tex, { output: "mathml", displayMode, ...limits });
    const plain = mathml.replace(/ style="[^"]*"/g, ""); // the policy allows no style in an attribute
    return displayMode ? `<div class="formula">${plain}</div>` : plain;
  } catch {
    return `<code>${markdown.utils.escapeHtml(tex)}</code>`; // no formula that LaTeX knows
  }
}

const markdown = markdownit({ html: false, linkify: false, breaks: true }).use(mdItPluginTex.tex, {
  delimiters: "all",
  render: formula,
});
const escape = markdown.utils.escapeHtml;
const rules = markdown.renderer.rules;
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
  if (isRaw || text.length > LONGEST) return plain(text);
  try {
    const part = document.createElement("div");
    part.className = "text";
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
