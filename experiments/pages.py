"""The blocks of a report, and their Markdown, HTML and LaTeX. The LaTeX has only the tables, to be \\input."""

import base64
import html
import re
from dataclasses import dataclass, field
from pathlib import Path

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
img{max-width:100%}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}tr:hover{background:#f3f3f3}
.r{text-align:right}thead th{border-bottom:1px solid #222}pre{background:#f6f6f6;padding:.8rem;overflow:auto}
h2{margin-top:2rem}.wide{overflow-x:auto}"""


@dataclass(frozen=True)
class Text:
    """A cell of a table; `marks` are numbers of footnotes."""

    text: str
    bold: bool = False
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str
    bold: bool = False


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Picture:
    path: str  # relative to the report
    text: str


@dataclass(frozen=True)
class Markdown:
    """Markdown written by a study. Supported: headings, paragraphs, lists, tables, pictures, code, **bold**, `code` and
    links."""

    text: str


@dataclass(frozen=True)
class Table:
    name: str
    caption: str  # short, without a full stop
    align: str  # "l" or "r" for each column
    header: list[Text]
    rows: list[list[Text]]
    notes: list[str] = field(default_factory=list)  # the footnote of mark k is notes[k - 1]
    about: str = ""  # how to read it
    ruled_last: bool = False  # a line before the last row, which is a summary


Block = Heading | Paragraph | Code | Picture | Markdown | Table


def markdown(blocks: list[Block]) -> str:
    return "\n\n".join(_markdown(b) for b in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_md(text)}"
        case Paragraph(text, bold):
            return f"**{_md(text)}**" if bold else _md(text)
        case Code(text):
            return f"```\n{text}\n```"
        case Picture(path, text):
            return f"![{_md(text)}]({path})"
        case Markdown(text):
            return text.strip()
        case Table():
            show = lambda t: (f"**{_md(t.text)}**" if t.bold else _md(t.text)) + "".join(f"<sup>{k}</sup>" for k in t.marks)
            line = lambda row: f"| {' | '.join(show(t) for t in row)} |"
            rule = "|" + "|".join("---:" if a == "r" else "---" for a in block.align) + "|"
            lines = "\n".join([line(block.header), rule, *map(line, block.rows)])
            notes = [f"<sup>{k}</sup> {_md(note)}" for k, note in enumerate(block.notes, 1)]
            caption = _md(f"{block.caption}. {block.about}".strip())
            return "\n\n".join([caption, lines, *([" \\\n".join(notes)] if notes else [])])


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|<~$])", r"\\\1", text.replace("\n", " "))


def page(title: str, blocks: list[Block], folder: Path) -> str:
    """A self-contained HTML page; pictures are read from `folder` and embedded."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>\n"
    return head + "\n".join(_html(b, folder) for b in blocks) + "\n"


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text, bold):
            return f"<p><b>{html.escape(text)}</b></p>" if bold else f"<p>{html.escape(text)}</p>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Picture(path, text):
            return f"<p>{_image(path, html.escape(text), folder)}</p>"
        case Markdown(text):
            return _from_markdown(text, folder)
        case Table():
            mark = lambda t: f"<sup>{','.join(map(str, t.marks))}</sup>" if t.marks else ""
            show = lambda t: (f"<b>{html.escape(t.text)}</b>" if t.bold else html.escape(t.text)) + mark(t)
            kind = lambda a: " class=r" if a == "r" else ""
            line = lambda tag, row: "".join(f"<{tag}{kind(a)}>{show(t)}" for a, t in zip(block.align, row, strict=True))
            rows = "\n".join(f"<tr>{line('td', row)}" for row in block.rows)
            notes = "<br>".join(f"<sup>{k}</sup> {html.escape(note)}" for k, note in enumerate(block.notes, 1))
            caption = html.escape(f"{block.caption}. {block.about}".strip())
            return (
                f"<p>{caption}</p><div class=wide><table><thead><tr>{line('th', block.header)}</thead>"
                f"<tbody>\n{rows}\n</tbody></table></div>{f'<p><small>{notes}</small></p>' if notes else ''}"
            )


def _image(path: str, alt: str, folder: Path) -> str:
    data = base64.b64encode((folder / path).read_bytes()).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'


def _from_markdown(text: str, folder: Path) -> str:
    """HTML of the Markdown that `Markdown` supports; anything else stays as text."""
    pieces = []
    for part in re.split(r"(^```.*?^```$)", text.strip(), flags=re.M | re.S):
        if part.startswith("```"):
            pieces.append(f"<pre>{html.escape(part.split(chr(10), 1)[1].removesuffix('```'))}</pre>")
        else:
            pieces += [_paragraph(p.strip(), folder) for p in re.split(r"\n\s*\n", part) if p.strip()]
    return "\n".join(pieces)


def _paragraph(text: str, folder: Path) -> str:
    lines = text.splitlines()
    if heading := re.match(r"(#+) +", lines[0]):
        level = len(heading[1])
        rest = "\n".join(lines[1:])
        return f"<h{level}>{_inline(lines[0][heading.end() :], folder)}</h{level}>" + (_paragraph(rest, folder) if rest else "")
    if len(lines) > 1 and re.fullmatch(r"\|?[\s:|-]*-[\s:|-]*\|?", lines[1]):
        cells = lambda line: re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
        row = lambda tag, line: "<tr>" + "".join(f"<{tag}>{_inline(c.strip(), folder)}" for c in cells(line))
        body = "".join(row("td", line) for line in lines[2:])
        return f"<div class=wide><table><thead>{row('th', lines[0])}</thead><tbody>{body}</tbody></table></div>"
    if all(re.match(r"[-*] |  ", line) for line in lines):
        items = re.split(r"^[-*] ", text, flags=re.M)[1:]
        return "<ul>" + "".join(f"<li>{_inline(item.strip(), folder)}" for item in items) + "</ul>"
    return f"<p>{_inline(text, folder)}</p>"


def _inline(text: str, folder: Path) -> str:
    kept: list[str] = []  # code and escaped characters, protected from the rules below

    def keep(markup: str) -> str:
        kept.append(markup)
        return f"\0{len(kept) - 1}\0"

    text = re.sub(r"`([^`]+)`", lambda m: keep(f"<code>{html.escape(m[1])}</code>"), text)
    text = re.sub(r"\\([\\`*_|<~$\[\]])", lambda m: keep(html.escape(m[1])), text)
    text = re.sub(r"</?su[pb]>", lambda m: keep(m[0]), text)
    text = html.escape(text)
    text = re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", lambda m: _image(m[2], m[1], folder), text)
    text = re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\0(\d+)\0", lambda m: kept[int(m[1])], text)


TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: "\\" + c for c in "&%$#_{}"},
    **{
        "[": "{[}",
        "]": "{]}",
        "*": "{*}",
    },  # at the start of a row, they would be arguments of the line break before it
    **{"<": "$<$", ">": "$>$", "|": "$|$", '"': "''"},  # the default font (OT1) has other glyphs for these
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$", "≈": r"$\approx$"},
    **{"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "α": r"$\alpha$", "β": r"$\beta$"},
}


