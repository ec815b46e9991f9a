import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.reports import FormatReport, IngestReport, SourceCount
from tasks.report.data_view import DataReports, data_view, fates, pair, source_bars
from tasks.report.learning_view import PART, example_view
from tests.tasks.report import data_reports as found


def formatted(**fields: object) -> FormatReport:
    given = {
        "rows": 10,
        "kept": 4,
        "rejected": 1,
        "duplicates": 2,
        "reasons": {},
        "formats": {},
        "max_rejected": 0.1,
    }
    return FormatReport.model_validate(given | fields)


def sources(*taken: int, weighted: bool = True) -> IngestReport:
    counts = tuple(
        SourceCount(path=f"s{n}", files=1, rows=10, taken=rows, wanted=0.5) for n, rows in enumerate(taken)
    )
    return IngestReport(rows=sum(taken), sources=counts, is_weighted=weighted)


def test_what_became_of_the_rows_adds_up_to_the_rows():
    laid = fates(formatted(near_duplicates=1, mixed_out=1, contaminated=1))
    assert {bar.label: bar.value for bar in laid} == {
        "kept": 4, "exact duplicates": 2, "near-duplicates": 1, "rejected": 1,
        "in a benchmark": 1, "left out for the weights": 1,
    }  # fmt: skip
    assert laid[0].width == 40 and laid[-1].start + laid[-1].width == 100


def test_rows_that_no_count_explains_are_shown_as_such():
    assert fates(formatted())[-1][:2] == ("not accounted for", 3)


def test_sources_are_compared_by_the_rows_that_were_kept():
    one, two = source_bars(sources(10, 10), formatted(kept_by_source={"s0": 3, "s1": 1}))
    assert (one.used, one.share, one.width, one.wanted, one.wanted_at) == (
        3,
        0.75,
        100,
        0.5,
        pytest.approx(66.667),
    )
    assert (two.used, two.share, two.width) == (1, 0.25, pytest.approx(33.333))


def test_a_mix_whose_kept_rows_nobody_counted_is_compared_with_nothing():
    assert [bar.wanted for bar in source_bars(sources(10, 10), None)] == [None, None]
    assert [bar.wanted for bar in source_bars(sources(10, 5), None)] == [0.5, 0.5]


def test_sources_without_weights_promise_nothing():
    report = formatted(kept_by_source={"s0": 3, "s1": 1})
    assert [bar.wanted for bar in source_bars(sources(10, 10, weighted=False), report)] == [None, None]


def test_addresses_of_sources_lose_what_opens_them():
    paths = [bar.path for bar in source_bars(found.INGEST, None)]
    assert paths[2] == "s3://bucket/lessons/2026/november/geography-and-history.parquet"


def test_no_rows_divide_by_nothing():
    view = data_view(DataReports(sources(0, 0), formatted(rows=0, kept=0, rejected=0, duplicates=0)))
    assert [bar.share for bar in view.sources] == [0, 0]
    assert [bar.width for bar in view.fates] == [0]


def test_nothing_measured_is_nothing_drawn():
    assert data_view(DataReports()) == ((), (), None, None, (), (), ())


def test_texts_side_by_side_mark_the_words_that_differ():
    dropped, kept = pair("Add 12 and 30, please.", "Add 12 and 30.")
    assert [piece.text for piece in dropped if piece.differs] == [", please"]
    assert all(not piece.differs for piece in kept)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_texts_side_by_side_lose_no_character(one: str, other: str):
    dropped, kept = pair(one, other)
    assert "".join(piece.text for piece in dropped) == one
    assert "".join(piece.text for piece in kept) == other
    assert "".join(p.text for p in dropped if not p.differs) == "".join(p.text for p in kept if not p.differs)


def test_long_texts_are_cut_and_end_in_an_ellipsis():
    dropped, _ = pair("a" * 5000, "b")
    assert len("".join(piece.text for piece in dropped)) == 701


# Masked examples


def test_tokens_of_one_fate_stand_together_and_none_is_lost():
    example = found.example("a row")
    runs = example_view(example).runs
    assert [(run.trained, len(run.tokens)) for run in runs] == [(False, 16), (True, 9), (False, 1)]
    assert [token.id for run in runs for token in run.tokens] == [token.id for token in example.tokens]


def test_what_the_window_cuts_off_is_told_apart():
    view = example_view(found.example("a row", lost_from=20))
    assert [(run.trained, run.lost, len(run.tokens)) for run in view.runs] == [
        (False, False, 16), (True, False, 4), (True, True, 5), (False, True, 1),
    ]  # fmt: skip
    assert view.n_lost == 6 and view.kinds == (True, True, True)


@pytest.mark.parametrize("at", [0, 10, 16, 26])
def test_a_gap_stands_where_tokens_were_left_out(at: int):
    runs = example_view(found.example("a row", omitted=90, omitted_at=at)).runs
    place = next(n for n, run in enumerate(runs) if run.omitted)
    assert runs[place].omitted == 90 and runs[place].tokens == ()
    assert sum(len(run.tokens) for run in runs[:place]) == at
    assert sum(run.omitted > 0 for run in runs) == 1


def test_signs_that_cannot_be_seen_are_written():
    said = found.LEARNING.examples[0].tokens[0]
    texts = ("\n", "a\tb", "", " ")
    tokens = tuple(said.model_copy(update={"text": text}) for text in texts)
    [run] = example_view(found.example("a row", tokens=tokens)).runs
    assert [token.text for token in run.tokens] == ["↵\n", "a⇥\tb", PART, " "]
