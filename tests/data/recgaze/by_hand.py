"""Logs of a dozen made-up people of the RecGaze study, written by hand, and what has to come out of them.

Every expected value was worked out from the description of the logs alone; the reasoning stands at each case. Lengths
are page pixels: the posters of carousels 1 to 10 begin at 176, 516, 855, 1195, 1534, 1874, 2213, 2553, 2892 and 3232
and are 193 high, so they end at 369, 709, 1048, 1388, 1727, 2067, 2406, 2746, 3085 and 3425; the viewport is 1080
high. That more than four rows are visible, or more than three whole, cannot happen with these.

The description leaves open, and the cases avoid: a movie click between a swipe and the next fixation, a swipe that is
taken back before it, gaze samples ahead of an event with the same timestamp, cursor events that outlast a visit, a
screen's only click before its first fixation, the practice screen, and which of two reasons counts where both hold.
It has no rules for sessions by screen; ``screen`` takes the opening view of three rows, all fixations on its posters,
and the final movie click.
"""

from tests.data.recgaze.log_writer import (
    BACKGROUND,
    Case,
    Session,
    Visit,
    backward,
    click,
    cursor,
    fixation,
    forward,
    genre,
    look,
    movie,
    row,
    sample,
)
from tests.data.recgaze.offsets_by_hand import OFFSET_CASES

OPENING = [*row(1), *row(2), *row(3)]
ABC = (1, 2, 3)
"""The rows at offset 0: row 3 ends at 1048, so it is whole, and row 4 begins at 1195, below the viewport."""

