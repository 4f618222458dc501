"""A grammar of Python function bodies, in llguidance's dialect of Lark: a subset in which whatever is derived parses.

The body begins behind the line that ends the signature, or behind the docstring's. It is indented by 4 spaces, blocks in it by
8 and 12; the blocks at 12 hold no others. The dialect has no tokens for indentation, so each level is written out.

    statements    return, raise, assert, pass, break, continue, del, assignments (also augmented, to several names, attributes
                  or items), calls and other expressions; if, elif, else, for, while, with, try with except and finally
    expressions   all operators, comparisons, not, and, or, conditional ones, calls with positional and then keyword arguments,
                  attributes, items and slices, tuples in parentheses, lists, dicts, sets, comprehensions, lambdas, numbers,
                  strings on one line in plain ASCII
    left out      functions and classes inside, imports, decorators, annotations, f-strings, strings over several lines, starred
                  arguments, walrus, global, yield, await, match, lines that go on in brackets, `;`

The text ends at the beginning of the next statement that is not indented, which is how a model shows that a function is over,
or where the model ends it.
"""

import keyword

_STATEMENTS = """\
simple: "return" (" " exprs)? | "raise " expr (" from " expr)? | "raise" | "assert " expr (", " expr)? | "pass" | "break"
      | "continue" | "del " target | assignment | exprs
assignment: targets " = " exprs | target " " AUGMENTED " " exprs
targets: target ("," " "? target)*
target: NAME | primary "." NAME | primary "[" subscript "]"
exprs: expr ("," " "? expr)*

expr: or_test (" if " or_test " else " expr)? | "lambda" (" " NAME (", " NAME)*)? ": " or_test
or_test: and_test (" or " and_test)*
and_test: not_test (" and " not_test)*
not_test: ("not ")* comparison
comparison: sum (COMPARED sum)*
sum: signed (" "? /[-+*\\/%&|^@]|\\*\\*|\\/\\/|<<|>>/ " "? signed)*
signed: /[-+~]/? primary
primary: atom (trailer)*
trailer: "." NAME | "(" arguments? ")" | "[" subscript "]"
arguments: (expr ("," " "? expr)* ("," " "? keyword_ ("," " "? keyword_)*)?) | (keyword_ ("," " "? keyword_)*)
         | expr comprehension
keyword_: NAME "=" expr
subscript: expr | expr? ":" expr? (":" expr?)?
atom: NAME | CONSTANT | NUMBER | STRING | "(" ")" | "(" expr ")" | "(" expr "," " "? (exprs)? ")" | "(" expr comprehension ")"
    | "[" "]" | "[" exprs "]" | "[" expr comprehension "]" | "{" "}" | "{" pair ("," " "? pair)* "}"
    | "{" pair comprehension "}" | "{" exprs "}" | "{" expr comprehension "}"
pair: expr ": " expr
comprehension: (" for " names " in " or_test (" if " or_test)*)+
names: NAME ("," " "? NAME)*

AUGMENTED: /([-+*\\/%&|^]|\\*\\*|\\/\\/|<<|>>)=/
COMPARED: / ?(==|!=|<=|>=|<|>) ?/ | " is " | " is not " | " in " | " not in "
CONSTANT: "None" | "True" | "False"
NUMBER: /0|[1-9][0-9]{0,8}/ | /(0|[1-9][0-9]{0,5})\\.[0-9]{1,6}/
STRING: /"([ !#-\\[\\]-~]|\\\\[nt\\\\"'])*"/ | /'([ -&(-\\[\\]-~]|\\\\[nt\\\\"'])*'/
NAME: /[A-Za-z_][A-Za-z0-9_]{0,30}/ & ~/(KEYWORDS)/
NL: /\\n{1,3}/
COMMENT: /#[ -~]*/
TAIL: /def |class |if |@|#|[a-zA-Z_]/
"""


def of_bodies() -> str:
    """The grammar: `start` is a body and the first characters behind it."""
    levels = (4, 8, 12)
    rules = ["start: block4 TAIL?"]
    for level in levels:
        indent, deeper = " " * level, level + 4
        rules.append(f"block{level}: comment{level}* line{level} (line{level} | comment{level})*")
        rules.append(f'comment{level}: "{indent}" COMMENT NL')
        if deeper not in levels:
            rules.append(f'line{level}: "{indent}" simple NL')
            continue
        body = f'":" NL block{deeper}'
        rules.append(f'line{level}: "{indent}" (simple NL | compound{level})')
        rules.append(
            f'compound{level}: "if " expr {body} ("{indent}elif " expr {body})* ("{indent}else" {body})?\n'
            f'  | "for " names " in " exprs {body} ("{indent}else" {body})? | "while " expr {body} ("{indent}else" {body})?\n'
            f'  | "with " expr (" as " target)? {body}\n'
            f'  | "try" {body} (handler{level}+ ("{indent}finally" {body})? | "{indent}finally" {body})'
        )
        rules.append(f'handler{level}: "{indent}except" (" " primary (" as " NAME)?)? {body}')
    words = "|".join(keyword.kwlist)
    return "\n".join(rules) + "\n\n" + _STATEMENTS.replace("KEYWORDS", words)
