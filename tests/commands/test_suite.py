"""Suites of lm-eval tasks: the numbers equal those made by hand, task files are data, mistakes are told."""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain import cli
from posttrain.commands.suite import SuiteOptions, evaluate_suite, model_block, read_suite, run_suite, suite_drift
from posttrain.errors import ConfigError, DataError, PosttrainError, SupportError
from posttrain.evaluation.results import mean_and_stderr

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "tests" / "commands" / "tasks"
SUMS = SuiteOptions(tasks=str(TASKS / "sums.yaml"))


@pytest.fixture(autouse=True)
def _from_the_repository(monkeypatch: pytest.MonkeyPatch):
    """The tasks' data files are named from there. No pytest handler sees lm-eval's many warnings."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.getLogger("lm_eval"), "level", logging.ERROR)


@pytest.fixture
def model(tiny_dir: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_dir).eval()


@torch.no_grad()
def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Sum of the log-probabilities of the continuation's tokens, one row, no padding."""
    head = tokenizer(context, add_special_tokens=False)["input_ids"]
    ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logps[place - 1, ids[place]].item() for place in range(len(head), len(ids)))


@torch.no_grad()
def greedy(model, tokenizer, prompt: str, count: int) -> str:
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    made: list[int] = []
    while len(made) < count and (not made or made[-1] != tokenizer.eos_token_id):
        made.append(model(torch.tensor([ids + made])).logits[0, -1].argmax().item())
    return tokenizer.decode(made, skip_special_tokens=True).split("\n")[0]


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (TASKS / name).read_text().splitlines()]


