"""Metrics of written answers against references. Each maps answers and references to statistics by row, from which it is computed.

A metric is two functions. `statistics` looks at every row once and gives float [n, k]; `combine` turns sums of such rows, float [b, k], into
b values. So a corpus metric such as BLEU is resampled as fast as a mean: the sums of a resample are one product with the counts of its rows.
All values lie between 0 and 1, higher is better; BLEU and chrF, which are usually printed times 100, as well.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np

from lightune.errors import InputError, MissingExtra, unknown

References = Sequence[Sequence[str]]  # the right answers of every row, at least one

SHORT = 5  # words: the median of references that are names, numbers and the like
MOST = 0.9  # share of the references that must look alike
_COMMANDS = (
    "apt awk basename bash bc bzip2 cal cat cd chgrp chmod chown cmp column comm cp cpio crontab curl cut date dd df diff dig dirname docker du "
    "echo egrep env eval exit export fgrep file find fold for free git grep groups gunzip gzip head history host hostname id ifconfig if join "
    "kill less let ln locate ls lsof md5sum mkdir mkfifo mktemp more mount mv nl nohup od paste perl pgrep ping pip pkill pr printf ps pwd "
    "python read readlink rename rev rm rmdir rsync screen scp sed seq set sh shopt shuf sleep sort source split ssh stat su sudo sum tac tail "
    "tar tee test time top touch tr tree true tty type umask uname uniq unset unzip uptime w watch wc wget which while who whoami xargs yes zip"
)
COMMANDS = frozenset(_COMMANDS.split())  # what begins most lines of a shell
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_HAN = re.compile("[぀-ヿ㐀-鿿豈-﫿]")
_FENCE = re.compile(r"^\s*```[^\n]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
_SHELL = re.compile(r"""\d*[<>][<>&|]*|(?:\\.|'[^']*'|"(?:\\.|[^"\\])*"|[^\s'"\\|&;<>()])+|[|&;()]+|['"\\]""", re.DOTALL)


@dataclass(frozen=True)
class TextMetric:
    """A metric in two steps, see the module; source: who defined it."""

    source: str
    statistics: Callable[[Sequence[str], References], np.ndarray]
    combine: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Judged:
    """A metric over all rows, its 95 % bootstrap interval, and its value of each row alone, float [n]."""

    value: float
    low: float
    high: float
    rows: np.ndarray


def score_answers(
    answers: Sequence[str], references: References, metrics: Sequence[str], *, resamples: int = 300, seed: int = 0
) -> dict[str, Judged]:
    """Every named metric of the answers, with the percentile interval over resampled rows (Efron 1979).

    Args:
        references: for each answer the texts that are right. A row counts as well as the best of them makes it, as its metric defines it.
        metrics: names in METRICS.

    Raises:
        InputError: an unknown metric, no rows, a row without a reference, or references that a metric cannot read.
    """
    if unknown_names := [name for name in metrics if name not in METRICS]:
        raise unknown("metric", unknown_names[0], METRICS)
    if not answers or len(answers) != len(references) or not all(references):
        empty = sum(not row for row in references)
        raise InputError(
            f"Got {len(answers)} answers, {len(references)} rows of references and {empty} rows without any; "
            "expected at least one answer, and as many rows with a reference or more each."
        )
    draw, count = np.random.default_rng(seed), len(answers)
    times = np.stack([np.bincount(draw.integers(0, count, count), minlength=count) for _ in range(resamples)]) if resamples else None
    return {name: _judge(METRICS[name], answers, references, times) for name in metrics}


def _judge(metric: TextMetric, answers: Sequence[str], references: References, times: np.ndarray | None) -> Judged:
    """times: int [resamples, n], how often each resample holds each row."""
    table = metric.statistics(answers, references)
    value = float(metric.combine(table.sum(0, keepdims=True))[0])
    low, high = (value, value) if times is None or len(answers) < 2 else np.quantile(metric.combine(times @ table), (0.025, 0.975))
    return Judged(value, float(low), float(high), metric.combine(table))


def group_references(prompts: Sequence[Any], references: Sequence[str]) -> tuple[list[int], list[tuple[str, ...]]]:
    """Rows of equal prompts as one, with all their references (each once): the first row's number, and the references, of every prompt."""
    firsts: dict[Any, int] = {}
    found: dict[Any, dict[str, None]] = {}
    for row, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        firsts.setdefault(prompt, row)
        found.setdefault(prompt, {})[reference] = None
    return list(firsts.values()), [tuple(row) for row in found.values()]


def choose_metrics(references: References) -> tuple[str, ...]:
    """Metrics that suit the references, the one that matters most first.

    Worked answers that end in ``#### 18``: the number. Shell commands: the same command. A few words: the same answer, by token F1 too.
    Longer texts: BLEU where there are several references a row, else ROUGE. Chinese and Japanese: BLEU of characters, chrF.
    """
    texts = [text for row in references for text in row]
    if not texts:
        raise InputError("There are no references to choose metrics by, expected at least one.")
    if _share(texts, lambda text: "####" in text and find_number(text) is not None) > MOST:
        return "gsm8k", "exact_match"
    if _share(texts, lambda text: bool(_HAN.search(text))) > 0.5:
        return ("exact_match", "chrf") if np.median([len(text) for text in texts]) <= 2 * SHORT else ("bleu_zh", "chrf")
    if _share(texts, _is_command) > MOST:
        return "command_match", "exact_match", "chrf", "token_f1"
    if np.median([len(text.split()) for text in texts]) <= SHORT:
        return "normalized_match", "exact_match", "token_f1"
    several = np.mean([len(row) for row in references]) > 1.5
    return ("bleu", "chrf", "rougeL", "rouge1", "rouge2") if several else ("rougeL", "rouge1", "rouge2", "bleu", "chrf")


