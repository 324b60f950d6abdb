"""The published word problems: where their files are looked for, and one reader for each format.

Licences: GSM8K, SVAMP and MRD3 are MIT. AddSub (Hosseini et al., EMNLP 2014), MultiArith (Roy and Roth, EMNLP 2015) and
SingleEq (Koncel-Kedziorski et al., TACL 2015) come in the JSON form that MAWPS-based evaluations use.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcp.data.answers import final_answer
from rcp.types import UserError

ENV = "RCP_DATA_DIR"
MANUAL_DIR = Path("~/tensorflow_datasets/downloads/manual")
_RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Problem:
    """One word problem.

    Attributes:
      question: the text.
      solution: the worked solution in one paragraph, ending in "The answer is N."
      answer: N, as text.
      uid: file and line (or entry) number.
      difficulty, steps: as MRD3 gives them, else 0.
      equations: the solution as the equations that GSM8K marks in it, "48 / 2 = 24. The answer is 24."; else "".
    """

    question: str
    solution: str
    answer: str
    uid: str
    difficulty: int = 0
    steps: int = 0
    equations: str = ""


@dataclass(frozen=True)
class Source:
    """The files of a data set by split, and where they come from."""

    files: dict[str, str]
    get: str


SOURCES: dict[str, Source] = {
    "gsm8k": Source(
        {"train": "gsm8k_train.jsonl", "test": "gsm8k_test.jsonl"},
        "for s in train test; do curl -L -o gsm8k_$s.jsonl "
        f"{_RAW}/openai/grade-school-math/master/grade_school_math/data/$s.jsonl; done",
    ),
    "svamp": Source({"test": "svamp.json"}, f"curl -L -o svamp.json {_RAW}/arkilpatel/SVAMP/main/SVAMP.json"),
    "addsub": Source(
        {"test": "addsub.json"},
        f"curl -L -o addsub.json {_RAW}/kojima-takeshi188/zero_shot_cot/main/dataset/AddSub/AddSub.json",
    ),
    "multiarith": Source(
        {"test": "multiarith.json"},
        "take MultiArith in the JSON form of AddSub's file (sQuestion, lEquations, lSolutions) as multiarith.json",
    ),
    "singleeq": Source(
        {"test": "singleeq.json"},
        "take SingleEq in the JSON form of AddSub's file (sQuestion, lEquations, lSolutions) as singleeq.json",
    ),
    "mrd3": Source(
        {"train": "mrd3_revise_difficulty.json"},
        "take score_revise_difficulty_mrd3.json from the mrd3 folder of the CoT-Influx repository (arXiv 2312.08901) "
        "as mrd3_revise_difficulty.json",
    ),
}


def find_file(name: str, source: str) -> Path:
    """The path of a raw file: in $RCP_DATA_DIR where that is set, else in the manual folder of TFDS.

    Raises UserError that says what to set and how to get the file.
    """
    configured = os.environ.get(ENV)
    manual = MANUAL_DIR.expanduser()
    folders = [Path(configured).expanduser()] if configured else [manual, manual / source]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked = " and ".join(str(folder) for folder in folders)
    raise UserError(
        f"{name} (data set {source}) is not in {looked}. Set {ENV} to the folder that holds "
        f"{', '.join(SOURCES[source].files.values())}, or put them into {manual}. To get it: {SOURCES[source].get}"
    )


def problems(source: str, split: str, folder: Path | None = None) -> list[Problem]:
    """Every row of one published split, read from the raw file (in `folder`, else where `find_file` finds it).

    Raises UserError on an unknown data set or split, a missing file, or a malformed row (with file and line).
    """
    if source not in SOURCES:
        raise UserError(f"data set {source!r}: expected one of {', '.join(SOURCES)}")
    files = SOURCES[source].files
    if split not in files:
        raise UserError(f"data set {source!r} has no published split {split!r}: expected one of {', '.join(files)}")
    path = folder / files[split] if folder is not None else find_file(files[split], source)
    return [_READERS[source](row, uid) for row, uid in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    if path.suffix == ".jsonl":
        yield from read_jsonl(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: expected JSON: {error.msg}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}:1: expected a JSON list of objects")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: entry {number}: expected a JSON object")
        yield row, f"{path}: entry {number}"


def read_jsonl(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, "file:line") for every line that is not blank. Raises UserError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: expected UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: expected one JSON object a line: {error.msg}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        yield row, f"{path}:{number}"


def text_field(row: dict[str, Any], key: str, where: str) -> str:
    """`row[key]` where it is text that is not blank, else UserError."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected {key!r} to be text that is not empty")
    return value


