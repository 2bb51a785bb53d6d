"""More logs written by hand: which row tells the scroll offset, and what an offset puts into sight; see ``by_hand``."""

from tests.data.recgaze.log_writer import (
    BACKGROUND,
    Case,
    Session,
    Visit,
    click,
    cursor,
    fixation,
    genre,
    look,
    movie,
    row,
    sample,
)

ABC = (1, 2, 3)
"""The rows at offset 0."""
OPENING = [*row(1), *row(2), *row(3)]
NOON = 1_700_000_000.25

OFFSET_CASES = [
    # Three events with one timestamp: the first of them in one table is the first in the other. The sample after them
    # tells the offset of both fixations: 272 - 272 = 0 (three rows on) and 951 - 272 = 679 (two on). At 679 row 2
    # shows 30 px, rows 3 to 5 (to 1727, the viewport to 1759) are whole. The click stands after both, so it is in the
    # second visit.
    Case(
        *("KInIT_11", 16, "train"),
        [
            fixation(1.0, 200, movie(1, 1), 272),
            fixation(1.0, 180, movie(3, 3), 951),
            click(1.0, movie(3, 2)),
            sample(1.0, 272),
        ],
        [
            Visit(1.0, 0, ABC, ABC, {(1, 1): 200}),
            Visit(1.0, 679, (2, 3, 4, 5), (3, 4, 5), {(3, 3): 180}, [(3, 2)]),
        ],
        Session(1, 679, [*row(3), *row(4), *row(5)], 1, {(3, 3): 180}),
        Session(0, 0, OPENING, 11, {(1, 1): 200, (3, 3): 180}),
    ),
    # Seconds since 1970, in the tenth of a millisecond, and a cursor event with the timestamp of the first fixation.
    # 612 - 612 = 0; 951 - 612 = 339: row 1 shows 30 px, row 4 (to 1388, the viewport to 1419) is whole.
    Case(
        *("KInIT_11", 33, "train"),
        [
            cursor(NOON, 0.00005, BACKGROUND),
            fixation(NOON, 240, movie(2, 1), 612),
            fixation(NOON + 0.0001, 250, movie(3, 3), 951),
            sample(NOON + 0.01, 612),
            click(NOON + 1.0, movie(2, 1)),
        ],
        [
            Visit(NOON, 0, ABC, ABC, {(2, 1): 240}),
            Visit(NOON + 0.0001, 339, (1, 2, 3, 4), (2, 3, 4), {(3, 3): 250}, [(2, 1)]),
        ],
        Session(1, 339, [*row(2), *row(3), *row(4)], 0, {(3, 3): 250}),
        Session(0, 0, OPENING, 5, {(2, 1): 240, (3, 3): 250}),
    ),
    # The end of the page. At 2400 row 7 (to 2406) shows 6 px, at 2404 2 px, which is not visible: a new visit with 4
    # px of scroll and a fixation of 100 ms. Only what was looked at in it counts. (10, 2) is slot 5 + 5 + 1.
    Case(
        *("KInIT_10", 30, "train"),
        [look(2400, 1.0, 180, movie(10, 2)), look(2404, 2.0, 100, movie(9, 1)), click(2.5, movie(10, 2))],
        [
            Visit(1.0, 2400, (7, 8, 9, 10), (8, 9, 10), {(10, 2): 180}),
            Visit(2.0, 2404, (8, 9, 10), (8, 9, 10), {(9, 1): 100}, [(10, 2)]),
        ],
        Session(1, 2404, [*row(8), *row(9), *row(10)], 11, {(9, 1): 100}),
        None,
    ),
    # Two whole rows make ten slots: at 200 row 1 shows 169 px and row 4 85 px (200 + 1080 - 1195).
    Case(
        *("KInIT_10", 3, "train"),
        [look(200, 1.0, 220, movie(3, 5)), click(2.0, movie(3, 5))],
        [Visit(1.0, 200, (1, 2, 3, 4), (2, 3), {(3, 5): 220}, [(3, 5)])],
        Session(0, 200, [*row(2), *row(3)], 9, {(3, 5): 220}),
        Session(0, 0, OPENING, 14, {(3, 5): 220}),
    ),
    # The final click is off the slots, the one before was on them: at 307 row 4 shows 192 of 193 px, which is not
    # whole.
    Case(
        *("KInIT_3", 4, "test"),
        [look(307, 1.0, 200, movie(2, 3)), click(1.5, movie(2, 3)), click(2.0, movie(4, 1))],
        [Visit(1.0, 307, (1, 2, 3, 4), (2, 3), {(2, 3): 200}, [(2, 3), (4, 1)])],
        None,
        None,
        {"off slots": 1},
    ),
    # At 307.5 row 4 shows 192.5 px: whole to half a pixel.
    Case(
        *("KInIT_3", 6, "train"),
        [look(307.5, 1.0, 200, movie(2, 3)), click(2.0, movie(4, 5))],
        [Visit(1.0, 307.5, (1, 2, 3, 4), (2, 3, 4), {(2, 3): 200}, [(4, 5)])],
        Session(0, 307.5, [*row(2), *row(3), *row(4)], 14, {(2, 3): 200}),
        None,
    ),
    # Which row tells the offset. One on: 1.0. Two on, after a click: 1.3. Three on: 1.6. Four on: the fixation at 1.9
    # is dropped. The sample after 2.6 serves 2.5, too, past a fixation between. Of two samples the next one counts:
    # 612 - 612 at 2.8, not 612 - 100. The last fixation has none: the sample that follows in the file is of another
    # task (next case). All others are at offset 0. Of the opening view, all fixations count.
    Case(
        *("KInIT_1", 1, "test"),
        [
            *(fixation(1.0, 200, movie(1, 1), 272), sample(1.1, 272)),
            *(fixation(1.3, 210, movie(1, 2), 272), click(1.4, genre(1)), sample(1.5, 272)),
            *(fixation(1.6, 220, movie(1, 3), 272), cursor(1.7, 0.05, movie(1, 3)), click(1.75, BACKGROUND)),
            sample(1.8, 272),
            *(fixation(1.9, 230, movie(1, 4), 272), cursor(2.0, 0.05, movie(1, 4)), cursor(2.1, 0.05, movie(1, 4))),
            *(cursor(2.2, 0.05, movie(1, 4)), sample(2.3, 272)),
            *(fixation(2.5, 100, movie(2, 1), 612), fixation(2.6, 110, movie(2, 2), 612), sample(2.7, 612)),
            *(fixation(2.8, 120, movie(2, 3), 612), sample(2.85, 612), sample(2.9, 100)),
            click(3.0, movie(1, 4)),
            fixation(3.2, 130, movie(3, 1), 951),
        ],
        [
            Visit(
                *(1.0, 0, ABC, ABC),
                {(1, 1): 200, (1, 2): 210, (1, 3): 220, (2, 1): 100, (2, 2): 110, (2, 3): 120},
                [(1, 4)],
            )
        ],
        Session(
            *(0, 0, OPENING, 3),
            ms={(1, 1): 200, (1, 2): 210, (1, 3): 220, (2, 1): 100, (2, 2): 110, (2, 3): 120},
            cursor={(1, 3): 50, (1, 4): 150},
        ),
        Session(
            *(0, 0, OPENING, 3),
            ms={(1, 1): 200, (1, 2): 210, (1, 3): 220, (1, 4): 230, (2, 1): 100, (2, 2): 110, (2, 3): 120, (3, 1): 130},
            cursor={(1, 3): 50, (1, 4): 150},
        ),
        {"no scroll": 2},
    ),
    # A fixation of the public table that the other one lacks has no height on the page: dropped. The last one, too:
    # the sample that follows in the file is of the same task, but of another user (next case). (2, 4) is slot 5 + 3.
    Case(
        *("KInIT_1", 5, "train"),
        [
            sample(0.1, 951),
            look(0, 1.0, 300, movie(2, 4)),
            fixation(1.5, 170, movie(1, 5), 272) | {"public only": True},
            sample(1.6, 272),
            click(2.0, movie(2, 4)),
            fixation(2.5, 140, movie(1, 1), 272),
        ],
        [Visit(1.0, 0, ABC, ABC, {(2, 4): 300}, [(2, 4)])],
        Session(0, 0, OPENING, 8, {(2, 4): 300}),
        Session(0, 0, OPENING, 8, {(2, 4): 300, (1, 5): 170, (1, 1): 140}),
        {"no scroll": 2},
    ),
    Case(
        *("KInIT_2", 5, "train"),
        [sample(0.1, 272), look(0, 1.0, 250, movie(3, 5)), click(1.5, movie(3, 5))],
        [Visit(1.0, 0, ABC, ABC, {(3, 5): 250}, [(3, 5)])],
        Session(0, 0, OPENING, 14, {(3, 5): 250}),
        Session(0, 0, OPENING, 14, {(3, 5): 250}),
    ),
    # What starts a visit; scroll is taken from where the visit began.
    #  2.0  117: row 4 would show 2 px, so the rows are the same; 117 px, but 90 ms: no.
    #  3.0  118: row 4 shows 3 px: yes, with 80 ms.
    #  4.0  176.5: 58.5 px, but 100 ms: no.
    #  5.0  176.5: 58.5 px and 160 ms: yes. Row 1 shows 192.5 px: whole to half a pixel.
    #  6.0  195: 18.5 px, but 149 ms: no.
    #  7.0  194: 17.5 px and 150 ms: yes. Row 1 shows 175 px: not whole.
    #  8.0  211: 17 px, not more: no.
    #  9.0  177: 17 px upwards: no.
    # 10.0  176: 18 px upwards: yes. Row 1 is whole.
    # 11.0  366: 190 px: yes. Row 1 shows 3 px; row 4 (to 1388, the viewport to 1446) is whole; row 5 is below.
    # 12.0  366.5: row 1 would show 2.5 px, so the rows are others: yes, with 60 ms.
    Case(
        *("KInIT_2", 2, "train"),
        [
            look(0, 1.0, 300, movie(1, 1)),
            look(117, 2.0, 90, movie(2, 2)),
            look(118, 3.0, 80, movie(3, 3)),
            look(176.5, 4.0, 100, movie(1, 5)),
            look(176.5, 5.0, 160, movie(1, 4)),
            look(195, 6.0, 149, movie(2, 1)),
            look(194, 7.0, 150, movie(2, 1)),
            look(211, 8.0, 400, movie(3, 1)),
            look(177, 9.0, 400, movie(3, 2)),
            look(176, 10.0, 400, movie(3, 2)),
            look(366, 11.0, 200, movie(4, 1)),
            look(366.5, 12.0, 60, movie(4, 1)),
            click(12.5, movie(4, 3)),
        ],
        [
            Visit(1.0, 0, ABC, ABC, {(1, 1): 300, (2, 2): 90}),
            Visit(3.0, 118, (1, 2, 3, 4), ABC, {(3, 3): 80, (1, 5): 100}),
            Visit(5.0, 176.5, (1, 2, 3, 4), ABC, {(1, 4): 160, (2, 1): 149}),
            Visit(7.0, 194, (1, 2, 3, 4), (2, 3), {(2, 1): 150, (3, 1): 400, (3, 2): 400}),
            Visit(10.0, 176, (1, 2, 3, 4), ABC, {(3, 2): 400}),
            Visit(11.0, 366, (1, 2, 3, 4), (2, 3, 4), {(4, 1): 200}),
            Visit(12.0, 366.5, (2, 3, 4), (2, 3, 4), {(4, 1): 60}, [(4, 3)]),
        ],
        Session(6, 366.5, [*row(2), *row(3), *row(4)], 12, {(4, 1): 60}),
        None,
    ),
]
