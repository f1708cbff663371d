"""A matplotlib Figure as SVG inside an HTML page: its colours follow the page's theme, its ids are its own.

The same figure gives the same bytes: matplotlib's ids are salted, and its metadata, which hold a date, are left out.
"""

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from siimcovid.reporting.figures.figure_style import ACCENT, FAINT, INK, LINES

#: Colour in the figure -> what the page says instead, so that it can differ between light and dark.
THEME = {INK: "currentColor", FAINT: "var(--line)", ACCENT: "var(--accent)"}
THEME |= {colour: f"var(--{name})" for name, colour in LINES.items()}


def inline(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an <svg> element as wide as its place, with `alt` for those who cannot see it.

    name: unlike that of any other figure of the page; its ids begin with it.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg ") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]+", "font-family: inherit", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", text)
    for colour, themed in THEME.items():
        text = text.replace(colour, themed)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    head, rest = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]+"', head)[0]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view_box}'
    return Markup(f'{head} role="img" aria-label="{escape(alt)}">{rest.strip()}')
