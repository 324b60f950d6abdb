"""Word problems: readers of the raw files, division into parts, shots, final answers. Always on tiny files, and on the
published ones where they are there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rcp.data import sources
from rcp.data.answers import check, final_answer
from rcp.data.tasks import TASKS
from rcp.data.tasks.word_problems import Gsm8k, Mrd3, Svamp, WordProblems
from rcp.types import UserError

from .raw_files import REAL_DIR, needs_real_files, write_tiny

SMALL = {"pool_size": 15, "validation_size": 5, "shots": 4}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_DATA_DIR", str(write_tiny(tmp_path / "raw")))
    return tmp_path / "raw"


def test_readers(folder):
    row = sources.problems("gsm8k", "train")[3]
    assert row.solution == "Has 3+4 = 7 pens. Done. The answer is 7." and row.answer == "7"
    assert row.uid.endswith("gsm8k_train.jsonl:4")
    row = sources.problems("svamp", "test")[2]
    assert (row.question, row.solution) == ("Tom had 2 $, how many are left?", "The answer is 2.")
    row = sources.problems("addsub", "test")[2]
    assert (row.question, row.answer) == ("Joan found 2 shells. How many?", "2")
    row = sources.problems("singleeq", "test")[2]
    assert (row.question, row.answer) == ("Ann has 2 pens and 2.5 more. How many?", "4.5")
    row = sources.problems("mrd3", "train")[6]
    assert (row.question, row.difficulty, row.steps) == ("A box weighs 6 kg. How much do two weigh?", 3, 2)
    assert row.solution == "Two weigh 2 x 6 = 12 kg. The answer is 12."


@pytest.mark.parametrize(
    ("equation", "answer", "expected"),
    [
        ("( 76.0 - 25.0 )", "51", "76 - 25 = 51. The answer is 51."),
        ("( 4.0 + 5.0 ) * ( 3.0 + 1.0 )", "36", "(4 + 5) * (3 + 1) = 36. The answer is 36."),
        ("( ( 4.0 + 2.5 ) - 3.0 )", "3.5", "(4 + 2.5) - 3 = 3.5. The answer is 3.5."),
        ("X = 70 - 27", "43", "70 - 27 = 43. The answer is 43."),
        ("18 + X = 40", "22", "18 + X = 40, so X = 22. The answer is 22."),
        ("X = 3 = 4", "4", "The answer is 4."),
        ("8.0", "8", "The answer is 8."),
        (None, "2", "The answer is 2."),
    ],
)
def test_published_equations_are_the_worked_solutions(equation, answer, expected):
    assert sources.equation_solution(equation, answer) == expected


@pytest.mark.parametrize(
    ("equation", "solution"),
    [
        ("X=((4.0+5.0)*3.0)", "(4 + 5) * 3 = 27. The answer is 27."),
        ("x=9*3", "9 * 3 = 27. The answer is 27."),
        ("x-20=7", "X - 20 = 7, so X = 27. The answer is 27."),
        ("X = 70 - 43", "70 - 43 = 27. The answer is 27."),
    ],
)
def test_equations_without_spaces_are_read_as_those_with(folder, equation, solution):
    row = {"sQuestion": "How many ?", "lSolutions": [27.0], "lEquations": [equation]}
    (folder / "multiarith.json").write_text(json.dumps([row]))
    assert sources.problems("multiarith", "test")[0].solution == solution


@pytest.mark.parametrize(
    ("body", "answer", "expected"),
    [
        ("She sold 48/2 = <<48/2=24>>24 in May.\n", "24", "48 / 2 = 24. The answer is 24."),
        (
            "a <<(8/10)*100=80>>80\nb <<80-.5=79.5>>79.5\n",
            " 1,079",
            "(8 / 10) * 100 = 80. 80 - .5 = 79.5. The answer is 1,079.",
        ),
        ("<<5-10=-5>>-5, <<-5+2=-3>>-3", "-3", "5 - 10 = -5. -5 + 2 = -3. The answer is -3."),
        ("None is marked.\n", "3", ""),
    ],
)
def test_marked_equations(body, answer, expected):
    assert sources.gsm8k_equations(body, answer) == expected


def test_a_share_of_the_gold_answers_is_equations_alone(folder):
    """Every third one at a third; shots, test problems and what stands before the answer stay as they are."""
    plain, mixed = Gsm8k(**SMALL), Gsm8k(equations=1 / 3, **SMALL)
    assert list(mixed.examples("test")) == list(plain.examples("test"))
    pairs = list(zip(plain.examples("train"), mixed.examples("train"), strict=True))
    assert [number for number, (a, b) in enumerate(pairs) if a.answer != b.answer] == list(range(2, len(pairs), 3))
    for number, (a, b) in enumerate(pairs):
        assert replace(b, answer=a.answer, group=a.group) == a
        assert b.group == ("equations" if number % 3 == 2 else "sentences")
        row = plain.problems("train")[number]
        assert b.answer == (f" {row.equations}\n\n" if number % 3 == 2 else a.answer)
        assert mixed.check(b.answer, a)
    with pytest.raises(UserError, match=r"equations = 1.5: expected a share from 0 to 1"):
        Gsm8k(equations=1.5)
    with pytest.raises(UserError, match=r"equations = 0.5: expected 0: mrd3 has no marked equations"):
        Mrd3(equations=0.5)


def test_parts_do_not_overlap(folder):
    for task in (Gsm8k(**SMALL), Mrd3(**SMALL)):
        parts = {split: {p.question for p in task.problems(split)} for split in ("train", "validation", "test")}
        parts["pool"] = {p.question for p in task.shot_pool}
        assert {k: len(v) for k, v in parts.items() if k in ("pool", "validation")} == {"pool": 15, "validation": 5}
        for a, b in (
            ("train", "pool"),
            ("train", "validation"),
            ("train", "test"),
            ("validation", "pool"),
            ("pool", "test"),
        ):
            assert parts[a] and not parts[a] & parts[b]
    assert len(Gsm8k(**SMALL).examples("test")) == 40


@pytest.mark.parametrize("candidates", ["random", "nested", "bm25"])
@pytest.mark.parametrize("name", ["gsm8k", "svamp", "addsub", "multiarith", "singleeq", "mrd3"])
def test_prompts(folder, name, candidates):
    task = TASKS[name](candidates=candidates, **SMALL)
    for number, example in enumerate(task.examples("test", 5)):
        assert example == TASKS[name](candidates=candidates, **SMALL).examples("test", 5)[number]
        assert len(example.context) == len(set(example.context)) == 4
        question = example.question.removeprefix("Q: ").removesuffix("\nA: Let's think step by step.")
        for shot in example.context:
            assert shot.startswith("Q: ") and shot.endswith("\n\n") and "\nA: Let's think step by step. " in shot
            assert question not in shot and final_answer(shot) is not None
        assert example.answer.startswith(" ") and example.answer.count("\n") == 2 and example.answer.endswith(".\n\n")
        assert task.check(example.answer, example) and not task.check(" I do not know.", example)
        bare = name not in ("gsm8k", "mrd3")
        assert example.group == ("equations" if bare else "sentences") and task.groups == ("sentences", "equations")


def test_bm25_shots_are_more_like_the_question_than_random_ones(folder):
    pool = Gsm8k(**SMALL).shot_pool
    task = Gsm8k(candidates="bm25", shots=1, pool_size=15, validation_size=5)
    target = pool[0].question
    problem = sources.Problem(target + " Truly?", "The answer is 1.", "1", "x")
    example = task.example("test", 0, problem)
    assert target in example.context[0]


def test_a_question_is_never_its_own_shot(folder):
    task = Gsm8k(candidates="bm25", **SMALL)
    example = task.example("train", 0, task.shot_pool[0])
    assert all(task.shot_pool[0].question not in shot for shot in example.context)


def test_nested_candidates_hold_those_of_fewer_shots(folder):
    few, more = (Gsm8k(candidates="nested", shots=shots, pool_size=15, validation_size=5) for shots in (3, 9))
    found = [(set(few.examples("test", 4)[i].context), set(more.examples("test", 4)[i].context)) for i in range(4)]
    assert all(len(a) == 3 and len(b) == 9 and a < b for a, b in found)
    assert len({frozenset(a) for a, _ in found}) > 1  # another draw for another problem


def test_pool_and_difficulty(folder):
    both = Gsm8k(pool="gsm8k+mrd3", **SMALL)
    assert both.shot_pool == [*Gsm8k(**SMALL).shot_pool, *Gsm8k(pool="mrd3", **SMALL).shot_pool]
    assert len({"box" in shot for i in range(4) for shot in both.examples("train", 4)[i].context}) == 2
    assert all("box" in shot for shot in Svamp(pool="mrd3", **SMALL).examples("test", 1)[0].context)
    task = Mrd3(max_difficulty=2, **SMALL)
    assert all(p.difficulty <= 2 for p in [*task.problems("train"), *task.shot_pool])


def test_order_of_difficulty_is_that_of_the_training_problems_asked_for(folder):
    """The easiest come first, but which are trained on is as without an order; other splits stay as they are."""
    task, plain = Mrd3(order="difficulty", **SMALL), Mrd3(**SMALL)
    level = {row.uid: (row.difficulty, row.steps) for row in plain.problems("train")}
    examples = list(task.examples("train", 8))
    assert [level[e.uid] for e in examples] == sorted(level[e.uid] for e in examples)
    assert len({level[e.uid] for e in examples}) > 1
    assert {e.uid for e in examples} == {e.uid for e in plain.examples("train", 8)}
    assert [e.uid for e in task.examples("validation")] == [e.uid for e in plain.examples("validation")]
    assert examples == list(Mrd3(order="difficulty", **SMALL).examples("train", 8))
    other = Gsm8k(order="difficulty", **SMALL)
    assert len(other.examples("test", 3)) == 3
    with pytest.raises(UserError, match=r"task.order = 'difficulty': gsm8k has no difficulties, mrd3 has"):
        other.examples("train", 8)


def test_max_words_leaves_out_long_training_problems_and_shots_alone(folder):
    def words(problem):
        return len(problem.question.split()) + len(problem.solution.split())

    whole = Gsm8k(**SMALL)
    limit = sorted(words(p) for p in whole.problems("train"))[len(whole.problems("train")) // 2]
    task = Gsm8k(max_words=limit, **SMALL)
    assert [p.uid for p in task.problems("train")] == [p.uid for p in whole.problems("train") if words(p) <= limit]
    assert all(words(p) <= limit for p in task.shot_pool)
    assert task.problems("test") == whole.problems("test")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" She has 3 + 4 = 7. The answer is 7.", "7"),
        ("The answer is $1,234.50. And 9", "1234.50"),
        ("The answer is -3.", "-3"),
        ("so 12 and then 15 apples", "15"),
        ("The answer is unknown, 4 or 5", "4"),
        ("The answer is here\nQ: 17?\nA: The answer is 3.", None),
        ("It is 5.\n\nQ: 17?\nA: The answer is 3.", "5"),
        ("none", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_check():
    assert check("The answer is 1,000.", "The answer is 1000.0.") and check("so $72", "The answer is 72.")
    assert not check("The answer is 71.", "The answer is 72.") and not check("", "The answer is 72.")


def test_missing_files_say_what_to_set_and_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RCP_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"gsm8k_train.jsonl .*RCP_DATA_DIR.*curl"):
        Gsm8k().examples("train", 1)
    monkeypatch.delenv("RCP_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"downloads/manual"):
        Mrd3().examples("train", 1)
    write_tiny(tmp_path / "tensorflow_datasets/downloads/manual")
    assert len(Gsm8k(**SMALL).examples("train")) == 20


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        (
            "gsm8k",
            "gsm8k_test.jsonl",
            '{"question": "q", "answer": "#### 1"}\n{"question"',
            "gsm8k_test.jsonl:2: expected one",
        ),
        (
            "gsm8k",
            "gsm8k_test.jsonl",
            '\n{"question": "q", "answer": "1"}\n',
            "gsm8k_test.jsonl:2: expected 'answer' to end",
        ),
        ("gsm8k", "gsm8k_test.jsonl", '{"answer": "#### 1"}\n', "gsm8k_test.jsonl:1: expected 'question'"),
        ("gsm8k", "gsm8k_test.jsonl", "[1]\n", "gsm8k_test.jsonl:1: expected a JSON object, found list"),
        ("svamp", "svamp.json", '[\n{"Body": }]', "svamp.json:2: expected JSON"),
        ("svamp", "svamp.json", '{"a": 1}', "expected a JSON list"),
        ("svamp", "svamp.json", '[{"Body": "b", "Question": "q", "Answer": "x"}]', "entry 1: expected 'Answer'"),
        ("addsub", "addsub.json", '[{"sQuestion": "q", "lSolutions": []}]', "entry 1: expected 'lSolutions'"),
        ("addsub", "addsub.json", "[3]", "entry 1: expected a JSON object"),
    ],
)
def test_malformed_rows_name_file_and_line(folder, name, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        sources.problems(name, "test")


def test_malformed_mrd3(folder):
    path = folder / "mrd3_revise_difficulty.json"
    rows = json.loads(path.read_text())
    rows[4]["difficulty"] = "hard"
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"entry 5: expected 'difficulty'"):
        sources.problems("mrd3", "train")


def test_not_utf8(folder):
    (folder / "gsm8k_test.jsonl").write_bytes(b'{"question": "q", "answer": "#### 1"}\n{"question": "\xff"}\n')
    with pytest.raises(UserError, match=r"gsm8k_test.jsonl:2: expected UTF-8"):
        sources.problems("gsm8k", "test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "aqua"}, "task.dataset"),
        ({"pool": "svamp"}, "task.pool"),
        ({"shots": 0}, "task.shots"),
        ({"pool": "handwritten", "shots": 9}, "task.shots = 9: expected at most 8"),
        ({"append": 9}, "task.append = 9: expected 0 to 8"),
        ({"pool": "handwritten", "append": 1}, "task.append = 1: expected 0 with"),
        ({"candidates": "best"}, "task.candidates = 'best': expected random or nested or bm25"),
        ({"source": "web"}, "task.source"),
        ({"order": "steps"}, "task.order = 'steps': expected \"\" or difficulty"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        WordProblems(**fields)


def test_impossible_requests(folder):
    with pytest.raises(UserError, match=r"leave nothing of the 40"):
        Gsm8k().examples("train")
    with pytest.raises(UserError, match=r"svamp is for evaluation"):
        Svamp().examples("train")
    with pytest.raises(UserError, match=r"41 examples asked for: the test split of gsm8k has 40"):
        Gsm8k(**SMALL).examples("test", 41)
    with pytest.raises(UserError, match=r"task.shots = 30"):
        _ = Gsm8k(pool_size=15, validation_size=5, shots=30).examples("test", 1)[0]
    with pytest.raises(UserError, match=r"expected one of gsm8k"):
        sources.problems("aqua", "test")
    with pytest.raises(UserError, match=r"no published split 'train'"):
        sources.problems("svamp", "train")


@needs_real_files
def test_published_files(monkeypatch):
    monkeypatch.setenv("RCP_DATA_DIR", str(REAL_DIR))
    sizes = {("gsm8k", "train"): 7473, ("gsm8k", "test"): 1319, ("svamp", "test"): 1000, ("addsub", "test"): 395}
    for (name, split), size in (sizes | {("mrd3", "train"): 9151}).items():
        rows = sources.problems(name, split)
        assert len(rows) == size
        assert sum(final_answer(row.solution) != row.answer.replace(",", "") for row in rows) == 0
        assert not any("<<" in row.solution or "\n" in row.solution for row in rows)
    example = Gsm8k(candidates="bm25").examples("test", 1)[0]
    assert len(example.context) == 8 and example.answer.endswith("The answer is 18.\n\n")
