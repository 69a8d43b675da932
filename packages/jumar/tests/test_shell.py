"""Scripts are read as bash expands them; what bash alone could know is told with its line."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jumar.chain.shell.reader import read_script
from jumar.schema.errors import ToolError


def shown(text: str, **more: object) -> list[list[str]]:
    """The arguments of every `show`."""
    return [[word.text for word in command.words[1:]] for command in read_script(text, **more).commands]  # type: ignore[arg-type]


def by_bash(text: str) -> list[list[str]]:
    script = "show() { local each; for each in \"$@\"; do printf '%s\\0' \"$each\"; done; printf '\\1'; }\n" + text
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={}, timeout=20)
    assert done.returncode == 0, done.stderr
    return [part.split("\0")[:-1] if part else [] for part in done.stdout.split("\1")[:-1]]


SAME = {
    "quotes": """show a 'b c' "d e" f\\ g "" '' x"y"z""",
    "blocks": 'A=8\nB="\n  --lr 1e-5 \\\n  --tp $A \\\n\n  --pp ${A} \\\n"\nshow $B "$B"',
    "nested quotes": 'B="--dir="logs" --join=True"\nshow $B',
    "defaults": 'show ${A:-x} ${A-y} "${A:-a b}" ${A:+no} ${B:=set} $B; B=; show ${B:-e} "${B-e}" ${B:+no}',
    "default in default": 'C=3; show ${A:-${B:-$C}} ${A:-"q r"}',
    "arrays": 'A=( --x 1 # one\n --y "2 3"\n)\nA+=( --z )\nshow ${A[@]}; show "${A[@]}"; show ${A[1]} ${#A[@]} $A',
    "arithmetic": "N=8; M=4; show $(($N*$M)) $((N/3)) $(( (N + 1) % M )) $((-N/3)) $((2**5)) $((N > M))",
    "parts of values": 'P=/a/b.c.txt; show ${P##*/} ${P%.*} ${P%%.*} ${P#*/} ${P/b/x} ${P//./_} ${#P} "${P^^}"',
    "append": 'A="--x"; A+=" --y"; show $A',
    "if": 'if [ "$A" = "" ]; then show empty; elif [ 1 ]; then show one; else show two; fi',
    "conditions": "if [[ x == x* && 3 -gt 2 ]]; then show yes; fi; if [ a != a -o 2 -le 1 ]; then show no; else show else; fi",
    "case": 'M=8B; case $M in "1B"|2B) show small;; 8*) show large ;; *) show other;; esac',
    "for": "for i in 1 2 3; do show n $i; done; for x in a; do show $x; done",
    "functions": 'run() { show "$1" $2 $#; }; run "a b" c; function two { show two; }\ntwo',
    "and, or": '[ -z "$A" ] && B=1; [ -n "$A" ] || C=2; show $B $C; true && show a || show b; false || show c',
    "comments": "show a # b\n# show c\nshow d#e '#' f",
    "several lines": "show \\\n  --a 1 \\\n  --b 2\nshow c",
    "here-documents": "cat <<END > /dev/null\nshow no\nEND\nshow yes",
    "redirections": "show a > /dev/stdout 2>&1; show b 2>/dev/null",
    "groups": "{ show a; }; (show b)",
    "export": 'export A=1 B="2 3"; declare C=4; show $A "$B" $C',
    "dollar quotes": 'show $\'a\\tb\' "\\$A \\"q\\""',
    "eval": 'C="show a b"; eval $C; $C; bash -c "true"',
    "slices": 'A=(a b c d); x=abcdef; show "${A[@]:1:2}" ${x:2} ${x:1:2} ${x: -2} ${A[@]:3}',
    "slices of parameters": 'f() { show "${@:2}" "${@:1:1}"; }; f p q r',
    "elements": 'A=(x y); A[2]=z; A[0]=w; A[1]+=v; show "${A[@]}" ${A[-1]} ${#A[@]} ${!A[@]}',
    "keys": "declare -A M=([a]=1 [b]='2 3'); M[c]=4; k=b; show ${M[a]} \"${M[$k]}\" ${M[c]} ${#M[@]} [${M[d]}]",
    "names of names": "A=B; B=3; show ${!A} ${!A}x",
    "braces": "for i in {1..3} x{a,b}y {3..1}; do show $i; done; show '{1..2}' {} {a}",
    "counted loops": "for ((i = 0; i < 6; i += 2)); do [ $i -eq 2 ] && continue; show $i; done; show end $i",
    "while": "i=0; while [ $i -lt 5 ]; do ((i++)); if [ $i = 3 ]; then break; fi; show $i; done",
    "until": "i=4; until ((i == 0)); do let i-=1; done; show $i",
    "own options": 'set -- --tp 4 --bf16 x; while [[ $# -gt 0 ]]; do case "$1" in --tp) TP="$2"; shift 2;; --bf16) B=1; shift;; '
    "*) R+=($1); shift;; esac; done; show $TP $B ${R[@]}",
    "paths": 'show $(dirname /a/b/c.sh) $(basename /a/b.sh .sh) "$(cd /usr/bin/.. && pwd)" `dirname a`',
    "paths in paths": "show $(dirname $(dirname /x/y/z))",
    "what echo says": 'A="1 2"; show $(echo $A 3) "$(echo "$A" b)" $(seq 2 4) $(seq 5 -2 1) $(expr 3 \\* 4)',
    "return": "f() { show a; return 0; show b; }; f; show c",
    "more arithmetic": "a=5; show $((a > 3 ? 10 : 20)) $((a++ + ++a)) $a $((!0 && ~0)) $((1 << 4 | 3)) $((0x1f % 010))",
    "conditions of all kinds": "A=x; [[ -v A && ! -v B ]] && show set; [[ $A == [xy] ]] && show like",
    "both": 'A=x; [ "$A" != y -a -n "$A" ] && show and',
    "positional in a function": "f() { show $@; shift; show $1; }; f 1 2 3",
}


@pytest.mark.parametrize("name", SAME)
def test_what_bash_would_run(name: str) -> None:
    text = SAME[name]
    ours = [command for command in read_script(text).commands if command.words[0].text == "show"]
    assert [[word.text for word in command.words[1:]] for command in ours] == by_bash(text)


word = st.text("ab1-_./:=", max_size=3).map(lambda text: "." + text)
name = st.sampled_from("ABC")
piece = st.one_of(
    word,
    word.map(lambda w: f"'{w} {w}'"),
    name.map(lambda n: f"${n}"),
    name.map(lambda n: f"${{{n}}}"),
    st.tuples(name, word).map(lambda both: f"${{{both[0]}:-{both[1]}}}"),
    st.lists(st.one_of(word, name.map(lambda n: f"${n}"), st.just(" "), st.just("\\\n")), max_size=4).map(
        lambda p: f'"{"".join(p)}"'
    ),
)
words = st.lists(piece, min_size=1, max_size=3).map("".join)
line = st.one_of(
    st.tuples(name, words).map(lambda both: f"{both[0]}={both[1]}"),
    st.tuples(name, words).map(lambda both: f"{both[0]}+={both[1]}"),
    st.tuples(name, st.lists(words, max_size=3)).map(lambda both: f"{both[0]}=({' '.join(both[1])})"),
    st.lists(words, max_size=3).map(lambda found: "show " + " ".join(found)),
    name.map(lambda n: f'show "${{{n}[@]}}" ${{{n}[@]}}'),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(line, min_size=1, max_size=6))
def test_assignments_and_words_are_those_of_bash(lines: list[str]) -> None:
    text = "\n".join(["A=;B=;C=", *lines])
    assert shown(text) == by_bash(text)


@settings(max_examples=150, deadline=None)
@given(st.text("ab \n\\'\"$(){}[]#;&|<>=`*!-1" + "\t", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ToolError):
        read_script(text)


def test_lines_are_those_of_the_script() -> None:
    script = read_script('A="\n  --lr 1 \\\n  --tp 2 \\\n"\n\nshow \\\n  --x \\\n  $A\n')
    (command,) = script.commands
    assert [(each.text, each.line) for each in command.words] == [
        *(("show", 6), ("--x", 7), ("--lr", 2), ("1", 2), ("--tp", 3), ("2", 3))
    ]


def test_what_is_not_known_stays_and_is_named() -> None:
    (command,) = read_script('show $A ${B} $(date +%Y) `hostname` ${C:-$D} $1 "$E-x"').commands
    assert [each.unknown for each in command.words[1:]] == [
        *(("$A",), ("${B}",), ("$(date +%Y)",), ("`hostname`",), ("$D",), ("$1",), ("$E",))
    ]
    assert command.words[-1].text == "$E-x"


def test_arguments_and_variables_may_be_given() -> None:
    assert shown("show $1 ${2:-x} $# $A", given=["a b"], variables={"A": "3"}) == [["a", "b", "x", "1", "3"]]


@pytest.mark.parametrize(
    "text, note",
    [
        ("show --a \\  \n  --b", "blanks after the backslash"),
        ('A="--a\n # --b 1\n --c"\nshow $A', "# inside quotes"),
        ('A="--a \\\n \\ \n --c"\nshow $A', "blanks after the backslash"),
        ("if grep -q x y; then show --a; fi", "not known before it runs"),
        ("source conf.sh", "conf.sh is not here"),
        ("while read x; do show $x; done", "a loop whose end is not known"),
    ],
)
def test_what_is_read_otherwise_than_bash_would_is_told(text: str, note: str) -> None:
    assert any(note in said for _, said in read_script(text).notes)


def test_comments_in_quotes_and_broken_continuations() -> None:
    assert shown("show --a \\  \n  --b\nshow c") == [["--a", "--b"], ["c"]]
    assert shown('A="--a 1 \\\n  # --b 2\n --c 3 # four\n --d"\nshow $A') == [["--a", "1", "--c", "3", "--d"]]


def test_a_branch_that_cannot_be_decided_is_read_in_all_its_ways() -> None:
    text = "A=0\nif ping -c 1 host; then A=1; show $A; else A=2; show $A; fi\nshow $A"
    assert [each for each in shown(text) if each != ["-c", "1", "host"]] == [["1"], ["2"], ["1"]]


def test_exit_ends_a_script() -> None:
    assert shown("show a\nexit 0\nshow b") == [["a"]]
    assert shown('if [ -z "$A" ]; then show a; exit; fi\nshow b') == [["a"]]


def test_a_script_that_would_stop_with_an_error_is_read_on() -> None:
    script = read_script('if [ -z "$DATA" ]; then echo "set DATA"; exit 1; fi\nshow $DATA')
    assert script.commands[-1].words[1] == ("$DATA", 2, ("$DATA",))
    ((line, note),) = script.notes
    assert (line, "DATA is set nowhere" in note, "--var DATA=" in note) == (1, True, True)


def test_sourced_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "conf.sh").write_text("TP=4\n")
    assert shown("source conf.sh\nshow $TP", path=tmp_path / "run.sh") == [["4"]]


def test_sourced_files_have_lines_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/model.sh").write_text('# a model\nMODEL_ARGS="--layers 4"\n')
    text = 'DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)\nsource ${DIR}/conf/$1.sh\nshow $MODEL_ARGS'
    (command,) = read_script(text, given=["model"], path=tmp_path / "run.sh").commands
    assert [(word.text, str(word.line)) for word in command.words] == [
        *(("show", "3"), ("--layers", "2 of conf/model.sh"), ("4", "2 of conf/model.sh"))
    ]
    assert any("conf/$1.sh is not here" in note for _, note in read_script(text, path=tmp_path / "run.sh").notes)


@pytest.mark.parametrize(
    "text",
    [
        "A=1\nsbatch -N 2 <<END\n#!/bin/bash\nsrun show --a $A\nEND",
        "A=1\ncat > job.sh <<END\nshow --a $A\nEND\nsbatch --nodes=2 job.sh",
        'A=1\nCMD="show --a $A"\nsrun -l --container-image x sh -c "$CMD"',
        "A=1\ncat <<END | bash\nshow --a $A\nEND",
        "bash <<'END'\nA=1\nshow --a $A\nEND",
        'A=1; bash <<< "show --a $A"',
        'A=1; eval "show --a" \\$A',
        "bash other.sh 1",
        "function run { exec show --a ${1}; }\nrun 1",
    ],
)
def test_commands_inside_others_are_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.sh").write_text("show --a $1\nexit 0\n")
    found = [[word.text for word in each.words] for each in read_script(text, path=tmp_path / "run.sh").commands]
    assert any(words[-3:] == ["show", "--a", "1"] for words in found)


def test_options_that_are_not_given_are_asked_for() -> None:
    text = 'CKPT=""\nN=8\nwhile [[ $# -gt 0 ]]; do case $1 in --ckpt) CKPT="$2"; shift 2;; --n) N=$2; shift 2;; esac; done\n'
    text += 'if [[ -z "$CKPT" ]]; then exit 1; fi\nshow --load $CKPT -n $N'
    (command,) = read_script(text).commands
    assert [(each.text, each.unknown) for each in command.words[2:]] == [("${CKPT}", ("${CKPT}",)), ("-n", ()), ("8", ())]
    assert shown(text, given=["--n", "2", "--ckpt", "c"]) == [["--load", "c", "-n", "2"]]
    assert shown(text, variables={"CKPT": "d"}) == [["--load", "d", "-n", "8"]]


def test_nothing_of_a_script_is_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    text = (
        f"A=$(touch {made}); B=`touch {made}`; cat <(touch {made}); show $A $B ${{C:-$(touch {made})}} $((a[$(touch {made})]))\n"
    )
    text += f"cd $(echo {tmp_path}; touch {made}); eval touch {made}; bash -c 'touch {made}'; > {made}; source <(touch {made})"
    read_script(text, path=tmp_path / "run.sh")
    assert not list(tmp_path.iterdir())


def test_placeholders_in_angle_brackets_are_values() -> None:
    assert shown('A=<path to it>\nshow --load <some dir> $A "--vocab-file <PATH TO vocab.json>"') == [
        ["--load", "<some dir>", "<path to it>", "--vocab-file <PATH TO vocab.json>"]
    ]
    assert shown('A=" --save <SOME PLACE> "\nsh -c "show $A" < in.txt > out.txt')[-1] == ["--save", "<SOME PLACE>"]


def test_a_line_that_begins_with_a_pipe_is_of_the_one_before() -> None:
    script = read_script("show --a\n  | tee log\nshow --b")
    assert [[word.text for word in each.words] for each in script.commands] == [["show", "--a"], ["tee", "log"], ["show", "--b"]]
    assert any("begins with |" in note for _, note in script.notes)


def test_a_placeholder_is_one_value() -> None:
    assert shown('P="your model path"\nA="--load $P --tp 2"\nshow $A') == [["--load", "your model path", "--tp", "2"]]


@pytest.mark.parametrize(
    "text", ["f() { f; }; f", "A=aaaaaaaa\n" + "A=$A$A\n" * 30, "echo $(" * 400, "${A:-" * 2000, "{ " * 3000]
)
def test_scripts_without_end_are_refused(text: str) -> None:
    with pytest.raises(ToolError, match="line"):
        read_script(text)