def task_file(folder: Path, text: str, *, name: str = "own", rows: list[dict] | None = None) -> Path:
    """A generation task; `text` is added to it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows or [{"question": "say a", "answer": "a"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        f"task: {name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}",
        "output_type: generate_until",
        "test_split: test",
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 6}",
    ]
    if "doc_to_text" not in text:
        lines += ["doc_to_text: '{{question}}'"]
    if "doc_to_target" not in text:
        lines += ["doc_to_target: '{{answer}}'"]
    if "metric_list" not in text:
        lines += ["metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([*lines, text]) + "\n")
    return path


# ---- the numbers ----


def test_choices_are_scored_by_the_models_own_log_probabilities(model, tiny_tokenizer):
    result = run_suite(model, tiny_tokenizer, options=SUMS)
    right, right_by_length = [], []
    for row, document in zip(rows_of("sums.jsonl"), result.documents["local_sums"], strict=True):
        context = f"Question: {row['question']}\nAnswer:"
        found = [log_likelihood(model, tiny_tokenizer, context, f" {choice}") for choice in row["choices"]]
        assert [value for value, _ in document["responses"]] == pytest.approx(found, rel=1e-4)
        right.append(float(found.index(max(found)) == row["gold"]))
        by_length = [value / len(choice) for value, choice in zip(found, row["choices"], strict=True)]
        right_by_length.append(float(by_length.index(max(by_length)) == row["gold"]))
        assert document["prompt"] == context
    score = result.tasks["local_sums"]
    for key, values in (("acc,none", right), ("acc_norm,none", right_by_length)):
        mean, stderr = mean_and_stderr(values)
        assert (score.metrics[key].value, score.metrics[key].stderr) == (mean, pytest.approx(stderr))
    assert (score.num_documents, score.num_available, score.num_shots, score.version) == (5, 5, 0, "1.5")
    assert score.metrics["acc,none"].higher_is_better is True


def test_generated_answers_are_greedy_and_end_where_the_task_says(model, tiny_tokenizer, tmp_path):
    prompts = ["say a", "say b", "longer than the others: c"]
    texts = [greedy(model, tiny_tokenizer, prompt, 6) for prompt in prompts]
    rows = [
        {"question": prompt, "answer": text if place != 1 else text + "!"}
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    result = run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks=str(task_file(tmp_path, "", rows=rows))))
    assert [document["responses"] for document in result.documents["own"]] == [[text] for text in texts]
    metric = result.tasks["own"].metrics["exact_match,none"]
    assert (metric.value, metric.stderr) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_the_result_repeats_itself_and_does_not_depend_on_the_batch(model, tiny_tokenizer):
    options = SuiteOptions(tasks=str(TASKS))
    first, again = run_suite(model, tiny_tokenizer, options=options), run_suite(model, tiny_tokenizer, options=options)
    assert sorted(first.tasks) == ["local_echo", "local_sums"] and first == again
    assert run_suite(model, tiny_tokenizer, options=replace(options, batch_size=1)).tasks == first.tasks


def test_a_limit_takes_the_first_documents(model, tiny_tokenizer):
    result = run_suite(model, tiny_tokenizer, options=replace(SUMS, limit=2))
    score = result.tasks["local_sums"]
    assert (score.num_documents, score.num_available) == (2, 5)
    assert [document["doc_id"] for document in result.documents["local_sums"]] == [0, 1]


def test_questions_can_be_asked_as_chat_messages(model, tiny_tokenizer):
    result = run_suite(model, tiny_tokenizer, options=replace(SUMS, apply_chat_template=True))
    text = "<|im_start|>user\nQuestion: 2+3=?\nAnswer:<|im_end|><|im_start|>assistant\n"
    document = result.documents["local_sums"][0]
    assert document["prompt"] == text
    # lm-eval leaves the delimiter before a choice out here, and counts a line end of the context to the choice.
    by_hand = log_likelihood(model, tiny_tokenizer, text.rstrip(), "\n5")
    assert document["responses"][0][0] == pytest.approx(by_hand, rel=1e-4)


# ---- the verb, its files, and the drift ----


def run_verb(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["posttrain", "eval", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_verb_writes_the_result_and_sets_it_against_an_earlier_one(
    tiny_dir, tmp_path, model, tiny_tokenizer, monkeypatch, capsys
):
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    before, after = tmp_path / "before", tmp_path / "after"
    assert run_verb(monkeypatch, capsys, tiny_dir, "--suite", TASKS, "--output", before)[0] == 0
    code, shown, _ = run_verb(
        monkeypatch, capsys, tmp_path / "other", "--suite", TASKS, "--output", after, "--against", before
    )
    assert code == 0 and "local_sums" in shown and f"against {before}" in shown and f"{after}/REPORT.md" in shown
    record, report = json.loads((after / "run.json").read_text()), (after / "REPORT.md").read_text()
    assert record["kind"] == "evaluation" and list(record["model"]["files"]) == ["model.safetensors"]
    assert record["versions"]["lm_eval"] == "0.4.13" and "## Against" in report and "acc&#95;norm,none" in report
    drift = {(item.task, item.metric): item for item in suite_drift(read_suite(before), read_suite(after))}
    # By hand, document by document.
    old, new = ([d["values"]["acc,none"] for d in read_suite(f).documents["local_sums"]] for f in (before, after))
    mean, stderr = mean_and_stderr([b - a for a, b in zip(old, new, strict=True)])
    item = drift["local_sums", "acc,none"]
    assert (item.difference, item.stderr, item.num_documents) == (mean, stderr, 5) and item.note is None
    assert item.after - item.before == pytest.approx(mean)


def test_an_adapter_is_run_beside_its_base(tiny_dir, tmp_path, model, monkeypatch, capsys):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    plain, adapted = (
        evaluate_suite(str(place), options=SUMS, output=tmp_path / name, overrides=["model.dtype=float32"])
        for place, name in ((tiny_dir, "plain"), (tmp_path / "adapter", "adapted"))
    )
    first, second = (result.documents["local_sums"][0]["responses"][0][0] for result in (plain, adapted))
    assert math.isfinite(second) and abs(first - second) > 0.1


def test_a_changed_task_is_another_evaluation(tiny_dir, tmp_path, monkeypatch):
    folder, output = tmp_path / "suite", tmp_path / "out"
    file = task_file(folder, "include: shared\ndoc_to_text: !function helper.text")
    (folder / "shared").write_text("description: first\n")
    (folder / "helper.py").write_text("def text(doc):\n    return doc['question']\n")
    (folder / "g.yaml").write_text("group: g\ntask: [own]\n")
    options = SuiteOptions(tasks=str(folder / "g.yaml"), include=str(folder))
    evaluate_suite(str(tiny_dir), options=options, output=output)
    evaluate_suite(str(tiny_dir), options=options, output=output)
    changes = {"own.yaml": "target_delimiter: ':'\n", "shared": "x: y\n", "helper.py": "# new\n", "rows.jsonl": "\n"}
    for name, text in changes.items():
        before = (folder / name).read_text()
        (folder / name).write_text(before + text)
        with pytest.raises(ConfigError, match="another evaluation is in this folder"):
            evaluate_suite(str(tiny_dir), options=options, output=output)
        (folder / name).write_text(before)
    assert file.exists()
    monkeypatch.setattr("posttrain.commands.suite.version", lambda name: "9.9")
    with pytest.raises(ConfigError, match="another evaluation is in this folder"):
        evaluate_suite(str(tiny_dir), options=options, output=output)


# ---- tasks are data unless the user says otherwise ----

CODE = {
    "a function": ("doc_to_text: !function helper.text", "the tag !function"),
    "a function under another tag": ("doc_to_text: !<!function> helper.text", "the tag !function"),
    "a python object": ("description: !!python/object/apply:os.system ['true']", "the tag tag:yaml.org,2002:python"),
    "a class": ("class: helper.Task", "the key 'class'"),
    "unsafe code": ("unsafe_code: true", "the key 'unsafe_code'"),
    "a prompt file": ("use_prompt: 'local:helper.yaml:*'", "the key 'use_prompt'"),
    "a metric's script": ("metric_list: [{metric: ./helper.py}]", r"the metric './helper.py'"),
    "a fetched metric": ("metric_list: [{metric: acc, hf_evaluate: true}]", "the key 'hf_evaluate'"),
    "a file elsewhere": ("include: ../outside.yaml", "the file .*lies outside"),
}


@pytest.mark.parametrize("kind", CODE)
def test_code_in_a_task_file_is_refused_and_not_run(kind, model, tiny_tokenizer, tmp_path):
    text, told = CODE[kind]
    folder = tmp_path / "suite"
    file = task_file(folder, text)
    (folder / "helper.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ntext = Task = str\n")
    (tmp_path / "outside.yaml").write_text("doc_to_text: !function suite.helper.text\n")
    for place in (file, folder):
        with pytest.raises(SupportError, match=f"names code to run: {told}.*--include"):
            run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks=str(place)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "asking", ["group: g\ntask: [evil]", "group: g\ntask: [{task: evil}]", "group: g\ntask: [family]"]
)
def test_code_in_a_task_that_a_group_names_is_refused_and_not_run(asking, model, tiny_tokenizer, tmp_path):
    folder = tmp_path / "suite"
    task_file(folder / "deeper", "tag: family\ndoc_to_text: !function helper.text", name="evil")
    (folder / "deeper" / "helper.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ntext = str\n")
    (folder / "g.yaml").write_text(asking + "\n")
    with pytest.raises(SupportError, match=r"evil\.yaml:\d+: the task file names code to run: the tag !function"):
        run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks=str(folder / "g.yaml")))
    assert not (tmp_path / "ran").exists()


def test_an_included_file_is_looked_into(model, tiny_tokenizer, tmp_path):
    (tmp_path / "shared").write_text("doc_to_text: !function helper.text\n")
    file = task_file(tmp_path, "include: shared")
    with pytest.raises(SupportError, match="shared:1: the task file names code to run"):
        run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks=str(file)))


def test_a_template_cannot_leave_the_sandbox(model, tiny_tokenizer, tmp_path):
    escape = "{{ question['__cl' ~ 'ass__']['__mro__'][1]['__subcl' ~ 'asses__']() }}"
    file = task_file(tmp_path, f'doc_to_text: "{escape}"')
    with pytest.raises(DataError, match="SecurityError"):
        run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks=str(file)))


def test_code_in_an_included_folder_runs(model, tiny_tokenizer, tmp_path):
    file = task_file(tmp_path, "doc_to_text: !function helper.text")
    (tmp_path / "helper.py").write_text("def text(doc):\n    return 'asked: ' + doc['question']\n")
    for tasks in ("own", str(file)):
        result = run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks=tasks, include=str(tmp_path)))
        assert result.documents["own"][0]["prompt"] == "asked: say a"


def test_output_is_not_run_as_code(model, tiny_tokenizer, tmp_path):
    task_file(tmp_path, "unsafe_code: true")
    with pytest.raises(SupportError, match="runs the model's output as code"):
        run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks="own", include=str(tmp_path)))


# ---- mistakes ----


def test_an_unknown_task_is_told_with_the_nearest(tiny_dir, monkeypatch, capsys):
    code, _, errors = run_verb(monkeypatch, capsys, tiny_dir, "--suite", "local_sum", "--include", TASKS)
    assert code == 2 and "--suite: unknown task (got 'local_sum'" in errors
    assert "Perhaps you mean 'local_sums'" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": "./gone"}, "no such file or folder"),
        ({"tasks": "gone.yaml"}, "no such file or folder"),
        ({"tasks": "posttrain/evaluation"}, "no task here"),
        ({"tasks": "local_sums", "include": "gone"}, "--include: no such folder"),
    ],
)
def test_wrong_places_are_told(changes, told, model, tiny_tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=told):
        run_suite(model, tiny_tokenizer, options=SuiteOptions(**changes))


def test_missing_data_is_told_without_a_traceback(model, tiny_tokenizer, tmp_path):
    file = task_file(tmp_path, "")
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"own\.yaml: lm-eval cannot run the tasks: FileNotFoundError"):
        run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks=str(file)))


def test_a_template_that_names_no_column_is_told(model, tiny_tokenizer, tmp_path):
    file = task_file(tmp_path, "doc_to_text: '{{questoin}}'")
    with pytest.raises(DataError, match="UndefinedError: 'questoin' is undefined"):
        run_suite(model, tiny_tokenizer, options=SuiteOptions(tasks=str(file)))


def test_without_a_chat_template_none_can_be_applied(model, tiny_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        run_suite(model, tokenizer, options=replace(SUMS, apply_chat_template=True))


def test_a_missing_package_is_told_with_the_line_that_installs_it(tiny_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SupportError, match=r"pip install 'posttrain\[eval\]'"):
        evaluate_suite(str(tiny_dir), options=SUMS)


def test_several_processes_are_refused(tiny_dir, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SupportError, match="a suite runs in one process .*without accelerate launch"):
        evaluate_suite(str(tiny_dir), options=SUMS)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("eval.temperature=1", "not an option of a suite"),
        ("model.path=x", "allowed: with --suite: model.dtype"),
        ("model.dtype=fp32", "model.dtype"),
        ("model.dtype", "not an option of a suite"),
    ],
)
def test_overrides_are_those_of_the_model(override: str, told: str):
    with pytest.raises(PosttrainError, match=told):
        model_block([override])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--suite", "a", "--recipe", "b.yaml"],
        ["--recipe", "b.yaml", "--limit", "3"],
        ["--recipe", "b.yaml", "--seed", "0"],
        ["--recipe", "b.yaml", "--apply-chat-template"],
        ["--suite", "a", "--stage", "b"],
    ],
)
def test_options_of_the_other_kind_are_refused(arguments, tiny_dir, monkeypatch, capsys):
    code, _, errors = run_verb(monkeypatch, capsys, tiny_dir, *arguments)
    assert code == 2 and "Error" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_the_tasks_that_come_with_lm_eval_are_known(model, tiny_tokenizer):
    """Reads all their files, half a minute; their data are on the Hub and not asked for here."""
    from posttrain.commands.suite_tasks import find_tasks

    assert find_tasks("arc_easy,hellaswag").names == ["arc_easy", "hellaswag"]
    with pytest.raises(ConfigError, match="Perhaps you mean 'hellaswag'"):
        find_tasks("helaswag")
