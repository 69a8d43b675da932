"""Sphinx's settings for the documentation in English, and with `-t zh` in Chinese (scripts/docs.py builds both).

The sources are the repository's pages as they are: docs/, the README and those of the packages.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
CHINESE = tags.has("zh")  # noqa: F821 - Sphinx defines it

project, author, copyright = "jumar", "jumar", "jumar, Apache-2.0"
html_title = "jumar 文档" if CHINESE else "jumar"
language = "zh_CN" if CHINESE else "en"
extensions = ["myst_parser", "jumar_docs"]
source_suffix = {".md": "markdown"}
root_doc = "docs/zh/index" if CHINESE else "docs/index"

_readme = "README.zh-CN.md" if CHINESE else "README.md"
_pages = ["docs/zh/**.md"] if CHINESE else ["docs/*.md", "docs/guides/*.md"]
include_patterns = [_readme, "SECURITY.md", "packages/*/*.md", "examples/*/README.md", *_pages]
exclude_patterns = [
    *(".*", "benchmarks", "build", "cache", "dist", "runs", "tests", "wheelhouse"),  # not looked through
    *("packages/*/src", "packages/*/tests"),
]

myst_heading_anchors = 6  # as GitHub makes them
highlight_language = "text"
nitpicky = True

html_theme = "furo"
html_static_path = [str(HERE / "static")]
templates_path = [str(HERE / "templates")]
html_css_files = ["jumar.css"]
html_js_files = [("copy.js", {"defer": "defer"})]
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_use_index = False
html_sidebars = {
    "**": [
        *("sidebar/brand.html", "sidebar/language.html", "sidebar/search.html"),
        *("sidebar/scroll-start.html", "sidebar/navigation.html", "sidebar/scroll-end.html"),
    ]
}
# The colours of the reports that jumar-data writes.
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {
        "color-background-primary": "#fdfcf9",
        "color-background-secondary": "#f6f3ec",
        "color-background-border": "#dfdace",
        "color-foreground-primary": "#23211d",
        "color-foreground-secondary": "#69645a",
        "color-brand-primary": "#2c6a96",
        "color-brand-content": "#2c6a96",
        "color-brand-visited": "#2c6a96",
        "color-code-background": "#f3f0e8",
        "color-code-foreground": "#23211d",
        "color-inline-code-background": "#f3f0e8",
    },
    "dark_css_variables": {
        "color-background-primary": "#17191c",
        "color-background-secondary": "#1d2023",
        "color-background-border": "#35383c",
        "color-foreground-primary": "#e8e4db",
        "color-foreground-secondary": "#a39d92",
        "color-brand-primary": "#6aaedb",
        "color-brand-content": "#6aaedb",
        "color-brand-visited": "#6aaedb",
        "color-code-background": "#212428",
        "color-code-foreground": "#e8e4db",
        "color-inline-code-background": "#25282c",
    },
}
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
