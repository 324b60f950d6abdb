"""Configs: files, variants, flags, and an error with key and place for everything that is not right."""

from __future__ import annotations

import subprocess
import sys
import typing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rcp.config import BudgetConfig, Config, ObjectiveConfig, ParallelConfig, TrainConfig
from rcp.config_file import from_dict, load_config, to_dict
from rcp.config_fill import fill
from rcp.config_saved import fingerprint, save_config
from rcp.nn.pruner import Granularity
from rcp.types import UserError

CONFIGS = sorted(path for path in (Path(__file__).parents[1] / "configs").glob("*.py") if path.name != "__init__.py")

FILE = '''
"""A run."""
import ml_collections

def get_config(variant: str = ""):
    if variant not in ("", "rl"):
        raise ValueError(f"unknown variant {variant!r}")
    c = ml_collections.ConfigDict()
    c.task = {"name": "facts", "hops": (1, 2)}
    c.objectives = {"nll": 1.0, "kl": {"weight": 0.5, "schedule": "linear", "steps": 10}}
    c.budget = {"keep_rates": (0.25, 0.5)}
    c.train = {"steps": 300}
    if variant == "rl":
        c.objectives = {"reinforce": 1}
    return c
'''


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "run.py"
    file.write_text(FILE)
    return file


def test_a_file_is_laid_over_the_defaults(path):
    config = load_config(path)
    assert config.task.name == "facts"
    assert config.task.fields == {"hops": [1, 2]}
    assert config.train == TrainConfig(steps=300)
    assert config.budget.keep_rates == (0.25, 0.5)
    assert config.objectives == {"nll": ObjectiveConfig(1.0), "kl": ObjectiveConfig(0.5, "linear", steps=10)}
    assert config.optim == Config().optim


def test_the_variant_follows_a_colon(path):
    assert load_config(f"{path}:rl").objectives == {"reinforce": ObjectiveConfig(1.0)}
    with pytest.raises(UserError, match=r"run.py: get_config\('lr'\) failed.*unknown variant 'lr'"):
        load_config(f"{path}:lr")


def test_flags_win_and_are_typed(path):
    flags = [
        "--config.train.steps=7",
        "--config.optim.learning_rate=1",
        "--config.budget.keep_rates=.5",
        "--config.eval.keep_rates=(1, .5)",
        "--config.task.hops=3",
        "--config.task.name=chain",
        "--config.objectives.nll.weight=2",
        "--config.objectives.entropy=1e-3",
        "--config.relax.noise=false",
        "--config.data.train_examples=none",
    ]
    config = load_config(path, flags)
    assert config.train.steps == 7
    assert config.optim.learning_rate == 1.0
    assert isinstance(config.optim.learning_rate, float)
    assert config.budget.keep_rates == (0.5,)
    assert config.eval.keep_rates == (1.0, 0.5)
    assert (config.task.name, config.task.fields) == ("chain", {"hops": 3})
    assert config.objectives["nll"].weight == 2.0
    assert config.objectives["entropy"].weight == 1e-3
    assert config.objectives["kl"].steps == 10
    assert config.relax.noise is False
    assert config.data.train_examples is None


@pytest.mark.parametrize("text", ["ours,bm25", "ours, bm25,", "['ours','bm25']", "('ours', 'bm25')"])
def test_several_names_in_one_flag(path, text):
    assert load_config(path, [f"--config.eval.methods={text}"]).eval.methods == ("ours", "bm25")
    assert load_config(path, ["--config.eval.methods=ours"]).eval.methods == ("ours",)


