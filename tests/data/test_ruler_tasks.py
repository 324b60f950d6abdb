"""What each RULER-style task asks can be answered from the named segments, and from nothing less."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp.data.tasks.common_words import CommonWords
from rcp.data.tasks.documents import PROPERTIES, Documents
from rcp.data.tasks.needle import Needle, Passkey
from rcp.data.tasks.tracking import Tracking
from rcp.types import Example, UserError

INDEX, SPLIT = st.integers(0, 1 << 16), st.sampled_from(("train", "validation", "test"))
NEEDLE = re.compile(r" (?:The magic number|One of the magic numbers) of (the \w+ \w+) is (\d+)\.")


def told(example: Example) -> list[tuple[int, str, str]]:
    """(place, thing, number) of every needle; the filler has no digits."""
    found = [(place, NEEDLE.fullmatch(text)) for place, text in enumerate(example.context)]
    assert not any(re.search(r"\d|magic number", example.context[place]) for place, match in found if match is None)
    return [(place, match[1], match[2]) for place, match in found if match is not None]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(4, 7),
    st.sampled_from((None, 0.0, 0.3, 1.0)),
    INDEX,
    SPLIT,
)
def test_every_needle_occurs_as_often_as_it_should(keys, values, queries, digits, depth, index, split) -> None:
    """0 keys: there is nothing but needles. Other keys are not the asked ones, and no number is told twice."""
    keys = keys and max(keys, queries)
    task = Needle(tokens=600, keys=keys, values=values, queries=queries, digits=digits, depth=depth)
    example = task.example(split, index)
    needles = told(example)
    asked = re.findall(r"the \w+ \w+(?=[?,]| and)", example.question.split("\n")[1].partition(" of ")[2])
    assert len(asked) == queries and len(set(asked)) == queries
    counts = Counter(thing for _, thing, _ in needles)
    assert all(counts[thing] == values for thing in asked)
    assert all(count == 1 for thing, count in counts.items() if thing not in asked)
    assert len(counts) == keys if keys else len(needles) == len(example.context) > values * queries
    assert len({number for _, _, number in needles}) == len(needles) and {len(n) for _, _, n in needles} == {digits}
    needed = {place for place, thing, _ in needles if thing in asked}
    assert set(example.support or ()) == needed and len(example.support or ()) == values * queries
    by_thing = [number for thing in asked for _, own, number in needles if own == thing]
    assert re.findall(r"\d+", example.answer) == by_thing, "thing by thing, each in the order of the text"
    if depth is not None:
        first = round(depth * (len(example.context) - len(needed)))
        assert needed == set(range(first, first + len(needed)))
    assert example.group == ("beginning", "middle", "end")[3 * min(needed) // len(example.context)]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(("sentences", "repeated")), st.sampled_from((None, 0.0, 0.5, 1.0)), INDEX, SPLIT)
def test_the_pass_key_is_told_in_one_place(haystack, depth, index, split) -> None:
    example = Passkey(tokens=400, haystack=haystack, depth=depth).example(split, index)
    key = example.answer.strip(" .")
    assert len(key) == 5 and "".join(example.context).count(key) == 2 and key not in example.question
    assert example.support == tuple(place for place, text in enumerate(example.context) if key in text)
    assert not any(re.search(r"\d", text) for place, text in enumerate(example.context) if place not in example.support)
    if depth is not None:
        assert example.support == (round(depth * (len(example.context) - 1)),)


def follow(example: Example, segments: list[int]) -> dict[str, str]:
    """The value of each variable that these segments give one, in their order: a source must be known before."""
    values: dict[str, str] = {}
    for place in segments:
        if found := re.fullmatch(r" VAR (\w+) = (?:VAR (\w+)|(\d+))\.", example.context[place]):
            assert found[1] not in values
            if (value := found[3] or values.get(found[2])) is not None:
                values[found[1]] = value
    return values


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.integers(0, 4), min_size=1, max_size=2),
    st.sampled_from(("value", "variables")),
    INDEX,
    SPLIT,
)
def test_a_variable_has_the_value_that_its_chain_gives_it(chains, hops, asks, index, split) -> None:
    task = Tracking(tokens=800, chains=chains, hops=tuple(hops), asks=asks)
    example = task.example(split, index)
    count = 1 + int(example.group.split()[0])
    assert count - 1 in hops and example.group in task.groups
    everything = follow(example, list(range(len(example.context))))
    assert len(everything) == chains * count and set(Counter(everything.values()).values()) == {count}
    support = list(example.support or ())
    assert support == sorted(support) and len(support) == count
    own = follow(example, support)
    assert len(own) == count and len(set(own.values())) == 1
    if asks == "value":
        asked = re.findall(r"value of (\w+)", example.question)
        assert len(set(asked)) == 1 and example.answer == f" {own[asked[0]]}."
        assert all(asked[0] not in follow(example, [s for s in support if s != needed]) for needed in support)
    else:
        value = example.question.split("?")[0].split()[-1]
        assert set(own.values()) == {value} and task.answer_key(example.answer) == ", ".join(sorted(own))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(6, 20), st.integers(1, 4), INDEX, SPLIT)
def test_common_words_are_the_most_common(common, times, other_times, index, split) -> None:
    task = CommonWords(tokens=700, common=common, times=times, other_times=other_times)
    example = task.example(split, index)
    counts = Counter(example.context)
    asked = example.answer[1:-1].replace(" and ", ", ").split(", ")
    assert [counts[f" {word},"] for word in asked] == [times] * common
    others = [count for text, count in counts.items() if text[1:-1] not in asked]
    assert max(others) <= other_times + 1 < times
    assert sum(count < other_times for count in others) <= max(1, len(others) // 4)
    needed = {place for place, text in enumerate(example.context) if text[1:-1] in asked}
    assert set(example.support or ()) == needed and len(example.support or ()) == common * times


def test_more_words_than_there_are_come_more_often() -> None:
    example = CommonWords(tokens=8192, times=30).example("test", 0)
    counts = Counter(example.context)
    assert counts[f"{example.answer[:-1]},"] == 30
    assert sorted(counts.values())[-2] < 30 and min(counts.values()) > 3


def read(document: str) -> tuple[str, dict[str, str]]:
    """The name, and what is told of it, the colleague too."""
    name = re.match(r"\nThis is about (\w+ \w+)\.", document)
    assert name is not None
    facts = {"colleague": re.findall(rf"The colleague of {name[1]} is (\w+ \w+)\.", document)}
    for prop in PROPERTIES:
        facts[prop.question] = re.findall(rf"{prop.told.format(who=name[1])} ([^.]+)\.", document)
    assert all(len(found) == 1 for found in facts.values())
    return name[1], {key: found[0] for key, found in facts.items()}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(((1,), (2,), (1, 2))), INDEX, SPLIT)
def test_documents_answer_what_is_asked(hops, index, split) -> None:
    example = Documents(tokens=900, hops=hops).example(split, index)
    people = dict(read(document) for document in example.context)
    assert len(people) == len(example.context)
    asked = example.question.split("\n")[1].removeprefix("Question: ")
    name = re.search(r"(the colleague of )?([A-Z]\w+ [A-Z]\w+)", asked)
    assert name is not None
    way = [name[2], people[name[2]]["colleague"]] if name[1] else [name[2]]
    question = asked.replace(name[0], "{who}")
    assert example.answer == f" {people[way[-1]][question]}."
    assert [read(example.context[place])[0] for place in example.support or ()] == way
    assert example.group == {1: "one-hop", 2: "two-hop"}[len(way)] and len(way) in hops
    value = example.answer[1:-1]
    assert sum(facts[question] == value for facts in people.values()) == 1, "no other document has the answer"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Sentence number i of 300 is told by its letters; some hold what a haystack must not have."""
    path = tmp_path / "book.txt"
    names = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
    lines = [f"Then {name}\nwas here, said {name}." for name in names]
    lines[::7] = ["A magic number is mentioned, and the Pass Key too."] * len(lines[::7])
    path.write_text(" ".join(lines), encoding="utf-8")
    return path


