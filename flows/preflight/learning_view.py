"""The look at the tokens on a terminal: the mask in colour, the numbers, the lengths, the advice."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from core.data.learning_reports import LearnReport, MaskedExample, OverfitReport, Token
from core.data.reports import Histogram

BAR = 32
MOST_BINS = 10
SPARKS = "▁▂▃▄▅▆▇█"

# Underlined as well, so that the mask can be read without colours. The two greens show where tokens end.
TRAINED = ("black on green underline", "black on bright_green underline")
TRAINED_SPECIAL = "bold white on dark_green underline"
SPECIAL, PROMPT, LOST = "magenta", "dim", "red strike"
OPEN, CLOSE = "⟦", "⟧"
_MARKS = {True: "[green]✓[/green]", False: "[yellow]![/yellow]"}
_COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}
_CONTROLS = str.maketrans({"\n": "⏎\n", "\r": "␍", "\t": "⇥"})


def show_learning(console: Console, report: LearnReport) -> None:
    """Print what the look found; errors are left to whoever stops the run for them."""
    for example in report.examples:
        _show_example(console, example)
    legend = Text.assemble(
        ("trained", TRAINED[0]), " ", ("special and trained", TRAINED_SPECIAL), " ", ("prompt", PROMPT), " ",
        ("special", SPECIAL), " ", ("cut off", LOST), "" if console.is_terminal else f"  {OPEN}trained{CLOSE}",
    )  # fmt: skip
    console.print(legend)
    console.print(numbers(report))
    console.print(f"tokens of {report.lengths.n:,} examples")
    for line in histogram_lines(report.lengths.histogram):
        console.print(line, markup=False)
    for finding in report.findings:
        if finding.level != "error":
            colour = _COLOURS[finding.level]
            fix = f"\n  {escape(finding.fix)}" if finding.fix else ""
            text = f"{escape(finding.where)}: {escape(finding.what)}{fix}"
            console.print(f"[{colour}]{finding.level}[/{colour}] {text}")


def _show_example(console: Console, example: MaskedExample) -> None:
    size = f"{example.n_tokens:,} tokens, {example.n_trained:,} trained"
    console.print(f"[bold]{example.label}[/bold]  {escape(example.id)} · {size}")
    console.print(mask_text(example, brackets=not console.is_terminal), soft_wrap=False)


def mask_text(example: MaskedExample, *, brackets: bool) -> Text:
    """Draw an example token by token.

    Args:
        example: The tokens and which of them are trained.
        brackets: Put trained stretches between brackets, where neither colour nor underline is shown.
    """
    text, is_open = Text(), False
    for place, token in enumerate(example.tokens):
        if brackets and token.trained != is_open:
            text.append(CLOSE if is_open else OPEN)
            is_open = token.trained
        if example.omitted and place == example.omitted_at:
            text.append(f" … {example.omitted:,} tokens … ", style="italic")
        lost = example.lost_from is not None and place >= example.lost_from
        text.append(token.text.translate(_CONTROLS), style=LOST if lost else _style(token, place))
    return text.append(CLOSE) if is_open else text


def _style(token: Token, place: int) -> str:
    if token.trained:
        return TRAINED_SPECIAL if token.special else TRAINED[place % 2]
    return SPECIAL if token.special else PROMPT


def numbers(report: LearnReport) -> Table:
    """Draw the numbers, each with a mark that says whether it is as it should be."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    for is_good, name, value in _rows(report):
        table.add_row(_MARKS[is_good], name, value)
    if report.overfit:
        good, words = _overfit_words(report.overfit)
        table.add_row("" if good is None else _MARKS[good], "one batch by heart", words)
    return table


def _rows(report: LearnReport) -> Iterator[tuple[bool, str, str]]:
    counts, lengths, trip = report.counts, report.lengths, report.round_trip
    of_all = f" of {report.of_rows:,}" if report.of_rows is not None else ""
    kept, fits = counts.untrained_rows == 0, counts.hurt_examples == 0
    yield counts.refused_rows == 0, "rows looked at", f"{report.sampled:,}{of_all}"
    yield (
        True,
        "tokens an example",
        f"median {lengths.median:,.0f}, 99 % up to {report.p99:,}, longest {lengths.largest:,}",
    )
    share = f"{counts.trained_share:.1%} ({counts.trained_tokens:,} of {counts.tokens:,})"
    yield counts.trained_tokens > 0, "trained tokens", share
    ends = f"{counts.closed_share:.1%} ({counts.closed_answers:,} of {counts.answers:,})"
    yield counts.closed_answers == counts.answers, "answers whose end is trained", ends
    cut = f"{counts.cut_examples:,} examples, {counts.lost_trained_share:.1%} of the trained tokens"
    yield fits, f"cut at {counts.max_length:,} tokens", cut
    yield kept, "rows with no trained token", f"{counts.untrained_rows:,}"
    yield (
        trip.failures == 0,
        "round trip text, mask, prompt",
        f"{trip.checked:,} rows, {trip.failures:,} failures",
    )
    yield counts.doubled_bos == 0, "doubled tokens of beginning", f"{counts.doubled_bos:,}"
    yield counts.marked_rows == 0, "rows with text of special tokens", f"{counts.marked_rows:,}"
    about_words = [
        finding for finding in report.findings if finding.where == "model.name" and finding.level == "warning"
    ]
    words = f"{counts.tokens_per_word:.2f}, {counts.unknown_share:.2%} unknown"
    yield not about_words, "tokens a word", words


def _overfit_words(overfit: OverfitReport) -> tuple[bool | None, str]:
    """Return whether it went well (None if nobody knows), and the words."""
    if overfit.verdict == "skipped":
        return None, f"skipped: {overfit.reason}"
    after = "no number" if overfit.loss_after is None else f"{overfit.loss_after:.2f}"
    before = "no number" if overfit.loss_before is None else f"{overfit.loss_before:.2f}"
    words = (
        f"{overfit.verdict} in {overfit.steps} steps: loss {before} to {after} {sparkline(overfit.losses)} "
    )
    words += f"({overfit.examples} examples, {overfit.seconds:.1f} s)"
    return {"learned": True, "undecided": None}.get(overfit.verdict, False), words


def sparkline(values: tuple[float, ...], width: int = 16) -> str:
    """Draw values as a line of small bars."""
    shown = values[:: -(-len(values) // width)] if values else ()
    top = max(shown, default=0.0)
    return "".join(SPARKS[round(value / top * (len(SPARKS) - 1))] for value in shown) if top > 0 else ""


def histogram_lines(histogram: Histogram) -> Iterator[str]:
    """Draw counts as bars, neighbouring bins together where there are many."""
    step = -(-len(histogram.counts) // MOST_BINS)
    edges = [*histogram.edges[:-1:step], histogram.edges[-1]]
    counts = [sum(histogram.counts[n : n + step]) for n in range(0, len(histogram.counts), step)]
    most, width = max(counts), len(f"{edges[-1]:,.0f}")
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * round(BAR * count / most) if most else ""
        thin = "▏" if count and not bar else ""
        yield f"  {low:>{width},.0f} – {high - 1:>{width},.0f}  {bar or thin:<{BAR}} {count:,}"
