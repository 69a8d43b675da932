"""Sentences, words in capitals and the language of a text, as IFEval's checks count them; nltk and langdetect load when needed.

The statistics of English sentences are those of nltk's `punkt_tab`, which nltk downloads; here they come with a package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from jumar.schema.errors import Exit, ToolError


def _missing(fault: ImportError) -> ToolError:
    what = f"checking instructions (IFEval) needs {fault.name}, which is not installed"
    return ToolError(what, hint='pip install "jumar-eval[ifeval]"', code=Exit.ENVIRONMENT)


@cache
def language_of() -> Callable[[str], str | None]:
    """Text -> its language ("en"), None for a text without a letter. Raises ToolError (4) without langdetect.

    langdetect draws parts of a text; with a seed, the same text always has the same language.
    """
    try:
        import langdetect
    except ImportError as fault:
        raise _missing(fault) from None
    langdetect.DetectorFactory.seed = 0

    @lru_cache(maxsize=64)
    def detect(text: str) -> str | None:
        try:
            return str(langdetect.detect(text))
        except langdetect.LangDetectException:
            return None

    return detect


@cache
def sentences() -> Callable[[str], list[str]]:
    """Text -> its English sentences, as `nltk.sent_tokenize`. Raises ToolError (4) without nltk."""
    try:
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
        from punkt.data.english import ABBREV_TYPES, COLLOCATIONS, ORTHO_CONTEXT, SENT_STARTERS
    except ImportError as fault:
        raise _missing(fault) from None
    known: Any = PunktParameters()
    known.abbrev_types, known.collocations, known.sent_starters = set(ABBREV_TYPES), set(COLLOCATIONS), set(SENT_STARTERS)
    known.ortho_context.update(ORTHO_CONTEXT)
    found: Callable[[str], list[str]] = PunktSentenceTokenizer(known).tokenize
    return found


@cache
def capital_words() -> Callable[[str], int]:
    """Text -> how many of its words are in capitals, words as of `nltk.word_tokenize`. Raises ToolError (4) without nltk."""
    split = sentences()
    from nltk.tokenize import NLTKWordTokenizer

    words = NLTKWordTokenizer().tokenize
    return lambda text: sum(word.isupper() for sentence in split(text) for word in words(sentence))
