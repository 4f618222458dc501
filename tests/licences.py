"""Licences of what this package depends on, as they are declared by the packages that are installed:

pip install '.[all]' && python -m tests.licences > docs/licences.md
"""

import re
from importlib import metadata

from packaging.requirements import Requirement

PACKAGE = "lm"
PERMISSIVE = re.compile(r"MIT|BSD|Apache|PSF|Python Software Foundation|Zlib|ISC|CC0|AFL|CNRI")
COPYLEFT = re.compile(r"GPL|GNU|MPL|Mozilla|EPL|not declared")
HEAD = """# Licences of the dependencies

What each package declares, of a plain installation and of the extra `all`, on Linux and Python 3.11; made by
`python -m tests.licences` from what is installed. A file with versions and licences for a machine to read, a software bill of
materials, is described in [releases](releases.md). Not permissive, or not declared: OTHERS; the table says which.

| package | licence | needed by |
|---|---|---|
"""


def required(name: str, extras: frozenset[str] = frozenset()) -> dict[str, str]:
    """Package -> licence, of all packages that the package with these extras needs, and it itself is not among them."""
    found: dict[str, str] = {}
    seen, left = set(), [(name, extras)]
    while left:
        name, extras = one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        about = metadata.distribution(name)
        if name != PACKAGE:
            found[about.metadata["Name"]] = licence(about)
        for requirement in map(Requirement, about.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or [""]):
                left.append((requirement.name, frozenset(requirement.extras)))
    return found


def licence(about: metadata.Distribution) -> str:
    """The licence expression, else what the classifiers say, else how the text of the licence begins, which is then said."""
    fields = about.metadata
    if expression := fields.get("License-Expression"):
        return expression
    named = [each.rpartition(" :: ")[2] for each in fields.get_all("Classifier") or () if each.startswith("License :: ")]
    if named := [each for each in named if each != "OSI Approved"]:
        return " AND ".join(named)
    file = f"licenses/{fields.get('License-File')}"
    text = fields.get("License") or (fields.get("License-File") and about.read_text(file)) or "none"
    first = next(line.strip() for line in text.splitlines() if line.strip())
    return first if fields.get("License") else f"not declared; its file begins: {first}"


def permissive(declared: str) -> bool:
    """Whether an expression such as "MIT AND (Apache-2.0 OR GPL-2.0)" can be met without a licence that asks for sources."""
    either = lambda words: any(PERMISSIVE.search(word) and not COPYLEFT.search(word) for word in words.split(" OR "))
    return all(either(part) for part in declared.split(" AND "))


def main() -> None:
    base, everything = required(PACKAGE), required(PACKAGE, frozenset({"all"}))
    others = sorted(name for name, words in everything.items() if not permissive(words))
    print(HEAD.replace("OTHERS", ", ".join(others)), end="")
    for name in sorted(everything, key=str.lower):
        print(f"| {name} | {re.sub('[|]', ' ', everything[name])} | {'lm' if name in base else 'all'} |")


if __name__ == "__main__":
    main()
