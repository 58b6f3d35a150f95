from __future__ import annotations

import json
import math
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bigrams import END, BigramGenerator

from lightune.errors import InputError, MissingExtra
from lightune.harness import as_harness_model, read_options

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of lm_eval's own imports
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

LIKELY = {":": " ", " ": "a", "a": "b", "b": END}


def request(kind: str, *arguments: Any) -> Any:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def chance(generator: BigramGenerator, text: str) -> float:
    ids = generator.encode(text)
    return math.prod(generator.table[before, after] for before, after in pairwise(ids))


def test_loglikelihood_is_the_tables_and_greedy_is_what_it_would_write() -> None:
    generator = BigramGenerator(LIKELY, seed=1)
    model = as_harness_model(generator, prefix=END)
    best = generator.tokens[int(generator.table[generator.ids["x"]].argmax())]  # below one half: it has to be generated
    asked = [("q:", " ab"), ("q:", " ba"), ("x", best), ("", "ab"), ("q: ", "ab")]
    found = model.loglikelihood([request("loglikelihood", *pair) for pair in asked])
    assert [greedy for _, greedy in found] == [True, False, True, False, True]
    assert [value for value, _ in found[:2]] == pytest.approx(
        [math.log(chance(generator, f":{rest}")) for rest in (" ab", " ba")], rel=1e-5
    )
    assert found[4][0] == found[0][0]  # a blank at the seam belongs to the continuation
    assert found[3][0] == pytest.approx(math.log(chance(generator, f"{END}ab")), rel=1e-5)


def test_rolling_loglikelihood_scores_every_token_once() -> None:
    generator = BigramGenerator(seed=2, max_length=10)
    text = "a text that is longer than ten"
    found = as_harness_model(generator, prefix=END).loglikelihood_rolling([request("loglikelihood_rolling", text)])
    assert found == pytest.approx([math.log(chance(generator, END + text))], rel=1e-5)
    with pytest.raises(InputError, match="give the token that stands before it"):
        as_harness_model(generator).loglikelihood_rolling([request("loglikelihood_rolling", text)])


def test_generation_stops_where_the_task_says_and_keeps_the_order() -> None:
    model = as_harness_model(BigramGenerator(LIKELY, seed=3))
    asked = [("q:", {"until": ["b"]}), ("q:", {"until": []}), ("q", {"until": ["b"], "max_gen_toks": 2}), ("q:", {"until": "b"})]
    made = model.generate_until([request("generate_until", *each) for each in asked])
    assert made[0] == made[3] == " a"
    assert made[1] == " ab"
    assert len(made[2]) == 2


def test_too_long_a_context_loses_its_left_and_is_counted() -> None:
    generator = BigramGenerator(seed=4, max_length=8)
    model = as_harness_model(generator)
    found = model.loglikelihood([request("loglikelihood", "a" * 20 + "x", "yz")])
    assert found[0][0] == pytest.approx(math.log(chance(generator, "xyz")), rel=1e-5)
    assert model.truncated_tokens == 15
    assert not found[0][1]


def test_a_conversation_goes_through_the_generators_template() -> None:
    generator = BigramGenerator(LIKELY, seed=5)
    model = as_harness_model(generator)
    text = model.apply_chat_template([{"role": "B", "content": "hello"}])
    assert model.generate_until([request("generate_until", text, {"until": []})]) == [" ab"]
    value, greedy = model.loglikelihood([request("loglikelihood", text, " ab")])[0]
    assert greedy
    assert value == pytest.approx(3 * math.log(0.6), rel=1e-5)
    with pytest.raises(InputError, match="gen_prefix"):
        model.apply_chat_template([], add_generation_prompt=False)


def test_options_are_read_or_refused() -> None:
    options = read_options({"until": ["\n", ""], "max_gen_toks": 7, "do_sample": False, "temperature": 0.8})
    assert (options.stop, options.max_tokens, options.temperature) == (("\n",), 7, 0.0)
    assert read_options({"do_sample": True, "temperature": 0.5, "top_p": 0.9}).top_p == 0.9
    assert read_options({"temperature": 0.5}).temperature == 0.5
    with pytest.raises(InputError, match="num_beams"):
        read_options({"num_beams": 4})


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(MissingExtra, match=r"lightune\[harness\]"):
        as_harness_model(BigramGenerator())


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_runs_its_tasks_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = [
        {"question": "one", "choices": ["ab", "zq"], "gold": 0, "answer": "ab"},
        {"question": "two", "choices": ["ab", "zq"], "gold": 1, "answer": "zq"},
        {"question": "three", "choices": ["zq", "ab"], "gold": 1, "answer": "ab"},
        {"question": "ten", "choices": ["zq", "ab"], "gold": 1, "answer": "ab"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}, "test_split": "test"}
    common |= {"doc_to_text": "{{question}}?:", "metadata": {"version": 1}}
    choice = {"task": "tiny_choice", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
    writing = {"task": "tiny_writing", "output_type": "generate_until", "doc_to_target": "{{answer}}"}
    writing |= {
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    }
    writing |= {"filter_list": [{"name": "strip", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]}
    for task in (choice, writing):
        (tmp_path / f"{task['task']}.yaml").write_text(json.dumps(common | task))  # JSON is YAML
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=as_harness_model(BigramGenerator(LIKELY, seed=6)),
        tasks=["tiny_choice", "tiny_writing"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert found is not None
    assert found["results"]["tiny_choice"]["acc,none"] == 0.75
    assert found["results"]["tiny_writing"]["exact_match,strip"] == 0.75
