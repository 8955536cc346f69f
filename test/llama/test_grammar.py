"""GBNF grammars: followed by llama.cpp, or refused before it reads them."""

from __future__ import annotations

import json
from pathlib import Path
import subprocess
import sys

from decoding import Decoder, PLAIN
from hobot_vlm.errors import GrammarError
from hobot_vlm.llama.gbnf_check import check_grammar
from hobot_vlm.llama.grammar import Grammar
import pytest

JSON = r"""
root ::= object   # what llama.cpp brings as an example, in short
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) ){0,20} "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

GOOD = {
    'choice': 'root ::= "yes" | "no"',
    'endless': 'root ::= "x" root',
    'json': JSON,
    'groups': 'root ::= ' + '(' * 90 + '"a"' + ')' * 90,
    'never ends': 'root ::= "a" x\nx ::= "b" x',
    'nothing': 'root ::= ""',
    'tokens': 'root ::= <[5]> !<[6]>',
    'repetitions': 'root ::= "abcdefghij"{1999} | [0-9]{0,1999}',
    'nested repetitions': 'root ::= (("a"{40}){40}){40}',
    'words': 'root ::= ' + ' | '.join(f'"{i} words"' for i in range(500)),
    'chain': '\n'.join(f'r{i} ::= r{i + 1}' for i in range(4000)) + '\nr4000 ::= "a"\nroot ::= r0',
    'given twice': 'root ::= "a"\nroot ::= "b"',
    'empty classes': 'root ::= [] [^] "a"',
    'unicode': 'root ::= "🐶" [é-ü\\u4E00-\\u9FFF]+',
    'dash': 'root ::= [a-]+ "b"',
    'options': 'root ::= ' + ' '.join(f'"{letter}"?' for letter in 'abcdefghijklmnopqrstuvwxyz'),
    'brackets': 'root ::= "(" root ")" | "x"',
    'any': 'root ::= .* "!"',
    'repetition of repetitions': 'root ::= ((("a"*)+ "x"?)* ("b"?)+)+ "c"',
}
BAD = {
    'left recursion': ('root ::= root "a"', 'left recursion'),
    'behind an option': ('root ::= "b"? root "a"', 'left recursion'),
    'behind an empty rule': ('root ::= x root "a" | "c"\nx ::= "b" | ', 'left recursion'),
    'through others': ('root ::= x\nx ::= y "a"\ny ::= "b"* root', 'left recursion'),
    'behind an option in a group': ('root ::= ("b"?) root "a" | "c"', 'left recursion'),
    'behind a rule that is one': ('root ::= x root "a" | "c"\nx ::= y\ny ::= "b" | ', 'recursion'),
    'groups': ('root ::= ' + '(' * 20000 + '"a"' + ')' * 20000, 'nested'),
    'no token fits': ('root ::= "\\x00"', 'no token'),
    'no character fits': ('root ::= [z-a]', 'no token'),
    'no such token': ('root ::= <[99999]>', 'no token'),
    'repetitions': ('root ::= "a"{5000}', 'repetitions'),
    'backwards': ('root ::= "a"{5,2}', 'at least 5'),
    'long numbers': ('root ::= "a"{0,99999999999999}', 'number of repetitions'),
    'products': ('root ::= ' + '"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"{1999} ' * 5, 'smaller'),
    'rules': ('root ::= ' + '"a"{0,1999} ' * 5, 'rules'),
    'ways': (
        '\n'.join(f'r{i} ::= r{i + 1} | r{i + 1}' for i in range(40))
        + '\nr40 ::= "a"\nroot ::= r0',
        'ways',
    ),
    'places': ('root ::= s\ns ::= "a" s "x" | "a" s "y" | "a"', 'places'),
    'places later': ('root ::= "qqq" s\ns ::= "a" s "x" | "a" s "y" | "a"', 'places'),
    'options': ('root ::= ("a"?){1000} "b"', 'places'),
    'undefined': ('root ::= foo', 'foo'),
    'no root': ('top ::= "a"', 'root'),
    'syntax': ('root ::= (', 'expected'),
    'text': ('just words', '::='),
    'escape': ('root ::= "\\q"', 'escape'),
    'half a character': ('root ::= "\ud800"', 'surrogate'),
    'size': ('root ::= "' + 'a' * 100_000 + '"', 'characters'),
}


@pytest.fixture(scope='module')
def plain():
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.mark.parametrize('name', GOOD)
def test_a_grammar_is_followed_to_its_end_or_for_long(plain, name):
    for options in ({}, {'temperature': 5.0, 'seed': 1}):
        tokens, _ = plain.answer(n=60, grammar=GOOD[name], **options)
        assert len(tokens) == 60 or plain.model.is_end(tokens[-1])


def test_what_follows_is_what_the_grammar_says(plain):
    assert plain.text(plain.answer(grammar=GOOD['choice'])[0]) in ('yes', 'no')
    assert plain.text(plain.answer(grammar=GOOD['given twice'])[0]) == 'b'
    assert plain.text(plain.answer(n=9, grammar=GOOD['endless'])[0]) == 'x' * 9
    for seed in range(20):
        tokens, _ = plain.answer(grammar=JSON, temperature=2.0, seed=seed)
        if plain.model.is_end(tokens[-1]):
            json.loads(plain.text(tokens))


@pytest.mark.parametrize('name', BAD)
def test_what_would_harm_llama_cpp_is_refused(plain, name):
    grammar, match = BAD[name]
    with pytest.raises(GrammarError, match=match) as caught:
        Grammar(plain.model, grammar)
    assert len(str(caught.value)) < 400


CHILD = """
import resource, sys
from hobot_vlm.llama import grammar
from hobot_vlm.llama.model import Model
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
grammar.check_grammar = lambda text: None
model = Model(sys.argv[1])
one = grammar.Grammar(model, sys.argv[2])
for _ in range(3):
    one.accept(model.tokenize('a')[0])
"""


@pytest.mark.parametrize('name', ['behind an option in a group', 'ways', 'groups'])
def test_llama_cpp_alone_does_not_survive_what_is_refused(name):
    """The checks are there for a reason; this test says when llama.cpp no longer needs one."""
    if not Path('/proc').is_dir():
        pytest.skip('limits of processes are tried on Linux')
    child = subprocess.run(
        [sys.executable, '-c', CHILD, str(PLAIN), BAD[name][0]], capture_output=True, timeout=60
    )
    assert child.returncode < 0 or b'MemoryError' in child.stderr, child.stderr[-300:]


def test_a_grammar_that_runs_out_of_tokens_is_an_error_and_no_abort(plain):
    with pytest.raises(GrammarError, match='no token'):
        plain.answer(grammar='root ::= "ab" "\\x00" "c"')


def test_a_step_that_takes_too_long_is_an_error(plain, monkeypatch):
    monkeypatch.setattr('hobot_vlm.llama.gbnf_check.MAX_PLACES', 10**9)
    monkeypatch.setattr('hobot_vlm.llama.gbnf_check.MAX_WORK', 10**9)
    check_grammar.cache_clear()
    a = plain.model.tokenize('a')[0]
    with pytest.raises(GrammarError, match='more than 1 s'):
        plain.answer(n=60, grammar=BAD['places'][0], logit_bias={a: 1000.0})
