"""The data section as a page of its own, small enough to be looked at inside other tools."""

from tasks.report.data_view import DataReports as DataReports
from tasks.report.data_view import data_view
from tasks.report.learning_view import learning_view
from tasks.report.rendering import environment


def render_data_page(name: str, reports: DataReports) -> str:
    """Write what is known of the data as one HTML file that loads and runs nothing.

    Args:
        name: Of the run.
        reports: What the data phases found so far.
    """
    return environment().get_template("data-page.html.jinja").render(
        name=name,
        data=reports,
        view=data_view(reports),
        learn=learning_view(reports.learning) if reports.learning else None,
    )  # fmt: skip