def _gsm8k(row: dict[str, Any], where: str) -> Problem:
    question, text = text_field(row, "question", where), text_field(row, "answer", where)
    body, mark, answer = text.rpartition("####")
    if not mark or not answer.strip():
        raise UserError(f"{where}: expected 'answer' to end in '#### N'")
    text = gsm8k_solution(body, answer)
    return Problem(question.strip(), text, answer.strip(), where, equations=gsm8k_equations(body, answer))


def gsm8k_solution(body: str, answer: str) -> str:
    """One paragraph without the <<...>> calculator marks, ending in "The answer is N."."""
    lines = [line.strip() for line in re.sub(r"<<[^>]*>>", "", body).splitlines()]
    sentences = [line if line[-1] in ".!?:;," else line + "." for line in lines if line]
    return " ".join([*sentences, f"The answer is {answer.strip()}."])


def gsm8k_equations(body: str, answer: str) -> str:
    """The calculator marks alone, written as `equation_solution` writes: "48 / 2 = 24. 48 + 24 = 72. The answer is 72."

    "" where a solution has no mark.
    """
    # A sign right behind an operator or at the beginning belongs to its number.
    operator = r"\s*(?<![-+*/=(])(?<!^)([-+*/=])\s*"
    marks = [re.sub(operator, r" \1 ", mark.strip()) for mark in re.findall(r"<<([^>]*)>>", body)]
    return " ".join([*(f"{mark}." for mark in marks), f"The answer is {answer.strip()}."]) if marks else ""


def _svamp(row: dict[str, Any], where: str) -> Problem:
    body, question = text_field(row, "Body", where).strip(), text_field(row, "Question", where).strip()
    if body[-1] not in ".!?,":
        body, question = body + ",", question[0].lower() + question[1:]  # "If he had 4, how much ..."
    answer = _number(row.get("Answer"), where, "Answer")
    return Problem(f"{body} {question}", equation_solution(row.get("Equation"), answer), answer, where)


def _addsub(row: dict[str, Any], where: str) -> Problem:
    question = re.sub(r"\s+([.,?!])", r"\1", text_field(row, "sQuestion", where)).strip()
    solutions = row.get("lSolutions")
    if not isinstance(solutions, list) or not solutions:
        raise UserError(f"{where}: expected 'lSolutions' to be a list with the answer")
    answer = _number(solutions[0], where, "lSolutions")
    equations = row.get("lEquations") or [None]
    return Problem(question, equation_solution(_spaced(equations[0]), answer), answer, where)


def _spaced(equation: object) -> object:
    """From "x=(4.0+5.0)*3.0", as MultiArith and SingleEq write, to AddSub's "X = ( 4.0 + 5.0 ) * 3.0"."""
    if not isinstance(equation, str):
        return equation
    return " ".join(re.sub(r"([-+*/=()])", r" \1 ", equation).upper().split())


def equation_solution(equation: object, answer: str) -> str:
    """The published equation as a worked solution: "70 - 27 = 43. The answer is 43."

    "( 76.0 - 25.0 )" and "X = 70 - 27" are the forms that occur; one that has its unknown elsewhere stays as it is
    ("18 + X = 40, so X = 22."), and what is no equation is left out.
    """
    conclusion = f"The answer is {answer}."
    if not isinstance(equation, str) or equation.count("=") > 1:
        return conclusion
    text = re.sub(r"(\d)\.0+(?!\d)", r"\1", " ".join(equation.split()))
    if "X" in text and not text.startswith("X = "):
        return f"{text}, so X = {answer}. {conclusion}"
    text = text.removeprefix("X = ")
    if text.startswith("( ") and _closing(text) == len(text) - 1:
        text = text[2:-2]
    text = text.replace("( ", "(").replace(" )", ")")
    return f"{text} = {answer}. {conclusion}" if re.search(r"[-+*/]", text) else conclusion


def _closing(text: str) -> int:
    """Where the bracket that the text begins with is closed; -1: nowhere."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return place
    return -1


def _mrd3(row: dict[str, Any], where: str) -> Problem:
    solution = " ".join(text_field(row, "output", where).split())
    answer = str(row.get("answer", "")).strip()
    levels = []
    for key in ("difficulty", "steps"):
        try:
            levels.append(int(row.get(key, 0)))
        except (TypeError, ValueError):
            raise UserError(f"{where}: expected {key!r} to be a whole number") from None
    if "The answer is" not in solution:
        solution = f"{solution} The answer is {answer}."
    answer = final_answer(solution) or answer  # the file's own field is cut at a thousands comma
    question = " ".join(text_field(row, "instruction", where).split())
    return Problem(question, solution, answer, where, *levels)


def _number(value: Any, where: str, key: str) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: expected {key!r} to be a number") from None
    return str(int(number)) if number == int(number) else str(number)


_READERS = {
    "gsm8k": _gsm8k,
    "svamp": _svamp,
    "addsub": _addsub,
    "multiarith": _addsub,
    "singleeq": _addsub,
    "mrd3": _mrd3,
}
