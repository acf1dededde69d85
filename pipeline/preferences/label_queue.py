"""The label queue: assigns items to annotators and records their answers, safely under concurrent requests.

Owns the rules of what an annotator may do. Knows the ledger, not the web; its methods return plain data. All methods
may be called from several threads; other processes may write to the same ledger.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, cast

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.assignment import Assignment, Stuck
from pipeline.preferences.blinding import blinded_id, new_salt, shown_order
from pipeline.preferences.details import Choice, details_body
from pipeline.preferences.dimensions import Dimension, check_ratings
from pipeline.preferences.events import STRONGEST, Access, EventBody, FlagKind, LedgerEvent, NewEvent, Role, Verdict
from pipeline.preferences.guidelines import guidelines_version
from pipeline.preferences.items import Item
from pipeline.preferences.labels import (
    AHEAD,
    LEASE_S,
    VERDICTS,
    Batch,
    Person,
    State,
    is_held,
    says_the_same,
)
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.people import NOUNS, Caller, by_lead, check_name, hashed_token, plain_name
from pipeline.preferences.probes import is_swapped
from pipeline.preferences.rankings import Ranked, ranking_body
from pipeline.preferences.shown import Progress, Shown, shown

SIDES = ("left", "right", "tie", "both good", "both bad")
"""Choices of an annotator; `left` and `right` are sides of the screen."""

LONGEST_REASON, LONGEST_REQUEST = 4000, 64
"""Most characters of a reason, and of a request's id."""