def _share(texts: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, texts)) / len(texts)


def _is_command(text: str) -> bool:
    words = text.split(maxsplit=1)
    return bool(words) and words[0].lstrip("$(").rpartition("/")[2] in COMMANDS and not text.rstrip().endswith(".")


def normalize(text: str) -> str:
    """Lower case, without punctuation and articles, one blank between words: SQuAD's normalisation (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same text, blanks around them aside."""
    return float(answer.strip() == reference.strip())


def normalized_match(answer: str, reference: str) -> float:
    """1 where both are the same after `normalize` (SQuAD's exact match)."""
    return float(normalize(answer) == normalize(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words left by `normalize`, each as often as it occurs (Rajpurkar et al. 2016)."""
    said, right = normalize(answer).split(), normalize(reference).split()
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


def find_number(text: str) -> Decimal | None:
    """The number after the last ``####``, else the last number of a text; 1,000.0 is 1000."""
    _, marked, after = text.rpartition("####")
    numbers = _NUMBER.findall(after)
    return Decimal((numbers[0] if marked else numbers[-1]).replace(",", "")) if numbers else None


def number_match(answer: str, reference: str) -> float:
    """1 where the final numbers of both are equal (Cobbe et al. 2021: the solution after ``####``)."""
    right = find_number(reference)
    if right is None:
        raise InputError(
            f"The reference {reference[-80:]!r} has no number, expected one such as '#### 18'. Choose another metric than gsm8k."
        )
    return float(find_number(answer) == right)


def command_match(answer: str, reference: str) -> float:
    """1 where both are the same shell command, word by word with their quotes (full-command accuracy, Lin et al. 2018).

    Blanks outside of quotes, a code fence and a leading ``$`` do not count.
    """
    return float(_shell_words(answer) == _shell_words(reference))


def _shell_words(text: str) -> list[str]:
    fence = _FENCE.match(text)
    return _SHELL.findall((fence.group(1) if fence else text).strip().removeprefix("$ "))


def _mean_of(score: Callable[[str, str], float], source: str) -> TextMetric:
    """The mean over rows of the best score among a row's references."""

    def statistics(answers: Sequence[str], references: References) -> np.ndarray:
        return _means([max(score(answer, right) for right in row) for answer, row in zip(answers, references, strict=True)])

    return TextMetric(source, statistics, _mean)


def _means(values: Sequence[float]) -> np.ndarray:
    return np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _rouge(kind: str, answers: Sequence[str], references: References) -> np.ndarray:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtra("ROUGE", "rouge-score", "metrics") from None
    if _share([text for row in references for text in row], lambda text: bool(re.search("[a-z0-9]", text.lower()))) < 0.5:
        raise InputError("ROUGE reads the letters a to z and digits alone, which most references lack. Choose chrf or bleu_zh.")
    scorer = RougeScorer([kind], use_stemmer=True)
    return _means([scorer.score_multi(row, answer)[kind].fmeasure for answer, row in zip(answers, references, strict=True)])


def _sacrebleu(kind: str, **options: Any) -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise MissingExtra("BLEU and chrF", "sacrebleu", "metrics") from None
    return getattr(metrics, kind)(**options)


def _corpus_metric(source: str, kind: str, **options: Any) -> TextMetric:
    """A metric of sacrebleu by its own statistics, which it computes its significance tests from too."""

    def statistics(answers: Sequence[str], references: References) -> np.ndarray:
        most = max(map(len, references))
        streams = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
        return np.asarray(_sacrebleu(kind, **options)._extract_corpus_statistics(list(answers), streams), float)

    def combine(sums: np.ndarray) -> np.ndarray:
        metric = _sacrebleu(kind, **options)
        return np.array([metric._compute_score_from_stats(row).score / 100 for row in sums.tolist()])

    return TextMetric(source, statistics, combine)


METRICS: dict[str, TextMetric] = {
    "exact_match": _mean_of(exact_match, "the same text"),
    "normalized_match": _mean_of(normalized_match, "SQuAD's exact match (Rajpurkar et al. 2016)"),
    "token_f1": _mean_of(token_f1, "SQuAD's F1 (Rajpurkar et al. 2016)"),
    "gsm8k": _mean_of(number_match, "the final number (Cobbe et al. 2021)"),
    "command_match": _mean_of(command_match, "full-command accuracy (Lin et al. 2018)"),
    "bleu": _corpus_metric("sacrebleu's BLEU, 13a (Papineni et al. 2002, Post 2018)", "BLEU", force=True),
    "bleu_zh": _corpus_metric("sacrebleu's BLEU of Chinese characters", "BLEU", tokenize="zh", force=True),
    "chrf": _corpus_metric("sacrebleu's chrF2 (Popović 2015)", "CHRF"),
    **{kind: TextMetric(f"{kind} F1 with stemming (Lin 2004)", partial(_rouge, kind), _mean) for kind in ("rouge1", "rouge2", "rougeL")},
}
