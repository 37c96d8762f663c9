"""The schema of what curation does to the documents of one source, step by step.

It is a part of `cpt_dist.config` in a file of its own; what runs the steps, and when, is configured elsewhere. The
values of a source are those of its profile (`curation_profiles.py`) with the source's own on top. Steps, scores and
formulas are explained in docs/curation_steps.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

AUTO, PROSE, CODE, TABLE = "auto", "prose", "code", "table"
CONTENTS = (AUTO, PROSE, CODE, TABLE)
PYCLD2, FASTTEXT, NO_DETECTOR = "pycld2", "fasttext", "none"
DETECTORS = (PYCLD2, FASTTEXT, NO_DETECTOR)
DROP, LABEL, KEEP = "drop", "label", "keep"
MASK, COUNT, OFF = "mask", "count", "off"
PII_POLICIES = (MASK, DROP, COUNT, OFF)
STRIP, SPDX = "strip", "spdx"
HEADER_POLICIES = (KEEP, STRIP, SPDX)
ANNOTATE = "annotate"
INPUT_ORDER, FIELD_ORDER, DEPENDENCIES = "input", "field", "dependencies"
JOIN_ORDERS = (INPUT_ORDER, FIELD_ORDER, DEPENDENCIES)
COMPONENTS = ("gopher", "c4", "fineweb", "repetition", "format", "density", "perplexity", "relevance", "keywords")
"""Scores between 0 and 1 that `quality` is the weighted mean of."""
PII_TYPES = (
    "email",
    "phone",
    "ipv4",
    "ipv6",
    "credit_card",
    "iban",
    "us_ssn",
    "api_key",
    "private_key",
    "jwt",
    "url_password",
)
"""What the built-in detectors find."""


@dataclass
class RepairConfig:
    mojibake: bool = True
    """Repair text that was decoded with the wrong encoding (ftfy), in lines that aren't ASCII and look so. Quotes,
    ligatures, widths, HTML and line ends are left alone."""
    unicode: bool = True
    """Bring text into Unicode NFC without control characters (docs/prepare.md). false: only line ends become LF, as for
    code, where the characters of a string are part of the program."""


@dataclass
class LanguageConfig:
    detector: str = PYCLD2
    """pycld2, fasttext (needs `model`) or none."""
    model: str | None = None
    """fasttext: file of the model, such as lid.176.ftz or GlotLID."""
    wanted: list[str] = field(default_factory=list)
    """Codes of languages, such as en; zh also means zh-Hant. Empty: all are wanted, and documents are only labelled."""
    min_confidence: float = 0.5
    """Least share of a document's text (pycld2) or probability (fasttext) in wanted languages, taken together."""
    on_unwanted: str = DROP
    """A document in other languages: drop it, or label it only."""
    unknown: str = KEEP
    """A document whose language can't be told (too short, no words): keep or drop."""
    paragraphs: str = KEEP
    """Paragraphs in other languages inside a document that stays: keep or drop them. Needs `wanted`."""
    min_paragraph_bytes: int = 120
    """Shorter paragraphs aren't judged on their own; they stay."""


@dataclass
class PerplexityConfig:
    enabled: bool = True
    """Score documents with a language model that is fitted on a sample of the source, or with `model`."""
    model: str | None = None
    """Instead of the fitted one: file of a KenLM model (.arpa, .bin, .klm; needs kenlm) or folder of a Hugging Face
    causal language model. The percentiles are those of the sample either way."""
    band: list[float] = field(default_factory=lambda: [0.02, 0.98])
    """Percentiles of bits per byte between which the component is 1; it falls to 0 at the ends of the sample."""
    order: int = 5
    """Bytes in the longest n-gram of the built-in model."""
    bits: int = 20
    """log2 of its counters per order."""
    window_bytes: int = 4096
    """Bytes that a Hugging Face model sees at once; windows overlap by half."""


@dataclass
class RelevanceConfig:
    enabled: bool = True
    """Score documents by how much more they look like the domain sources than like replay."""
    method: str = "classifier"
    """classifier (logistic regression over hashed words and pairs of words) or importance (DSIR: log of the ratio of
    hashed n-gram probabilities, arXiv 2302.03169)."""
    bits: int = 18
    """log2 of the hashed features."""
    epochs: int = 5
    """classifier: passes over the sample."""


