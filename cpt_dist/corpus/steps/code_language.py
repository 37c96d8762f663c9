"""Which programming language a text is in, by what its lines begin with.

It is good enough for counting and for choosing a comment's marker, and says nothing where two languages are as likely.
"""

from __future__ import annotations

import re

_READ_CHARACTERS, _READ_LINES = 20_000, 150
_MIN_LINES = 2
_SIGNS = {
    "python": r"(?:async )?def \w+\(.*(?::|,|\($)|class \w+.*:$|from [\w.]+ import |import [\w.]+(?: as \w+|, [\w.]+)*$"
    r"|elif .*:$|if __name__ ==|except\b.*:$|@\w[\w.]*$",
    "javascript": r"(?:export )?(?:async )?function\b|(?:const|let|var) [\w{\[].*=|import .* from ['\"]|export "
    r"|module\.exports|.*=>|.*\brequire\(|.*===",
    "java": r"package [\w.]+;|import (?:static )?[\w.*]+;|(?:public|private|protected) .*[{;]$|@Override",
    "c": r"#\s*(?:include|define|ifdef|ifndef|endif)|typedef |.*->\w+"
    r"|(?:static |extern |const |unsigned )*(?:int|void|char|struct \w+|size_t) \**\w+\(",
    "cpp": r"#\s*include <\w+>$|template\s*<|namespace \w+|using namespace|.*std::|class \w+.*[{:]$"
    r"|(?:public|private):$",
    "go": r"package \w+$|func (?:\(.*\) )?\w+\(|import \($|.*:= |type \w+ (?:struct|interface) \{",
    "rust": r"(?:pub(?:\(.*\))? )?(?:fn|struct|enum|trait|mod) \w+|use [\w:]+|impl\b|let mut |.*\.unwrap\(\)|#!?\[",
    "shell": r"#!/.*sh$|(?:el)?if \[|fi$|then$|done$|esac$|export \w+=|echo |local \w+",
    "sql": r"(?:CREATE|SELECT|INSERT|UPDATE|DELETE|ALTER|DROP|FROM|WHERE|JOIN)\b",
    "ruby": r"require ['\"]|def \w+[?!]?(?:\(.*\))?$|end$|module [A-Z]\w*$|class [A-Z]\w*(?: < .*)?$|attr_\w+ ",
    "php": r"<\?php|\$\w+\s*=|function \w+\(.*\)$|.*\$this->|namespace [\w\\]+;",
    "html": r"<!DOCTYPE|</?(?:html|head|body|div|p|a|span|table|tr|td|ul|li|script|link|meta)\b",
    "css": r"[.#@]?[\w-]+(?:[ ,>:.#][^;{]*)?\{$|[a-z-]+:\s*[^;{}]+;$",
}
LANGUAGES = {name: re.compile(rf"\s*(?:{signs})") for name, signs in _SIGNS.items()}
"""Name -> what a line that speaks for it begins with."""
UNKNOWN = "unknown"


def code_language(text: str) -> str:
    """The language that most lines speak for, by at least two of them and more than for any other; else unknown."""
    lines = [line for line in text[:_READ_CHARACTERS].split("\n") if line.strip()][:_READ_LINES]
    votes = {name: sum(1 for line in lines if signs.match(line)) for name, signs in LANGUAGES.items()}
    # All of C is C++ too, so a sign of C++ alone decides between the two.
    if votes["cpp"] and votes["c"]:
        votes["cpp" if votes["cpp"] >= 2 or "std::" in text else "c"] += min(votes["cpp"], votes["c"])
    (first, most), (_, second) = sorted(votes.items(), key=lambda pair: -pair[1])[:2]
    return first if most >= _MIN_LINES and most > second else UNKNOWN
