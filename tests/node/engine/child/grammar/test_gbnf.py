"""GBNF, as llama.cpp's own examples use it."""

import pytest

from mycelia.node.engine.child.grammar.checker import read
from mycelia.node.engine.child.grammar.gbnf import GbnfError, lark_of_gbnf
from mycelia.node.engine.child.grammar.guidance import matcher

ARITHMETIC = """
root  ::= (expr "=" ws term "\\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \\t\\n]*
"""
JSON = r"""
root   ::= object  # a comment
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
CASES = [
    ('root ::= "yes" | "no"', ["yes", "no"], ["y", "yesno", ""]),
    (ARITHMETIC, ["a = 1\n", "1+2=3\n", "(1 +b)*3 = x \n\n"], ["1", "1=1"]),
    (JSON, ['{"a": [1, 2.5e3, "x\\n", {}], "b": null}', "{}"], ['{"a"}', "[1]"]),
    ('root ::= a | b\na ::= "ab" "c"\nb ::= "a" "bd"', ["abc", "abd"], ["ab"]),
    ('root ::= a | b | "(" root ")"\na ::= "ab" "c"\nb ::= "a" "bd"', ["abc", "((abd))"], ["(abc"]),
    ('root ::= "\\u00e9\\x41\\"\\\\\\n" [\\u00e9-\\u00ef&&-] [^\\n\\]a-c-]', ['éA"\\\nëx', 'éA"\\\n-d'], ['éA"\\\nëa']),
    ('root ::= "c"{2,3} | "d"{2} | "e"{1,} | ', ["cc", "ccc", "dd", "eee", ""], ["c", "cccc", "d"]),
    ('root ::= root "x" | "y"', ["y", "yxx"], ["x"]),
    ("root ::= [.]. [^x]", ["..\n", ".é-"], ["a.b"]),
    ('root ::= "a"\nroot ::= "b"', ["b"], ["a"]),
]


@pytest.mark.parametrize(("text", "valid", "invalid"), CASES)
def test_a_grammar_means_what_it_means_in_llama_cpp(
    byte_tokenizer: object, text: str, valid: list[str], invalid: list[str]
) -> None:
    made = matcher(byte_tokenizer, read(byte_tokenizer, "gbnf", text))

    def takes(answer: str) -> bool:
        copy, data = made.deep_copy(), list(answer.encode())
        return bool(copy.try_consume_tokens(data) == len(data) and copy.is_accepting())

    assert [answer for answer in valid if not takes(answer)] == []
    assert [answer for answer in invalid if takes(answer)] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rule root"),
        ('x ::= "y"', "no rule root"),
        ("root ::= nothing", "nothing is not defined"),
        ("root ::= ((", "not closed"),
        ('root ::= "a")', "closes nothing"),
        ("root ::= *", "repeats nothing"),
        ('root ::= "a', "line 1"),
        ('"a" root ::= "b"', "does not begin with a rule"),
        ("::= x", "no name"),
        ('root ::= ("a"\nb ::= "c")', "open before"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str) -> None:
    with pytest.raises(GbnfError, match=says):
        lark_of_gbnf(text)


def test_long_chains_of_rules_take_linear_time_and_no_stack() -> None:
    rules = 'root ::= x0 | "(" root ")"\n' + "".join(f"x{i} ::= x{i + 1}\n" for i in range(3_000)) + 'x3000 ::= "y"'
    assert lark_of_gbnf(rules).count("\n") == 3_003
    lark_of_gbnf("root ::= " + "(" * 30_000 + '"x"' + ")" * 30_000)
