// Requests to the server. One that gets no answer is sent again until it has one: `request` in its body tells the server
// that it is the same one, so that a label whose reply was lost is not counted twice.

export const token = location.hash.slice(1);
const RETRY_S = [1, 2, 4, 8, 15, 30];
let wake = () => {}; // ends the pause before the next try

export class Refused extends Error {
  constructor(told, status) {
    super(told);
    this.status = status;
  }
}

class Unable extends Error {} // the server is there, and cannot do it just now

export const requestId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export async function once(name, body = {}) {
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token}` };
  const reply = await fetch(`api/${name}`, { method: "POST", headers, body: JSON.stringify(body) });
  if (reply.status < 500 && reply.status !== 429) {
    const told = await reply.json();
    if (!reply.ok) throw new Refused(told.error, reply.status);
    return told;
  }
  const { error } = await reply.json().catch(() => ({})); // a proxy before the server answers in HTML
  throw new Unable(error ?? `the server answered ${reply.status}`);
}

// Return what went wrong, in words, when a request was not refused.
export function whyNot(error) {
  if (!navigator.onLine) return "You are offline";
  if (!(error instanceof Unable)) return "The server cannot be reached";
  return error.message.charAt(0).toUpperCase() + error.message.slice(1);
}

// Return the function that asks; `say` tells the person why an answer is late.
export const asking = (say) => async function ask(name, body = {}) {
  for (let tries = 0; ; tries += 1) {
    try {
      const told = await once(name, body);
      if (tries) say("");
      return told;
    } catch (error) {
      if (error instanceof Refused) throw error;
      const pause = RETRY_S[Math.min(tries, RETRY_S.length - 1)];
      say(`${whyNot(error)}. Nothing you said is lost: it is sent again in ${pause} s.`, true);
      await new Promise((resume) => {
        wake = resume;
        setTimeout(resume, pause * 1000);
      });
    }
  }
};

addEventListener("online", () => wake());