def escaped(text: str) -> str:
    """Escapes text for LaTeX, character by character."""
    return "".join(TEX.get(c, c) for c in text)


def latex(blocks: list[Block], label: str) -> str:
    tables = [_latex(b, label) for b in blocks if isinstance(b, Table)]
    return "\n\n".join([r"% \usepackage{array,booktabs,graphicx}", *tables]) + "\n"


def _latex(table: Table, label: str) -> str:
    mark = lambda t: rf"\textsuperscript{{{','.join(map(str, t.marks))}}}" if t.marks else ""
    show = lambda t: (rf"\textbf{{{escaped(t.text)}}}" if t.bold else escaped(t.text)) + mark(t)
    line = lambda row: " & ".join(show(t) for t in row) + r" \\"
    rows = [line(row) for row in table.rows]
    if table.ruled_last:
        rows.insert(-1, r"\midrule")
    notes = [rf"\textsuperscript{{{k}}}~{escaped(note)}." for k, note in enumerate(table.notes, 1)]
    notes = ([escaped(table.about)] if table.about else []) + notes
    align = table.align
    if max((len(row[0].text) for row in table.rows), default=0) > 32:  # long names in the first column: wrap them
        align = r">{\raggedright\arraybackslash\hangindent=1em}p{4.6cm}" + align[1:]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\small",
            rf"\caption{{{escaped(table.caption)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', f'{label}-{table.name}')}}}",
            r"\vspace{4pt}",
            # Natural width, scaled down if it is wider than the text.
            rf"\sbox0{{\begin{{tabular}}{{@{{}}{align}@{{}}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}%",
            r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
            *([r"\par\smallskip\footnotesize\raggedright", "\n".join(notes)] if notes else []),
            r"\end{table}",
        ]
    )
