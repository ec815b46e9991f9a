import hashlib
import json
import random
from collections import Counter

import pytest

from core.data.config import SplitConfig
from core.data.dataset_file import write_dataset
from core.data.reports import FormatReport
from core.data.split import split
from core.data.workers import Inline
from core.errors import DataError

NAMES = ("train", "val", "test")


def read(folder):
    return {
        name: [
            json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in NAMES
    }


def place_of(folder):
    return {row["id"]: name for name, rows in read(folder).items() for row in rows}


@pytest.fixture
def divide(tmp_path):
    def go(rows, target="splits", validation=None, formatted=None, **settings):
        dataset, given = tmp_path / "dataset.parquet", None
        write_dataset(dataset, rows)
        if validation is not None:
            given = tmp_path / "validation.parquet"
            write_dataset(given, validation)
        report = split(
            dataset,
            tmp_path / target,
            SplitConfig(**settings),
            workers=Inline(),
            validation=given,
            formatted=formatted,
        )
        return report, tmp_path / target

    return go


@pytest.fixture
def singles(make_row):
    return [make_row(n, f"question {n}") for n in range(200)]


def grouped(settings):
    return {"strategy": "group", "group_by": "book", **settings}


@pytest.mark.parametrize("count", [10, 11, 17, 99, 100, 1003])
@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.7, 0.15, 0.15), (0.5, 0.2, 0.3)])
def test_random_shares_are_exact_within_a_row(divide, make_row, count, shares):
    report, folder = divide(
        [make_row(n, f"q{n}") for n in range(count)], **dict(zip(NAMES, shares, strict=True))
    )
    parts = read(folder)
    for name, share in zip(NAMES, shares, strict=True):
        assert abs(len(parts[name]) - share * count) <= 1
        assert getattr(report, name) == len(parts[name])
        assert report.requested[name] == share
    assert sorted(row["id"] for rows in parts.values() for row in rows) == sorted(
        f"r{n}" for n in range(count)
    )


def test_rows_survive_unchanged(divide, singles):
    _, folder = divide(singles)
    by_id = {row["id"]: row for row in singles}
    assert all(row == by_id[row["id"]] for rows in read(folder).values() for row in rows)


def test_order_of_the_file_decides_nothing(divide, make_row):
    rng = random.Random(5)
    # Questions repeat within pairs of books, so rows hang together by question, by book, or both.
    rows = [make_row(n, f"question {n % 20} {rng.randrange(4)}", f"a{n}", book=n % 40) for n in range(200)]
    for settings in ({}, grouped({})):
        divide(rows, "one", **settings)
        shuffled = rows[:]
        rng.shuffle(shuffled)
        _report, other = divide(shuffled, "two", **settings)
        for name in NAMES:
            assert (other / f"{name}.jsonl").read_bytes() == (other.parent / f"one/{name}.jsonl").read_bytes()


def test_the_seed_decides_and_rows_are_shuffled(divide, singles):
    first, one = divide(singles, "one", seed=1)
    again, _ = divide(singles, "again", seed=1)
    _, two = divide(singles, "two", seed=2)
    assert first.digests == again.digests
    assert place_of(one) != place_of(two)
    ids = [row["id"] for row in read(one)["train"]]
    assert ids != sorted(ids)
    assert ids != [row["id"] for row in singles if row["id"] in set(ids)]


def test_equal_questions_stay_together(divide, make_row):
    rng = random.Random(3)
    variants = ["{}", "{}  ", "  {}", "\t{}"]
    rows = [
        make_row(
            n, rng.choice(variants).format(rng.choice([str.upper, str.lower])(f"Ɛdeɛn {n // 4}")), f"a{n}"
        )
        for n in range(400)
    ]
    report, folder = divide(rows)
    places = place_of(folder)
    assert all(len({places[f"r{n}"] for n in range(first, first + 4)}) == 1 for first in range(0, 400, 4))
    assert all(pair.normalised == pair.exact == 0 for pair in report.leakage.values())
    assert abs(report.train - 320) <= 4


def test_equal_questions_with_another_system_text_are_free(divide, make_row):
    rows = [make_row(n, "same") for n in range(100)]
    for n, row in enumerate(rows):
        row["conversations"].insert(0, {"role": "system", "content": f"s{n}"})
    report, _ = divide(rows)
    assert (report.train, report.val, report.test) == (80, 10, 10)


def test_groups_stay_together_also_through_shared_questions(divide, make_row):
    # Books 2k and 2k+1 share one question, so they are one block of ten rows.
    rows = [
        make_row(n, f"shared {n // 10}" if n % 5 == 0 else f"question {n}", f"a{n}", book=n // 5)
        for n in range(500)
    ]
    report, folder = divide(rows, **grouped({}))
    places = place_of(folder)
    assert all(len({places[f"r{n}"] for n in range(first, first + 10)}) == 1 for first in range(0, 500, 10))
    assert (report.train, report.val, report.test) == (400, 50, 50)
    assert all((pair.normalised, pair.groups) == (0, 0) for pair in report.leakage.values())
    assert report.strategy == "group"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([80, 10, 10], (80, 10, 10)),
        ([25, 25, 25, 25], (50, 25, 25)),
        ([60, 30, 5, 5], (90, 5, 5)),
        ([5] * 20, (80, 10, 10)),
        ([50, 20, 10, 8, 5, 4, 3], (80, 10, 10)),
    ],
)
def test_groups_fill_the_shares_greedily(divide, make_row, sizes, expected):
    books = [book for book, size in enumerate(sizes) for _ in range(size)]
    rows = [make_row(n, f"q{n}", book=book) for n, book in enumerate(books)]
    report, _ = divide(rows, **grouped({}))
    assert report.train + report.val + report.test == 100
    assert all(
        abs(got - want) <= 1
        for got, want in zip((report.train, report.val, report.test), expected, strict=True)
    )


