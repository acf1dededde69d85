// Requests to the server. One that gets no answer is sent again until it has one: `request` in its body tells the server
// that it is the same one, so that a label whose reply was lost is not counted twice.

export const token = location.hash.slice(1);
const RETRY_S = [1, 2, 4, 8, 15, 30];
let wake = () => {}; // ends the pause before the next try

export class Refused extends Error {}

export const requestId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

async function once(name, body) {
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token}` };
  const reply = await fetch(`api/${name}`, { method: "POST", headers, body: JSON.stringify(body) });
  if (reply.status >= 500 || reply.status === 429) throw new Error(`the server answered ${reply.status}`);
  const told = await reply.json();
  if (!reply.ok) throw new Refused(told.error);
  return told;
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
      const why = navigator.onLine ? "The server cannot be reached" : "You are offline";
      say(`${why}. Nothing you said is lost: it is sent again in ${pause} s.`, true);
      await new Promise((resume) => {
        wake = resume;
        setTimeout(resume, pause * 1000);
      });
    }
  }
};

addEventListener("online", () => wake());