def test_a_flag_that_names_another_task_drops_the_keys_of_the_files_task(path):
    flags = ["--config.task.path=mine.jsonl", "--config.task.name=jsonl"]
    assert load_config(path, flags).task.fields == {"path": str(Path("mine.jsonl").absolute())}
    assert load_config(path, ["--config.task.name=facts"]).task.fields == {"hops": [1, 2]}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "train.step=3",
            r"unknown config key config.train.step in the flag --config.train.step; did you mean .*steps\?",
        ),
        (
            "trian.steps=3",
            r"unknown config key config.trian in the flag --config.trian.steps; did you mean config.train\?",
        ),
        ("train.steps=-3", r"config.train.steps in the flag --config.train.steps should be above 0, not -3"),
        ("train.steps=0", r"config.train.steps .* should be above 0, not 0"),
        ("train.steps=3.5", r"config.train.steps in the flag .* should be int, not 3.5"),
        ("train.steps=many", r"config.train.steps .* should be int, not 'many'"),
        ("relax.noise=1", r"config.relax.noise .* should be bool, not 1"),
        ("budget.keep_rates=0", r"config.budget.keep_rates .* should be keep rates in \(0, 1\]"),
        ("budget.keep_rates=[.5,1.5]", r"config.budget.keep_rates .* should be keep rates in \(0, 1\]"),
        ("eval.keep_rates=-.1", r"config.eval.keep_rates .* should be keep rates in \(0, 1\]"),
        ("budget.granularity=sentence", r"config.budget.granularity .* should be one of token, segment, two_stage"),
        ("policy.baseline=leave_on_out", r"config.policy.baseline .* did you mean leave_one_out\?"),
        ("objectives.reinforced=1", r"unknown objective config.objectives.reinforced in .*; did you mean reinforce\?"),
        (
            "warm_start.objectives.bcd=1",
            r"unknown objective config.warm_start.objectives.bcd in .*; did you mean bce\?",
        ),
        ("warm_start.steps=5", r"config.warm_start.objectives .* one or more where warm_start.steps > 0"),
        ("objectives.nll=high", r"config.objectives.nll .* should be a weight or a section"),
        ("eval.methods=['ours','bm52']", r"unknown method 'bm52' in config.eval.methods .*; did you mean bm25\?"),
        ("eval.methods=ours,bm52", r"unknown method 'bm52' in config.eval.methods .*; did you mean bm25\?"),
        ("eval.methods=", r"unknown method '' in config.eval.methods"),
        ("data.lengths=[64,32]", r"config.data.lengths .* should be ascending"),
        ("reader.lengths=[0]", r"config.reader.lengths .* should be ascending"),
        ("model.n_kv_heads=0", r"config.model.n_kv_heads .* should be above 0"),
        ("data.train_examples=0", r"config.data.train_examples .* should be above 0 or None"),
        ("train=3", r"config.train .* should be a section, not 3"),
        ("parallel.shard_params=true", r"config.parallel.shard_params .* unless parallel.mode is .mesh"),
        ("seed.a=1", r"config.seed .* should be int"),
        (
            "budget.keep_tokens=64",
            r"config.budget.keep_tokens in the flag .* is \[64\] and config.budget.keep_rates in .*run",
        ),
        ("budget.keep_tokens=[64,0]", r"config.budget.keep_tokens .* should be numbers above 0"),
        ("eval.keep_tokens=-1", r"config.eval.keep_tokens .* should be numbers above 0"),
        ("eval.keep_rates=[]", r"config.eval.keep_rates .* should be keep rates in"),
        ("budget.keep_rates=[]", r"config.budget.keep_rates .* should be keep rates in"),
        ("parallel.num_processes=2", r"config.parallel.coordinator .* should be .host:port. of process 0, not None"),
        ("parallel.coordinator=here", r"config.parallel.coordinator .* should be .host:port."),
        ("parallel.process_id=1", r"config.parallel.process_id .* below parallel.num_processes"),
        ("eval.samples=5", r"config.eval.decode .* should be above 0 where eval.samples > 1"),
        ("eval.top_p=0.", r"config.eval.top_p .* should be in \(0, 1\]"),
        ("eval.reader=openai", r"config.eval.endpoint.base_url .* should be an address such as .http"),
        ("reward.reader=openai", r"config.reward.endpoint.base_url .* should be an address such as .http"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(path, flag, message):
    with pytest.raises(UserError, match=message):
        load_config(path, [f"--config.{flag}"])


def test_advantages_are_normalised_only_beside_the_mean_of_the_same_draws(path):
    flags = ["--config.objectives.ppo=1", "--config.policy.normalise=true"]
    assert load_config(path, flags).policy.normalise
    with pytest.raises(UserError, match=r"config.policy.normalise in the flag .* should be false but with .*leave_one"):
        load_config(path, [*flags, "--config.policy.baseline=moving_average"])


def test_a_wrong_key_in_the_file_names_the_file(path):
    path.write_text(FILE.replace('"steps": 300', '"stesp": 300'))
    with pytest.raises(
        UserError, match=r"unknown config key config.train.stesp in .*run.py; did you mean .*train.steps"
    ):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n  pass", r"run.py, line 1: "),
        ("x = 1", r"run.py has no function get_config"),
        ("def get_config():\n  return {}", r"it takes no variant"),
    ],
)
def test_a_file_that_is_no_config(path, text, message):
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(f"{path}:rl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no config file .*/nothing.py"):
        load_config(tmp_path / "nothing.py")


def test_json_there_and_back(path):
    config = load_config(path)
    assert from_dict(to_dict(config)) == config


@dataclass(frozen=True)
class Task:
    sentences: int = 16
    hops: tuple[int, ...] = (1,)


def test_a_task_fills_its_own_section(path):
    config = load_config(path, ["--config.task.sentences=8"])
    assert fill(Task, config.task.fields, "config.task") == Task(8, (1, 2))
    with pytest.raises(UserError, match=r"unknown config key config.task.hop; did you mean config.task.hops\?"):
        fill(Task, {"hop": 1}, "config.task")


def test_the_fingerprint_holds_what_decides_the_numbers(path):
    base = load_config(path)
    for same in ("train.steps=999", "train.log_every=1", "eval.examples=3", "parallel.devices=2", "model.remat=true"):
        assert fingerprint(load_config(path, [same])) == fingerprint(base)
    for other in ("seed=1", "optim.learning_rate=.5", "task.hops=1", "data.batch_size=2"):
        assert fingerprint(load_config(path, [other])) != fingerprint(base)