def test_random_groups_come_near_the_shares(divide, make_row):
    rng = random.Random(9)
    books = [book for book in range(120) for _ in range(rng.randint(1, 15))]
    rows = [make_row(n, f"q{n}", book=f"b{book}") for n, book in enumerate(books)]
    report, folder = divide(rows, **grouped({}))
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(getattr(report, name) / len(rows) - share) < 0.01
    sides = Counter((row["metadata"]["book"], name) for name, part in read(folder).items() for row in part)
    assert len(sides) == 120


def test_missing_group_is_named_with_its_origin(divide, make_row):
    rows = [make_row(n, f"q{n}", book=n) for n in range(20)]
    del rows[7]["metadata"]["book"]
    with pytest.raises(DataError) as error:
        divide(rows, **grouped({}))
    assert error.value.where == "row r7 (rows.jsonl:8)"
    assert "'book'" in error.value.what
    assert "group_by" in error.value.fix


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_too_few_rows_are_refused(divide, make_row, tmp_path, count):
    with pytest.raises(DataError, match="empty") as error:
        divide([make_row(n, f"q{n}") for n in range(count)])
    assert "at least 10" in error.value.fix
    assert not (tmp_path / "splits").exists()


def test_one_group_cannot_be_divided(divide, make_row):
    with pytest.raises(DataError, match="100 rows in 2 groups that must stay together leave test empty"):
        divide([make_row(n, f"q{n}", book=n % 2) for n in range(100)], **grouped({}))
    with pytest.raises(DataError, match="in 1 groups"):
        divide([make_row(n, "same", f"a{n}") for n in range(100)])


def test_no_rows_at_all(divide):
    with pytest.raises(DataError, match="holds no rows"):
        divide([])


def test_no_validation_share_gives_an_empty_file(divide, singles):
    report, folder = divide(singles, train=0.9, val=0.0, test=0.1)
    assert (report.train, report.val, report.test) == (180, 0, 20)
    assert (folder / "val.jsonl").read_text() == ""


def test_a_given_validation_file_becomes_val(divide, make_row, singles):
    given = [make_row(1000 + n, f"  QUESTION {n}", "other") for n in range(20)]
    given += [make_row(2000 + n, f"new {n}") for n in range(30)]
    report, folder = divide(singles, validation=given)
    parts = read(folder)
    assert sorted(row["id"] for row in parts["val"]) == sorted(row["id"] for row in given)
    assert report.removed == 20
    assert (report.train, report.val, report.test) == (160, 50, 20)
    assert {row["id"] for row in parts["train"] + parts["test"]} == {f"r{n}" for n in range(20, 200)}
    assert all(pair.normalised == 0 for pair in report.leakage.values())
    assert sum(report.requested.values()) == pytest.approx(1)
    assert report.requested["val"] == pytest.approx(50 / 230)
    assert report.requested["train"] == pytest.approx(160 / 230)


def test_validation_that_holds_everything_is_refused(divide, singles):
    with pytest.raises(DataError, match="0 rows"):
        divide(singles, validation=singles)


def test_groups_shared_with_a_given_validation_file_are_reported(divide, make_row):
    rows = [make_row(n, f"q{n}", book=n // 4) for n in range(100)]
    report, _ = divide(rows, validation=[make_row(500, "v", book=3)], **grouped({}))
    assert report.leakage["train/val"].groups + report.leakage["val/test"].groups == 1


def test_report_digests_and_duplicates_come_from_the_files(divide, make_row, singles):
    doubled = singles + [make_row(500 + n, f"Question  {n}", "YES") for n in range(7)]
    report, folder = divide(doubled)
    assert report.duplicates == 7
    for name in NAMES:
        expected = hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest()
        assert report.digests[name] == f"sha256:{expected}"


def test_rejected_share_is_that_of_the_format_phase(divide, singles):
    formatted = FormatReport(
        rows=250, kept=200, rejected=5, duplicates=45, reasons={}, formats={}, max_rejected=0.04
    )
    report, _ = divide(singles, formatted=formatted)
    assert (report.rejected_share, report.max_rejected) == (0.02, 0.04)
    assert divide(singles)[0].rejected_share == 0


def test_an_earlier_split_is_replaced_as_a_whole(divide, singles, tmp_path):
    divide(singles)
    (tmp_path / "splits/old.jsonl").write_text("")
    divide(singles)
    assert sorted(file.name for file in (tmp_path / "splits").iterdir()) == [
        "test.jsonl",
        "train.jsonl",
        "val.jsonl",
    ]
