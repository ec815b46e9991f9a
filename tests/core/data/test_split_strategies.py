"""Stratified, by time, by content; and near-duplicates that never straddle, whatever the strategy."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.config import SplitConfig
from core.data.dataset_file import write_dataset
from core.data.split import split
from core.data.workers import Inline
from core.errors import DataError

NAMES = ("train", "val", "test")
WORDS = [
    f"{a}{b}"
    for a in ("ba", "ka", "mo", "lu", "ti", "sɛ", "wɔ", "ne")
    for b in ("na", "re", "pi", "do", "xu")
]


def question(rng, length=20):
    return " ".join(rng.choice(WORDS) + rng.choice(WORDS) for _ in range(length))


def places(folder):
    return {
        json.loads(line)["id"]: name
        for name in NAMES
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    }


@pytest.fixture
def divide(tmp_path):
    def go(rows, **config):
        dataset = tmp_path / "dataset.parquet"
        write_dataset(dataset, rows)
        report = split(dataset, tmp_path / "splits", SplitConfig(**config), workers=Inline())
        return report, places(tmp_path / "splits")

    return go


STRATEGIES = [
    {"strategy": "random"},
    {"strategy": "stratified", "stratify_by": "topic"},
    {"strategy": "group", "group_by": "book"},
    {"strategy": "time", "time_by": "year"},
    {"strategy": "content"},
]


def families(make_row, seed=1, count=150):
    """Every third row has a relative that differs in one word of twenty."""
    rng, rows = random.Random(seed), []
    for n in range(count):
        words = question(rng)
        meta = {"topic": "abc"[n % 3], "book": n % 30, "year": 1990 + n % 25}
        rows.append(make_row(2 * n, words, f"answer {n}", **meta))
        if n % 3 == 0:
            rows.append(
                make_row(2 * n + 1, words + " extra", f"other {n}", **meta | {"year": 1990 + (n * 7) % 25})
            )
    return rows


@pytest.mark.parametrize("config", STRATEGIES, ids=lambda c: c["strategy"])
def test_near_duplicates_never_straddle(divide, make_row, config):
    rows = families(make_row)
    report, where = divide(rows, **config)
    for n in range(0, 150, 3):
        sides = {where[name] for name in (f"r{2 * n}", f"r{2 * n + 1}") if name in where}
        assert len(sides) == 1
    assert all(leak.near == 0 for leak in report.leakage.values())
    assert report.train + report.val + report.test + report.removed == len(rows)


def test_without_the_comparison_near_duplicates_do_straddle_and_the_report_says_not_measured(
    divide, make_row
):
    report, where = divide(families(make_row), near_threshold=None)
    apart = [n for n in range(0, 150, 3) if where[f"r{2 * n}"] != where[f"r{2 * n + 1}"]]
    assert apart
    assert report.leakage["train/test"].near is None


def test_strata_keep_their_shares_in_every_split(divide, make_row):
    rng = random.Random(2)
    topics = ["common"] * 700 + ["rare"] * 240 + ["seldom"] * 60
    rows = [make_row(n, question(rng), topic=topic) for n, topic in enumerate(topics)]
    rng.shuffle(rows)
    report, where = divide(rows, strategy="stratified", stratify_by="topic")
    topic_of = {row["id"]: row["metadata"]["topic"] for row in rows}
    counts = Counter((where[row], topic_of[row]) for row in where)
    assert (report.train, report.val, report.test) == (800, 100, 100)
    for topic, total in Counter(topics).items():
        for name, share in zip(NAMES, (0.8, 0.1, 0.1), strict=True):
            assert abs(counts[name, topic] - share * total) <= 1


def test_many_strata_of_one_row_do_not_bend_the_whole(divide, make_row):
    rng = random.Random(3)
    report, _ = divide(
        [make_row(n, question(rng), topic=f"t{n}") for n in range(200)],
        strategy="stratified",
        stratify_by="topic",
    )
    assert (report.train, report.val, report.test) == (160, 20, 20)


@pytest.mark.parametrize("form", [lambda n: n, lambda n: f"20{n // 12:02d}-{n % 12 + 1:02d}-01"])
def test_the_oldest_rows_train_and_the_newest_test(divide, make_row, form):
    rng = random.Random(4)
    rows = [make_row(n, question(rng), when=form(n)) for n in range(300)]
    rng.shuffle(rows)
    report, where = divide(rows, strategy="time", time_by="when")
    ages = {name: [int(row[1:]) for row, side in where.items() if side == name] for name in NAMES}
    assert max(ages["train"]) < min(ages["val"])
    assert max(ages["val"]) < min(ages["test"])
    assert (report.train, report.val, report.test) == (240, 30, 30)


def test_rows_of_one_moment_stay_together(divide, make_row):
    rng = random.Random(5)
    rows = [make_row(n, question(rng), when=n // 20) for n in range(300)]
    _, where = divide(rows, strategy="time", time_by="when")
    for moment in range(15):
        assert len({where[f"r{n}"] for n in range(20 * moment, 20 * moment + 20)}) == 1


@pytest.mark.parametrize("value", ["yesterday", "", None, [1], True])
def test_what_is_no_time_is_named(divide, make_row, value):
    rng = random.Random(6)
    rows = [make_row(n, question(rng), when=n) for n in range(40)]
    rows[3]["metadata"]["when"] = value
    with pytest.raises(DataError) as error:
        divide(rows, strategy="time", time_by="when")
    assert "r3" in error.value.where
    assert "'when'" in error.value.what


@given(st.integers(0, 10_000), st.integers(30, 120))
@settings(max_examples=12, deadline=None)
def test_added_rows_never_move_an_old_one(seed, added):
    import tempfile
    from pathlib import Path

    from tests.core.data.conftest import dataset_row

    rng = random.Random(seed)
    old = [dataset_row(n, question(rng)) for n in range(120)]
    new = [dataset_row(1000 + n, question(rng)) for n in range(added)]
    # Some new rows resemble old ones, and stand between them in the file.
    new += [
        dataset_row(5000 + n, row["conversations"][0]["content"] + " again") for n, row in enumerate(old[::5])
    ]
    mixed = old + new
    rng.shuffle(mixed)
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for rows in (old, mixed):
            write_dataset(Path(folder) / "d.parquet", rows)
            config = SplitConfig(strategy="content", train=0.6, val=0.2, test=0.2)
            split(Path(folder) / "d.parquet", Path(folder) / "s", config, workers=Inline())
            sides.append(places(Path(folder) / "s"))
    before, after = sides
    moved = {row for row in before if row in after and before[row] != after[row]}
    assert not moved
    gone = {row for row in before if row not in after}
    # A row may only leave, and only from a looser split than its new relative's.
    assert all(before[row] != "test" for row in gone)


def test_content_shares_come_out_about_right(divide, make_row):
    rng = random.Random(7)
    report, _ = divide([make_row(n, question(rng)) for n in range(2000)], strategy="content")
    assert abs(report.test - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5
    assert report.removed == 0


@pytest.mark.parametrize("config", STRATEGIES, ids=lambda c: c["strategy"])
def test_too_few_rows_are_one_clear_message(divide, make_row, config):
    with pytest.raises(DataError) as error:
        divide([make_row(0, "only one", topic="a", book=1, year=2000)], **config)
    assert "empty" in error.value.what
    assert error.value.fix


@pytest.mark.parametrize("config", STRATEGIES, ids=lambda c: c["strategy"])
def test_the_order_of_the_file_decides_nothing(divide, make_row, config):
    rows = families(make_row, seed=9)
    _, first = divide(rows, **config)
    random.Random(1).shuffle(rows)
    _, second = divide(rows, **config)
    assert first == second


def chat(number, *turns, system=None):
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    head = [{"role": "system", "content": system}] if system else []
    return {"id": f"r{number}", "conversations": head + said, "metadata": {"topic": "a", "book": number, "year": number},
            "origin": {"file": "a", "line": number}}  # fmt: skip


@pytest.mark.parametrize("config", STRATEGIES, ids=lambda c: c["strategy"])
def test_rows_that_ask_the_same_in_other_settings_never_straddle(divide, config):
    rng = random.Random(11)
    asked = [question(rng, 8) for _ in range(150)]
    rows = [chat(2 * n, text, "yes", system="Be brief.") for n, text in enumerate(asked)]
    rows += [chat(2 * n + 1, text, "yes", system="Be kind.") for n, text in enumerate(asked[:75])]
    rows += [chat(2 * n + 1, text, "yes", "why?", "so") for n, text in enumerate(asked) if n >= 75]
    report, where = divide(rows, **config)
    for n in range(150):
        assert len({where[name] for name in (f"r{2 * n}", f"r{2 * n + 1}") if name in where}) == 1
    assert all(leak.repeated == 0 for leak in report.leakage.values())


def test_numbers_can_be_told_not_to_matter(divide, make_row):
    text = "a trader buys {} bags of rice at the market and sells each of them for forty cedis to her neighbours in town"
    rng = random.Random(12)
    rows = [make_row(n, text.format(n)) for n in range(30)] + [
        make_row(100 + n, question(rng)) for n in range(270)
    ]
    report, where = divide(rows, near_numbers="ignore", near_threshold=0.7)
    assert len({where[f"r{n}"] for n in range(30)}) == 1
    assert report.largest_cluster == 30
    assert divide(rows, near_threshold=0.7)[0].largest_cluster == 1


def test_rows_that_are_nearly_the_same_as_a_whole_never_straddle(divide, make_row):
    rng = random.Random(13)
    answers = [question(rng, 60) for _ in range(60)]
    rows = [make_row(2 * n + k, question(rng, 3), text) for n, text in enumerate(answers) for k in (0, 1)]
    report, where = divide(rows)
    assert all(where[f"r{2 * n}"] == where[f"r{2 * n + 1}"] for n in range(60))
    assert all(leak.near == 0 for leak in report.leakage.values())
    _, where = divide(rows, near_threshold=None)
    assert any(where[f"r{2 * n}"] != where[f"r{2 * n + 1}"] for n in range(60))
