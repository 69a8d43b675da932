"""What the pages need beyond Sphinx and MyST: navigation by the home page, links between the languages, search in Chinese."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes, search
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

SECTION = re.compile(r"^## (.+)$|^- \[(.+?)\]\((.+?\.md)\)", re.MULTILINE)
CJK = "\u3400-\u9fff"
BOUNDARY = re.compile(rf"([{CJK}]+)|(\w[\w.-]*\w|\w)")
SPLIT_JS = f"""
function splitQuery(query) {{
  const out = [];
  for (const [, han, word] of query.matchAll(/([{CJK}]+)|([A-Za-z0-9_][A-Za-z0-9_]*)/g)) {{
    if (word) out.push(word);
    else if (han.length === 1) out.push(han);
    else for (let i = 0; i + 1 < han.length; i++) out.push(han.slice(i, i + 2));
  }}
  return out;
}}
"""


def navigation(text: str) -> str:
    """The home page's lists of links, one tree of contents for each of its headings."""
    trees: list[list[str]] = []
    for heading, title, target in SECTION.findall(text):
        if heading:
            trees.append([f":caption: {heading}", ":hidden:", ""])
        elif trees:
            trees[-1].append(f"{title.replace('`', '')} <{target.removesuffix('.md')}>")
    return "".join("\n```{toctree}\n" + "\n".join(tree) + "\n```\n" for tree in trees if len(tree) > 3)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == app.config.root_doc:
        source[0] += navigation(source[0])
    elif docname.startswith("examples/") or (docname.startswith("packages/") and not docname.endswith("/README")):
        # reached from a page that links to it
        app.env.metadata[docname]["orphan"] = True


def other_language(docname: str) -> str | None:
    """The page that says the same in the other language; None: there is no such page."""
    if docname in ("README", "README.zh-CN"):
        return "README.zh-CN" if docname == "README" else "README"
    if docname.startswith("docs/zh/"):
        return docname.replace("docs/zh/", "docs/", 1)
    return docname.replace("docs/", "docs/zh/", 1) if docname.startswith("docs/") else None


def away(app: Sphinx, docname: str, target: str) -> str:
    """Where a page of the other language is, seen from a page of this one."""
    tree = "en" if app.config.language == "zh_CN" else "zh"
    return posixpath.relpath(f"/{tree}/{target}.html", posixpath.dirname(f"/here/{docname}"))


class LinksElsewhere(SphinxTransform):
    """A page that is not of this build is the other language's, which stands beside it. Folders are named, and lead nowhere."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        for link in list(self.document.findall(addnodes.pending_xref)):
            name = link.get("reftarget", "")
            if link.get("refdomain") == "doc" and name not in self.env.found_docs:
                anchor = f"#{link['reftargetid']}" if link.get("reftargetid") else ""
                uri = away(self.app, self.env.docname, name) + anchor
                link.replace_self(nodes.reference("", "", *link.children, internal=False, refuri=uri))
            elif not link.get("refdomain") and Path(self.env.relfn2path(name)[1]).is_dir():
                link.replace_self(link.children)


def context(app: Sphinx, docname: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    other = other_language(docname)
    there = other and (Path(app.srcdir) / f"{other}.md").exists()
    home = "docs/index" if app.config.language == "zh_CN" else "docs/zh/index"
    context["other_language"] = away(app, docname, other if there else home)


class Chinese(search.SearchLanguage):
    """Words of Latin letters as they are, Chinese as pairs of neighbours: no dictionary, and every term of the field is found."""

    lang = "zh"
    language_name = "Chinese"
    js_splitter_code = SPLIT_JS

    def split(self, input: str) -> list[str]:
        words: list[str] = []
        for han, word in BOUNDARY.findall(input):
            words += [han[i : i + 2] for i in range(max(1, len(han) - 1))] if han else re.findall(r"\w+", word)
        return words

    def word_filter(self, word: str) -> bool:
        return len(word) > 1 or word.isalnum()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_search_language(Chinese)
    app.add_transform(LinksElsewhere)
    app.connect("source-read", read)
    app.connect("html-page-context", context)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