CASES = [
    # Tasks 36 to 40 are left out, 31 to 35 are split as 1 to 30 are. Users, and tasks of a user, stand in no order
    # here.
    Case("UvA_26", 40, "", [look(0, 1.0, 200, movie(1, 1)), click(2.0, movie(1, 1))], [], None),
    Case("UvA_26", 36, "", [look(0, 1.0, 200, movie(1, 2)), click(2.0, movie(1, 2))], [], None),
    Case(
        *("UvA_26", 35, "train"),
        [look(0, 1.0, 200, movie(1, 3)), click(2.0, movie(1, 3))],
        [Visit(1.0, 0, ABC, ABC, {(1, 3): 200}, [(1, 3)])],
        Session(0, 0, OPENING, 2, {(1, 3): 200}),
        Session(0, 0, OPENING, 2, {(1, 3): 200}),
    ),
    Case(
        *("UvA_26", 32, "test"),
        [look(0, 1.0, 200, movie(1, 4)), click(2.0, movie(1, 4))],
        [Visit(1.0, 0, ABC, ABC, {(1, 4): 200}, [(1, 4)])],
        Session(0, 0, OPENING, 3, {(1, 4): 200}),
        Session(0, 0, OPENING, 3, {(1, 4): 200}),
    ),
    Case(
        *("UvA_26", 31, "validation"),
        [look(0, 1.0, 200, movie(1, 5)), click(2.0, movie(1, 5))],
        [Visit(1.0, 0, ABC, ABC, {(1, 5): 200}, [(1, 5)])],
        Session(0, 0, OPENING, 4, {(1, 5): 200}),
        Session(0, 0, OPENING, 4, {(1, 5): 200}),
    ),
    # A short fixation between a scroll and a click. At 60 the rows are those of offset 0 (row 4: 1140 < 1195), and 60
    # px of scroll start a visit only with a fixation of 150 ms: it is still the first visit, with its offset.
    Case(
        *("UvA_10", 21, "test"),
        [look(0, 1.0, 300, movie(1, 1)), look(60, 2.0, 100, movie(3, 1)), click(2.2, movie(3, 1))],
        [Visit(1.0, 0, ABC, ABC, {(1, 1): 300, (3, 1): 100}, [(3, 1)])],
        Session(0, 0, OPENING, 10, {(1, 1): 300, (3, 1): 100}),
        Session(0, 0, OPENING, 10, {(1, 1): 300, (3, 1): 100}),
    ),
    # At 400 row 1 (to 369) is gone and row 4 (to 1388) is whole: other rows start a visit with a fixation of any
    # length.
    Case(
        *("UvA_10", 24, "test"),
        [look(0, 1.0, 300, movie(1, 1)), look(400, 2.0, 100, movie(4, 1)), click(2.2, movie(4, 1))],
        [
            Visit(1.0, 0, ABC, ABC, {(1, 1): 300}),
            Visit(2.0, 400, (2, 3, 4), (2, 3, 4), {(4, 1): 100}, [(4, 1)]),
        ],
        Session(1, 400, [*row(2), *row(3), *row(4)], 10, {(4, 1): 100}),
        None,
    ),
    # No sample follows the second fixation: it is dropped and starts no visit, so the click falls into the first one,
    # whose slots do not hold row 5.
    Case(
        *("UvA_10", 15, "train"),
        [look(0, 1.0, 300, movie(1, 1)), fixation(2.0, 200, movie(5, 1), 1630), click(3.0, movie(5, 1))],
        [Visit(1.0, 0, ABC, ABC, {(1, 1): 300}, [(5, 1)])],
        None,
        None,
        {"no scroll": 1, "off slots": 1},
    ),
    # A click before any fixation is in no visit. Two clicks in one visit, the second is the screen's last. At 700 row
    # 2 shows 9 px, rows 3 to 5 (855 to 1727 within 700 to 1780) are whole, row 6 (from 1874) is below. Coming back to
    # offset 0 makes a third visit; it is not joined to the first, and is not the session, since no click is in it.
    Case(
        *("UvA_9", 11, "validation"),
        [
            click(0.5, movie(1, 1)),
            look(0, 1.0, 300, movie(1, 2)),
            click(2.0, movie(1, 2)),
            look(700, 3.0, 200, movie(3, 1)),
            click(4.0, movie(5, 5)),
            click(5.0, movie(3, 1)),
            look(0, 6.0, 250, movie(1, 2)),
        ],
        [
            Visit(1.0, 0, ABC, ABC, {(1, 2): 300}, [(1, 2)]),
            Visit(3.0, 700, (2, 3, 4, 5), (3, 4, 5), {(3, 1): 200}, [(5, 5), (3, 1)]),
            Visit(6.0, 0, ABC, ABC, {(1, 2): 250}),
        ],
        Session(1, 700, [*row(3), *row(4), *row(5)], 0, {(3, 1): 200}),
        Session(0, 0, OPENING, 10, {(1, 2): 550, (3, 1): 200}),
    ),
    # No dwell: the only fixation is on nothing. It starts a visit all the same, and the click is in it.
    Case(
        *("UvA_3", 10, "train"),
        [look(0, 1.0, 300, BACKGROUND), click(2.0, movie(1, 1))],
        [Visit(1.0, 0, ABC, ABC, {}, [(1, 1)])],
        None,
        None,
        {"no dwell": 1},
    ),
    # No dwell: at 250 row 1 shows 119 px and row 4 135 px (250 + 1080 - 1195), so the slots are rows 2 and 3 only,
    # and both fixations are on the others. Of the opening view one is on row 1.
    Case(
        *("UvA_3", 13, "train"),
        [look(250, 1.0, 200, movie(4, 1)), look(250, 1.5, 210, movie(1, 5)), click(2.0, movie(2, 1))],
        [Visit(1.0, 250, (1, 2, 3, 4), (2, 3), {(4, 1): 200, (1, 5): 210}, [(2, 1)])],
        None,
        Session(0, 0, OPENING, 5, {(1, 5): 210}),
        {"no dwell": 1},
    ),
    # No dwell: what was looked at was looked at in the visit before.
    Case(
        *("UvA_3", 14, "train"),
        [look(0, 1.0, 300, movie(1, 1)), look(400, 2.0, 160, genre(3)), click(3.0, movie(2, 1))],
        [Visit(1.0, 0, ABC, ABC, {(1, 1): 300}), Visit(2.0, 400, (2, 3, 4), (2, 3, 4), {}, [(2, 1)])],
        None,
        Session(0, 0, OPENING, 5, {(1, 1): 300}),
        {"no dwell": 1},
    ),
    # Background counts for the poster that is Closest, and for nothing where Closest is missing, a genre or
    # Background. A poster hit itself counts once, whatever Closest says.
    Case(
        *("UvA_2", 9, "test"),
        [
            look(0, 1.0, 200, BACKGROUND, movie(1, 2)),
            look(0, 2.0, 300, BACKGROUND),
            look(0, 3.0, 100, BACKGROUND, genre(2)),
            look(0, 4.0, 150, movie(2, 1), movie(2, 1)),
            look(0, 5.0, 120, genre(1)),
            look(0, 5.5, 110, BACKGROUND, BACKGROUND),
            click(6.0, movie(1, 2)),
        ],
        [Visit(1.0, 0, ABC, ABC, {(1, 2): 200, (2, 1): 150}, [(1, 2)])],
        Session(0, 0, OPENING, 1, {(1, 2): 200, (2, 1): 150}),
        Session(0, 0, OPENING, 1, {(1, 2): 200, (2, 1): 150}),
    ),
    # A fixation and a click in one row are both there. The clicks after it are on buttons and nothing, so it stays
    # the final movie click, and the session the first visit although another visit follows.
    Case(
        *("UvA_2", 12, "train"),
        [
            look(0, 1.0, 300, movie(1, 1)),
            fixation(2.0, 100, movie(3, 3), 951) | click(2.0, movie(3, 3)),
            sample(2.1, 951),
            click(3.0, forward(1)),
            look(0, 4.0, 200, movie(1, 6)),
            click(5.0, BACKGROUND),
        ],
        [
            Visit(1.0, 0, ABC, ABC, {(1, 1): 300, (3, 3): 100}, [(3, 3)]),
            Visit(4.0, 0, ABC, ABC, {(1, 6): 200}, pages={1: 1}),
        ],
        Session(0, 0, OPENING, 12, {(1, 1): 300, (3, 3): 100}),
        Session(0, 0, OPENING, 12, {(1, 1): 300, (3, 3): 100}),
    ),
    # Swipes. Carousel 1: 0 + 1 = 1, + 1 = 2, + 1 = 3 = 0 modulo 3. Carousel 2: 0 - 1 = 2 modulo 3, - 1 = 1. Each
    # starts a visit with the next fixation, also with one of 120 ms. On page 1 stand places 6 to 10, so (2, 7) is the
    # second of the second row: 5 + 1. The fixation after the click is in the same visit and adds up with the rest.
    Case(
        *("UvA_1", 7, "validation"),
        [
            look(0, 1.0, 200, movie(1, 1)),
            click(2.0, forward(1)),
            look(0, 3.0, 120, movie(1, 6)),
            click(4.0, forward(1)),
            look(0, 5.0, 200, movie(1, 12)),
            click(6.0, forward(1)),
            look(0, 7.0, 200, movie(1, 2)),
            click(8.0, backward(2)),
            look(0, 9.0, 200, movie(2, 15)),
            click(10.0, backward(2)),
            look(0, 11.0, 250, movie(2, 7)),
            click(12.0, movie(2, 7)),
            look(0, 13.0, 130, movie(3, 1)),
        ],
        [
            Visit(1.0, 0, ABC, ABC, {(1, 1): 200}),
            Visit(3.0, 0, ABC, ABC, {(1, 6): 120}, pages={1: 1}),
            Visit(5.0, 0, ABC, ABC, {(1, 12): 200}, pages={1: 2}),
            Visit(7.0, 0, ABC, ABC, {(1, 2): 200}),
            Visit(9.0, 0, ABC, ABC, {(2, 15): 200}, pages={2: 2}),
            Visit(11.0, 0, ABC, ABC, {(2, 7): 250, (3, 1): 130}, [(2, 7)], {2: 1}),
        ],
        Session(5, 0, [*row(1), *row(2, 6), *row(3)], 6, {(2, 7): 250, (3, 1): 130}, pages={2: 1}),
        None,
    ),
    # Swipes of rows that are not whole. At 250 rows 1 to 4 are visible, 2 and 3 whole. Row 4 is swiped: 1, then by
    # two clicks 3 = 0, then 0 - 1 = 2; each time the pages of the visible rows change. Then a fixation on row 9
    # without a sample in the next three rows is dropped, and row 9 is swiped: none of the visible rows, so the
    # fixation at 7.0 is in the same visit as the one at 5.8. The swipe is kept: row 9 is on page 1 when it comes into
    # view. At 2400 row 7 shows 6 px and rows 8 to 10 (2553 to 3425 within 2400 to 3480) are whole.
    Case(
        *("UvA_1", 8, "train"),
        [
            look(250, 1.0, 200, movie(2, 1)),
            click(2.0, forward(4)),
            look(250, 3.0, 100, movie(2, 1)),
            click(4.0, forward(4)),
            click(4.5, forward(4)),
            look(250, 5.0, 100, movie(2, 2)),
            click(5.5, backward(4)),
            look(250, 5.8, 110, movie(2, 3)),
            fixation(6.0, 200, movie(9, 1), 2988),
            click(6.2, forward(9)),
            click(6.4, genre(9)),
            cursor(6.5, 0.05, BACKGROUND),
            look(250, 7.0, 90, movie(2, 4)),
            click(8.0, movie(2, 4)),
            look(2400, 9.0, 200, movie(9, 6)),
        ],
        [
            Visit(1.0, 250, (1, 2, 3, 4), (2, 3), {(2, 1): 200}),
            Visit(3.0, 250, (1, 2, 3, 4), (2, 3), {(2, 1): 100}, pages={4: 1}),
            Visit(5.0, 250, (1, 2, 3, 4), (2, 3), {(2, 2): 100}),
            Visit(5.8, 250, (1, 2, 3, 4), (2, 3), {(2, 3): 110, (2, 4): 90}, [(2, 4)], {4: 2}),
            Visit(9.0, 2400, (7, 8, 9, 10), (8, 9, 10), {(9, 6): 200}, pages={9: 1}),
        ],
        Session(3, 250, [*row(2), *row(3)], 3, {(2, 3): 110, (2, 4): 90}, pages={4: 2}),
        Session(0, 0, OPENING, 8, {(2, 1): 300, (2, 2): 100, (2, 3): 110, (2, 4): 90}),
        {"no scroll": 1},
    ),
    # Cursor time goes to the visit on screen: that before the first visit nowhere, that at 1.1 to the first, that at
    # 4.1 to the third. In the session's visit: 400 + 100 ms on the clicked poster, 200 on another after the click,
    # and what rests on nothing or on a button counts for none.
    Case(
        *("KInIT_61", 17, "train"),
        [
            cursor(0.5, 0.1, movie(1, 1)),
            look(0, 1.0, 300, movie(1, 1)),
            cursor(1.1, 0.25, movie(1, 1)),
            look(400, 2.0, 200, movie(2, 2)),
            cursor(2.2, 0.4, movie(2, 2)),
            cursor(2.61, 0.1, movie(2, 2)),
            cursor(2.75, 0.1, BACKGROUND),
            cursor(2.86, 0.05, forward(2)),
            click(3.0, movie(2, 2)),
            cursor(3.5, 0.2, movie(3, 1)),
            look(0, 4.0, 200, movie(1, 2)),
            cursor(4.1, 0.2, movie(2, 2)),
        ],
        [
            Visit(1.0, 0, ABC, ABC, {(1, 1): 300}),
            Visit(2.0, 400, (2, 3, 4), (2, 3, 4), {(2, 2): 200}, [(2, 2)]),
            Visit(4.0, 0, ABC, ABC, {(1, 2): 200}),
        ],
        Session(
            *(1, 400, [*row(2), *row(3), *row(4)], 1),
            ms={(2, 2): 200},
            cursor={(2, 2): 500, (3, 1): 200},
        ),
    ),
    # No movie was clicked: no session, but the visit is there.
    Case(
        *("KInIT_61", 18, "train"),
        [look(0, 1.0, 300, movie(1, 1)), click(2.0, genre(1))],
        [Visit(1.0, 0, ABC, ABC, {(1, 1): 300})],
        None,
        None,
    ),
    *OFFSET_CASES,
]
USERS = [*(f"KInIT_{n}" for n in (1, 2, 3, 10, 11, 61)), *(f"UvA_{n}" for n in (1, 2, 3, 9, 10, 26))]
"""The order of the result: 2 before 10."""
DROPPED = {"no scroll": 6, "off slots": 2, "no dwell": 3}
"""Of all cases: no scroll 1 (UvA_10/15) + 1 (UvA_1/8) + 2 (KInIT_1/1) + 2 (KInIT_1/5);
off slots UvA_10/15 and KInIT_3/4; no dwell UvA_3/10, 13 and 14."""