def test_a_users_text_is_the_haystack(book: Path) -> None:
    """In its own order, each split another part of it, and nothing that looks like a needle."""
    parts: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for task in (Needle(tokens=300, haystack_path=str(book)), Passkey(tokens=300, haystack_path=str(book))):
            for example in task.examples(split, 12):
                filler = [text for place, text in enumerate(example.context) if place not in (example.support or ())]
                assert filler and all(re.fullmatch(r" Then (\w\w) was here, said \1\.", text) for text in filler)
                parts.setdefault(split, set()).update(filler)
    assert len(parts["train"]) > 100 and not parts["train"] & (parts["validation"] | parts["test"])
    assert not parts["validation"] & parts["test"]
    first = [text for text in Needle(tokens=300, haystack_path=str(book)).example("train", 0).context if "Then" in text]
    order = sorted(first)
    start = order.index(first[0])
    assert first == order[start:] + order[:start]


def test_a_short_text_is_gone_round(book: Path) -> None:
    example = Tracking(tokens=2000, haystack_path=str(book)).example("test", 0)
    filler = [text for text in example.context if "Then" in text]
    assert len(filler) > 2 * len(set(filler)) > 20


def test_a_text_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("One sentence. Another.")
    with pytest.raises(
        UserError, match=r"config.task.haystack_path = '.*short.txt': expected a text of at least three"
    ):
        Needle(haystack_path=str(short)).example("train", 0)
    with pytest.raises(UserError, match=r"config.task.haystack_path: no text in .*absent.txt: expected a text file"):
        Needle(haystack_path=str(tmp_path / "absent.txt")).example("train", 0)