@dataclass
class QualityConfig:
    enabled: bool = True
    """Score documents; without it nothing is dropped for quality either."""
    content: str = AUTO
    """What documents are: prose, code or table, which decides the rules that apply; auto decides for each one."""
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "gopher": 1.0,
            "c4": 0.5,
            "fineweb": 0.5,
            "repetition": 1.0,
            "format": 1.0,
            "density": 0.5,
            "perplexity": 1.0,
            "relevance": 1.0,
            "keywords": 0.0,
        }
    )
    """Component -> its weight in `quality`; renormalised over the components that a document has."""
    bounds: dict[str, list[Any]] = field(default_factory=dict)
    """Measure -> [least, most] of the rules that read it, null for none: {words: [20, null]}. They change the
    components; docs/curation_steps.md lists measures and defaults."""
    thresholds: dict[str, list[Any]] = field(default_factory=dict)
    """Component, measure or quality -> [least, most]; a document outside is dropped. Empty: nothing is dropped."""
    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])
    """Gopher's words, at least two of which a document in one of `stop_word_languages` has."""
    stop_word_languages: list[str] = field(default_factory=lambda: ["en"])
    """Languages that `stop_words` are of."""
    keywords: list[str] = field(default_factory=list)
    """Words and phrases of up to three words of the domain, compared as whole words in lower case."""
    keywords_full: float = 20.0
    """Keywords in 1,000 words that make the component `keywords` 1."""
    window_words: int = 2000
    """A repeat counts only within so many words, as repeats otherwise become more with length alone."""
    perplexity: PerplexityConfig = field(default_factory=PerplexityConfig)
    relevance: RelevanceConfig = field(default_factory=RelevanceConfig)
    sample_characters: int = 8_000_000
    """Text of each source that models are fitted on: the documents with the smallest ids."""
    columns: list[str] = field(default_factory=lambda: ["quality"])
    """Scores that become columns of the shards (float16)."""


@dataclass
class PiiConfig:
    policy: str = MASK
    """What becomes of hits: mask (a typed placeholder, such as [EMAIL]), drop (the document), count (nothing else) or
    off."""
    policies: dict[str, str] = field(default_factory=dict)
    """Type -> a policy of its own: {ipv4: count, api_key: drop}."""
    drop_from: int = 1
    """drop: so many hits of the type drop the document."""
    key_variable: str | None = None
    """Environment variable with a secret key: placeholders then carry 8 hexadecimal characters of a keyed hash, so
    that the same value gets the same one. null: all values of a type get the same one."""
    names: str = OFF
    """Names of persons, found by presidio (extra of its own): mask, drop, count or off."""
    names_language: str = "en"
    """Language of presidio's engine."""
    names_model: str | None = None
    """spaCy model behind presidio, installed beforehand; null finds none, which is an error if `names` isn't off."""


@dataclass
class CleaningConfig:
    citations: bool = False
    """Normalise spacing in US case citations that parse as such: 410 U. S. 113 becomes 410 U.S. 113."""
    page_furniture: bool = False
    """Remove lines that hold only a page number, where at least three of one kind count up through the document."""
    abbreviations: str = KEEP
    """Medical ones: keep them, or annotate the first of each where its meaning is sure: hx (history)."""
    generated: str = KEEP
    """Code that a program wrote, and minified code: drop or keep."""
    licence_headers: str = KEEP
    """Comments with a licence at the top of code: keep, strip, or spdx (one line with the SPDX identifier, where it is
    sure). Code that doesn't parse afterwards as it did before stays as it was."""


@dataclass
class JoiningConfig:
    by: str | None = None
    """Field of a raw record, such as repository or book: documents of the source in which it has the same value become
    one document, after everything else that is done to them and before chunking. null: they stay apart."""
    order: str = INPUT_ORDER
    """How they follow each other: input (as in the raw files), field (by `order_field`, as numbers if all of them are),
    or dependencies (files of code after those that they import, each under a comment with its path)."""
    order_field: str = "path"
    """Field of a raw record that gives the order; for dependencies the path in the repository."""
    separator: str = "\n\n"
    """What stands between two documents, unless files are in the order of dependencies."""


@dataclass
class ChunkingConfig:
    max_characters: int = 0
    """Longer documents are cut at headings, else paragraphs, lines, sentences, words, characters; 0: never."""
    min_fill: float = 0.5
    """A boundary counts only if the chunk before it has at least this share of max_characters."""


@dataclass
class StepsConfig:
    repair: RepairConfig = field(default_factory=RepairConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    pii: PiiConfig = field(default_factory=PiiConfig)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    joining: JoiningConfig = field(default_factory=JoiningConfig)
    chunking: ChunkingConfig = field(default_factory=ChunkingConfig)