class LabelQueue:
    """The queue of a batch of items that annotators label.

    Args:
        batch: items, and the number of labels each needs.
        ledger: the log of events that records labels, leases and annotators.
        guidelines: text that annotators are shown by this app; each label given in it records its version. None for a
            queue that shows nothing.
        dimensions: what annotators may judge besides.
        hands_out: whether pairs are handed out; else leases, which are every other event, are not read.
    """

    def __init__(
        self,
        batch: Batch,
        ledger: Ledger,
        guidelines: str | None = None,
        dimensions: Sequence[Dimension] = (),
        *,
        hands_out: bool = True,
    ) -> None:
        self.batch, self.ledger, self.dimensions = batch, ledger, dimensions
        self._state = State().take(ledger.events() if hands_out else ledger.said())
        self._assigned: Assignment | None = None
        self._turn = threading.Lock()
        self._version = guidelines_version(guidelines or "")
        self.record(lambda state: None if state.salt else ("batch", {"salt": new_salt()}))
        if guidelines is not None:
            told = EventBody(guidelines=self._version, text=guidelines)
            self.record(lambda state: None if state.guidelines == self._version else ("guidelines", told))

    def refresh(self) -> None:
        """Read the events that were appended to the ledger since the last call."""
        with self._turn:
            self._read()

    def _read(self) -> None:
        self._state.take(self.ledger.events(self._state.number))

    @property
    def _assignment(self) -> Assignment:
        """What the items need as of the last event; made when it is asked for, as an import never does."""
        if self._assigned is None:
            self._assigned = Assignment(self.batch, self._state)
        self._assigned.update()
        return self._assigned

    def people(self) -> dict[str, Person]:
        """Return everybody who has a link, by name."""
        with self._turn:
            self._read()
            return dict(self._state.people)

    def active(self) -> int:
        """Return the number of annotators who may label."""
        with self._turn:
            self._read()
            return len(self._state.active())

    def stuck(self) -> list[Stuck]:
        """Return the items that the active annotators cannot complete."""
        with self._turn:
            self._read()
            return self._assignment.stuck()

    @property
    def salt(self) -> str:
        """Secret of the batch."""
        return self._state.salt

    def last_event(self) -> int:
        """Return the number of the last event of the ledger."""
        with self._turn:
            self._read()
            return self._state.number

    def invite(self, name: str, role: Role = "annotator", *, replaces: bool = True, by: str = "") -> str:
        """Issue a token to a person; the ledger stores only its hash.

        Args:
            name: name of the person.
            role: what the person is there for.
            replaces: whether the token takes the place of one that the person has.
            by: the lead who invites.

        Raises:
            PipelineError: no name, a name of the other role, or of somebody who has a token that is not to be replaced.
        """
        token = secrets.token_urlsafe(16)
        name = name if name in self.people() else plain_name(name)  # as an older version took it

        def decide(state: State) -> NewEvent:
            known = state.people.get(name)
            if known is None:
                check_name(name)
            if known is not None and known.role != role:
                statement = f"{name} is {NOUNS[known.role]} already"
                raise PipelineError(Problem(statement, f"another name for {NOUNS[role]}", "each name has one role"))
            if known is not None and known.access != "revoked" and not replaces:
                raise PipelineError(Problem(f"{name} has a link already", remedy="a new link ends the one there is"))
            body = by_lead(by, EventBody(name=name, token=hashed_token(token)))
            return "annotator", {**body, "role": role} if role != "annotator" else body

        self.record(decide)
        return token

    def set_access(self, name: str, access: Access, by: str = "") -> None:
        """Pause somebody, revoke their link, or let them go on; ``by`` names the lead who does.

        Raises:
            PipelineError: nobody has this name, or a revoked link is to work again.
        """

        def decide(state: State) -> NewEvent | None:
            person = state.people.get(name)
            if person is None:
                known = f"one of {', '.join(state.people)}" if state.people else "a name that has a link; nobody has"
                raise PipelineError(Problem(f"nobody here is called {name!r}", known))
            if person.access == "revoked" and access != "revoked":
                statement = f"the link of {name} was revoked"
                raise PipelineError(
                    Problem(statement, remedy=f"`trueup labels people RECIPE STAGE --add {name}` makes a new one")
                )
            return None if person.access == access else ("access", by_lead(by, {"name": name, "access": access}))

        self.record(decide)

    def drop(self, items: str | Iterable[str], reason: str, by: str = "") -> None:
        """Take an item or several out of the batch, which make no row; ``by`` names the lead who does."""
        named = [items] if isinstance(items, str) else dict.fromkeys(items)
        bodies = [by_lead(by, {"item": item, "reason": reason[:LONGEST_REASON]}) for item in named]
        self.record(lambda state: [("drop", body) for body in bodies if body["item"] not in state.dropped] or None)

    def close(self, closed: bool = True, by: str = "") -> None:
        """End the batch with the labels it has, or open it again; ``by`` names the lead who does."""
        self.record(lambda state: None if state.is_closed == closed else ("close", by_lead(by, {"closed": closed})))

    def identify(self, token: str, *, is_new: bool = True) -> Caller | None:
        """Return who has this token; None for an unknown or revoked token.

        Args:
            token: the token of a link.
            is_new: whether to read the ledger for links that were made or revoked since the last call.
        """
        hashed = hashed_token(token)
        with self._turn:
            if is_new:
                self._read()
            for name, person in self._state.people.items():
                if hmac.compare_digest(person.token, hashed):
                    return None if person.access == "revoked" else Caller(name, person.access, person.role)
        return None

    def next(self, annotator: str, count: int = 1, *, has_read: bool = False) -> list[Shown]:
        """Return the next items for an annotator, as they are shown, and lease them to the annotator for `LEASE_S`.

        Args:
            annotator: name of the annotator.
            count: number of items, at most.
            has_read: whether this annotator's answer has just been recorded. The same transaction has reserved the next
                items, so the ledger is not asked again, unless one is missing.
        """
        if has_read:
            with self._turn:
                given = self._assignment.next(annotator, time.time(), count)
                if len(given) == count and not self._lease(self._state, annotator, given):
                    return [shown(item, annotator, self._state.salt) for item in given]
        given = []
        salts: list[str] = []

        def decide(state: State) -> NewEvent | None:
            salts[:] = [state.salt]
            given[:] = self._assignment.next(annotator, time.time(), count)
            return self._lease(state, annotator, given)

        self.record(decide)
        return [shown(item, annotator, salts[0]) for item in given]

    def comes_back(self, annotator: str) -> bool:
        """Return whether others have pairs that this annotator is given when their leases end."""
        with self._turn:
            return self._assignment.comes_back(annotator, time.time())

    def _lease(self, state: State, annotator: str, items: list[Item]) -> NewEvent | None:
        """Return the event that reserves items; None when all are reserved for half of `LEASE_S` and more."""
        now = time.time()
        leased = state.leased_to.get(annotator, {})
        held = [one for one, until in leased.items() if is_held(until, now) and until >= now + LEASE_S / 2]
        late = [item.id for item in items if item.id not in held]
        return ("lease", {"annotator": annotator, "items": late, "until": now + LEASE_S}) if late else None

    def label(self, annotator: str, item: str, side: str, strength: int, seconds: float, request: str = "") -> None:
        """Record a choice.

        Args:
            annotator: name of the annotator.
            item: id of a pair as it was shown to this annotator.
            side: one of `SIDES`.
            strength: strength of the preference, 1 to 3.
            seconds: time the choice took.
            request: id of the request; a request with the id of the recorded answer changes nothing.

        Raises:
            PipelineError: no such item, side or strength, or the item is not leased to this annotator.
        """
        self.choose(annotator, item, Choice(side, strength, seconds, request))

    def choose(self, annotator: str, item: str, choice: Choice) -> None:
        """Record a choice with what else the annotator said of the pair.

        Raises:
            PipelineError: no such item, side, strength or dimension, an edit that is none, or the item is not leased to
                this annotator.
        """
        check_ratings(choice.ratings, self.dimensions)
        side, strength, seconds = choice.side, choice.strength, choice.seconds
        if side not in SIDES:
            raise PipelineError(Problem(f"choice {side!r}", f"one of {', '.join(SIDES)}"))
        if strength not in range(1, STRONGEST + 1):
            raise PipelineError(Problem(f"strength {strength!r}", f"1 to {STRONGEST}"))

        def body(state: State, item_id: str) -> EventBody:
            swapped = is_swapped(state.salt, annotator, item_id)
            is_even = side not in ("left", "right")
            verdict = cast(Verdict, side) if is_even else VERDICTS[(side == "right") != swapped]
            given = EventBody(verdict=verdict, strength=strength, seconds=seconds, swapped=swapped)
            pair = self._assignment.item(item_id)
            given = {**given, **(details_body(choice, pair, given) if pair is not None else {})}
            return {**given, "guidelines": self._version} if self._version else given

        self._answer("label", annotator, item, choice.request, body)

    def rank(self, annotator: str, item: str, given: Ranked) -> None:
        """Record a ranking of a group.

        Raises:
            PipelineError: no such item, it does not rank each answer once, or the item is not leased to this annotator.
        """

        def body(state: State, item_id: str) -> EventBody:
            group = self._assignment.item(item_id)
            order = shown_order(state.salt, annotator, item_id, len(group.responses) if group else 0)
            return {**ranking_body(given, order), **({"guidelines": self._version} if self._version else {})}

        self._answer("label", annotator, item, given.request, body)

    def leave(
        self,
        kind: Literal["skip", "flag"],
        annotator: str,
        item: str,
        reason: str = "",
        request: str = "",
        flag: FlagKind | None = None,
    ) -> None:
        """Skip an item, or flag it, after which no annotator gets it.

        Args:
            kind: whether it is skipped or flagged.
            annotator: name of the annotator.
            item: id of a pair as it was shown to this annotator.
            reason: the annotator's reason.
            request: id of the request.
            flag: what is wrong with a pair that is flagged.

        Raises:
            PipelineError: no such item, or it is not leased to this annotator.
        """
        body = EventBody(reason=reason[:LONGEST_REASON])
        if flag is not None:
            body["flag"] = flag
        self._answer(kind, annotator, item, request, lambda state, _: body)

    def undo(self, annotator: str, request: str = "") -> str | None:
        """Undo the annotator's last answer and return the item's id as it is shown; None when there is none."""
        undone: list[str] = []

        def decide(state: State) -> NewEvent | None:
            if state.is_closed:
                raise PipelineError(Problem("the batch was closed: its labels stay as they are"))
            if request and ("", request) in state.requests.get(annotator, ()):  # sent again, because the reply was lost
                again = state.undone.get(annotator)
                undone[:] = [blinded_id(state.salt, annotator, again)] if again else []
                return None
            last = state.last(annotator)
            if last is None:
                return None
            item, answer = last
            undone[:] = [blinded_id(state.salt, annotator, item)]
            until = time.time() + LEASE_S
            body = EventBody(annotator=annotator, item=item, event=answer.number, until=until, request=request)
            return "undo", body

        self.record(decide)
        return undone[0] if undone else None

    def progress(self, annotator: str = "", *, has_read: bool = False) -> Progress:
        """Return the number of labels given and needed, and the number of answers of an annotator.

        Args:
            annotator: whom it is told; the numbers do not say which items were probes. Empty for the numbers as they
                are.
            has_read: whether the ledger was read just now and is not to be read again.
        """
        with self._turn:
            if not has_read:
                self._read()
            done, wanted = self._assignment.progress()
            if annotator:
                done, wanted = self._assignment.probes.told_progress(done, wanted)
            own = len(self._state.answers.get(annotator, ()))
            return {"done": done, "wanted": wanted, "own": own, "closed": self._state.is_closed}

    def _answer(
        self,
        kind: Literal["label", "skip", "flag"],
        annotator: str,
        shown_id: str,
        request: str,
        body: Callable[[State, str], EventBody],
    ) -> None:
        def decide(state: State) -> list[NewEvent] | None:
            noun = self.batch.noun
            item = state.item_of(annotator, shown_id)
            if item is None or self._assignment.item(item) is None:
                expected = "one that was handed out to you"
                raise PipelineError(Problem(f"this {noun} was not handed to you", expected, "reload the page"))
            before = state.answers.get(annotator, {}).get(item)
            if before is not None:
                if request and before.request == request and says_the_same(before, kind, body(state, item)):
                    return None  # sent again, because the reply was lost
                statement = f"this {noun} was answered already, perhaps in another tab"
                raise PipelineError(Problem(statement, remedy="undo takes that answer back"))
            if request and (item, request) in state.requests.get(annotator, ()):
                return None  # an answer that was taken back, sent again on its way before that
            if not self._assignment.is_open(item):
                raise PipelineError(Problem(self._assignment.why_not_open(item)))
            now, until = time.time(), state.leased_to.get(annotator, {}).get(item)
            if until is None or not (is_held(until, now) or self._assignment.is_free(item, annotator, now)):
                statement = f"this {noun} was reserved for you for ten minutes and has gone to somebody else"
                raise PipelineError(Problem(statement))
            sent = {"request": request} if request else {}
            answer = cast(EventBody, {**body(state, item), **sent, "annotator": annotator, "item": item})
            lease = self._lease(state, annotator, self._assignment.next(annotator, time.time(), AHEAD, answered=item))
            return [(kind, answer), lease] if lease else [(kind, answer)]

        self.record(decide)

    def record(self, decide: Callable[[State], NewEvent | list[NewEvent] | None]) -> list[LedgerEvent]:
        """Append what ``decide`` returns, given the state, and return it as written; None appends nothing."""
        with self._turn:
            written = self.ledger.append(lambda events: decide(self._state.take(events)), self._state.last_event)
            self._state.take(written)
            return written
