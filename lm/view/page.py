"""Strips and tables as one HTML page, which needs nothing else and can be sent to others."""

import html
from pathlib import Path

from lm.training.report import write_page
from lm.view.counts import Table
from lm.view.look import Look
from lm.view.strips import Row, Strip

FOLDS = 3  # columns of a long table
STYLE = """<style>
.strip{display:flex;flex-wrap:wrap;gap:3px;margin:.4rem 0 1rem}
.token{display:inline-flex;flex-direction:column;max-width:100%;
border:1px solid #ddd;border-top:3px solid #bbb;border-radius:3px;
padding:0 .25rem;font:13px/1.45 ui-monospace,monospace;overflow-wrap:anywhere;unicode-bidi:isolate}
.token bdi{white-space:pre-wrap;min-height:1.45em}.token small{color:#777;font-size:10px}
.token .p{color:#17683a;border-top:1px dotted #ccc}.token .n{color:#bbb}.asked{background:#eaf6ee}
.mask .r,.key.mask{background:#f6c6c1}.sentinel .r,.key.sentinel{background:#e5ccf2}.role .r,.key.role{background:#f5e3a3}
.special .r,.key.special{background:#cfe3f5}.prefix .r,.key.prefix{box-shadow:inset 0 -2px #d07d18}
.even{border-top-color:#5b8db8}
.key.asked{background:#eaf6ee;outline:1px solid #17683a}.legend span{margin-right:1rem;white-space:nowrap}
.scroll{overflow-x:auto}td bdi{font-family:ui-monospace,monospace}.note{color:#666}th.r{text-align:right}
</style>"""


def write(look: Look, path: Path) -> Path:
    """Writes the page and returns its path."""
    body = [f"<h1>{html.escape(look.title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in look.about)]
    body.append(_legend(look))
    body += [_row(row) for row in look.rows]
    body += [_table(table) for table in look.tables]
    body += [f"<p>{html.escape(line)}</p>" for line in look.notes]
    return write_page(path, look.title, body, head=STYLE)


def _legend(look: Look) -> str:
    keys = "".join(f'<span><i class="key {kind}"></i>{words}</span>' for kind, words in look.legend)
    packed = any("segment" in strip.lines for row in look.rows for part in row.parts.values() for strip in part)
    return f"<p class=legend>{keys}{'<span>the upper edge: one colour, then another for each segment</span>' * packed}</p>"


def _row(row: Row) -> str:
    out = [f"<h2>{html.escape(row.title)}</h2>"]
    out += [f"<p>{html.escape(name)}: <bdi>{html.escape(value)}</bdi></p>" for name, value in row.facts.items()]
    for name, strips in row.parts.items():
        for strip in strips:
            out.append(f"<p>{html.escape(strip.headed(name))}</p>")
            out.append(f"<div class=strip>{''.join(_token(strip, j) for j in range(len(strip.ids)))}</div>")
    return "\n".join(out)


def _token(strip: Strip, j: int) -> str:
    """A box: what is read, below it what is predicted there and what the objective says; its place and number as a tooltip."""
    kind = [
        strip.kinds[j],
        *["prefix"] * strip.prefix[j],
        *["asked"] * strip.asked[j],
        *["even"] * (strip.segments[j] % 2 == 0),
    ]
    title = f"token {j} of the row, id {strip.ids[j]}, segment {strip.segments[j]}"
    out = [f'<span class="token {" ".join(kind)}" title="{html.escape(title)}">']
    for name, texts in strip.lines.items():
        text = html.escape(texts[j])
        if name == "reads":
            out.append(f"<bdi class=r>{text}</bdi>")
        elif name == "predicts":
            out.append(f"<bdi class={'p' if strip.asked[j] else 'n'}>{text}</bdi>")
        else:
            out.append(f"<small>{name} {text}</small>")
    return "".join([*out, "</span>"])


def _table(table: Table) -> str:
    table = table.folded(FOLDS) if table.long else table
    cell = lambda name, text: f"<td{'' if name in table.left else ' class=r'}><bdi>{html.escape(text)}</bdi>"
    head = "".join(cell(name, name).replace("<td", "<th", 1) for name in table.head)
    rows = "".join("<tr>" + "".join(cell(name, text) for name, text in zip(table.head, row, strict=True)) for row in table.rows)
    title, note = html.escape(table.title), html.escape(table.note)
    return f"<h2>{title}</h2><div class=scroll><table><tr>{head}{rows}</table></div><p class=note>{note}</p>"