def test_a_run_keeps_its_config(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.json") == config
    save_config(replace(config, train=replace(config.train, steps=400, log_every=1)), tmp_path / "run")
    with pytest.raises(UserError, match=r"config.train.steps: 400 there, 300 now \(may only grow\)"):
        save_config(config, tmp_path / "run")
    other = load_config(path, ["train.steps=400", "task.hops=2", "objectives.entropy=1"])
    with pytest.raises(UserError) as error:
        save_config(other, tmp_path / "run")
    save_config(other, tmp_path / "empty")
    save_config(config, tmp_path / "empty", begun=False)
    assert load_config(tmp_path / "empty" / "config.json") == config
    assert "config.task.hops: [1, 2] there, 2 now" in str(error.value)
    assert "config.objectives.entropy.weight: '(not set)' there, 1.0 now" in str(error.value)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(path, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run" / "config.json.tmp").mkdir(parents=True)
    for name in ("file", "file/run", "run"):
        with pytest.raises(UserError, match=rf"--workdir={tmp_path}/{name}: the run's config cannot be written there"):
            save_config(load_config(path), tmp_path / name, begun=False)


def test_a_key_added_later_changes_no_fingerprint(path, monkeypatch):
    """What is hashed differs from the defaults; so a run from before the key goes on."""
    config = load_config(path)
    before = fingerprint(config)
    extended = lambda c: {**to_dict(c), "new": {"key": 1}}  # noqa: E731
    monkeypatch.setattr("rcp.config_file.to_dict", extended)
    assert fingerprint(config) == before


def test_stale_draws_are_refused(path):
    with pytest.raises(UserError, match=r"config.policy.updates .*use ppo, or policy.updates = 1\), not 2"):
        load_config(f"{path}:rl", ["policy.updates=2"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["budget.granularity=independent"], r"config.budget.granularity .*one of token, .* the objective .kl."),
        (["eval.draw=sample"], r"config.eval.draw .*.budget. unless budget.granularity is .independent., not 'sample'"),
        (["scorer.products=true"], r"config.scorer.products .*false but for the kind .linear."),
        (["scorer.groups=2"], r"config.scorer.groups .*1 but for the kind .linear."),
        (["scorer.kind=cot_influx", "scorer.budget=true"], r"config.scorer.budget .*false with the kind .cot_influx."),
        (["reward.window=0"], r"config.reward.window .*should be above 0"),
        (["data.repeats=0"], r"config.data.repeats .*should be above 0"),
        (["reward.kind=product"], r"config.reward.kind .*additive, cot_influx"),
    ],
)
def test_what_does_not_go_together_in_cot_influx_is_refused(path, flags, message):
    with pytest.raises(UserError, match=message):
        load_config(path, flags)


def test_tokens_take_the_place_of_rates(path):
    budget = load_config(path, ["budget.keep_tokens=64", "budget.keep_rates=[]"]).budget
    assert (budget.keep_tokens, budget.keep_rates) == ((64,), ())


def test_paths_are_saved_absolute(tmp_path, monkeypatch):
    """So that a run is evaluated from any folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "m.gguf").touch()
    monkeypatch.chdir(here)
    (here / "run.py").write_text(
        "def get_config():\n"
        "    return {'task': {'name': 'jsonl', 'path': 'a.jsonl', 'test_path': ''},"
        " 'reader': {'task': {'path': 'b.jsonl'}}, 'model': {'name': 'm.gguf'}, 'eviction': {'folder': 'traces'}}"
    )
    save_config(load_config("run.py", ["task.validation_path=data/c.jsonl"]), Path("run"))
    monkeypatch.chdir(there)
    config = load_config(here / "run" / "config.json")
    assert config.task.fields == {
        "path": str(here / "a.jsonl"),
        "test_path": "",
        "validation_path": str(here / "data" / "c.jsonl"),
    }
    assert config.reader.task == {"path": str(here / "b.jsonl")}
    assert config.model.name == str(here / "m.gguf")
    assert config.eviction.folder == str(here / "traces")
    assert load_config(None, ["eviction.folder=~/traces"]).eviction.folder == str(Path.home() / "traces")
    assert load_config(None, ["eviction.folder="]).eviction.folder == load_config(None).eviction.folder == ""
    save_config(config, here / "run")
    assert load_config(here / "run" / "config.json", ["model.name=owner/name"]).model.name == "owner/name"


def test_what_names_one_process_is_not_saved(path, tmp_path):
    flags = ["parallel.mode=mesh", "parallel.coordinator=localhost:1", "parallel.num_processes=2"]
    config = load_config(path, [*flags, "parallel.process_id=1"])
    save_config(config, tmp_path / "run", writing=False)
    assert not (tmp_path / "run").exists()
    save_config(config, tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.json").parallel == ParallelConfig(mode="mesh")


def test_the_granularities_are_those_of_the_pruner():
    assert typing.get_type_hints(BudgetConfig)["granularity"] == Granularity


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_the_repository_loads(file):
    load_config(file)


def test_reading_a_config_needs_no_jax(path):
    """So that the command line answers at once when a key is wrong."""
    code = f"import sys; from rcp.config_file import load_config; load_config({str(path)!r})"
    code += "; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
