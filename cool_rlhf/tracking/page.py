"""A page that opens offline and needs nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cool_rlhf.tracking.estimate import clock_text
from cool_rlhf.tracking.figures import figure_html, last_value, script_hashes
from cool_rlhf.tracking.text import cut, number_text, signed, visible

if TYPE_CHECKING:
    import jinja2
    from plotly.graph_objects import Figure

TEMPLATES = Path(__file__).parent / "templates"


def render_page(title: str, template: str, parts: Mapping[str, Any], to_figure: Callable[[Any], Figure]) -> str:
    """The page's text: ``template`` filled with ``parts``, whose charts ``to_figure`` draws where it says ``| draw``.

    Everything that comes from data is escaped, and a content security policy admits no script but the page's own, by
    their hashes.
    """
    from plotly.offline import get_plotlyjs

    drawn: list[str] = []

    def draw(chart: Any) -> str:
        drawn.append(figure_html(to_figure(chart), f"figure-{len(drawn) + 1}"))
        return drawn[-1]

    environment = _environment(draw)
    body = environment.get_template(template).render(parts)
    scripts = [get_plotlyjs(), (TEMPLATES / "report.js").read_text(encoding="utf-8")] if drawn else []
    return environment.get_template("report.html.j2").render(
        title=title,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=script_hashes([*(f"<script>{script}</script>" for script in scripts), *drawn]),
        body=body,
    )


def _environment(draw: Callable[[Any], str]) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number_text, clock=clock_text, cut=cut, signed=signed, last=last_value, draw=draw)
    return environment
