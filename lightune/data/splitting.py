"""`split`: train, dev and test parts, stratified, reproducible, with the same text never on two sides."""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lightune.data.examples import Examples, fingerprint, labels_of
from lightune.data.kin import can_seek, find_kin
from lightune.errors import InputError

BINS = 10  # quantiles of the target, fewer where a quantile would have fewer texts than this, from which each part gets its share
Groups = list[list[int]]  # positions of the examples that stay together


@dataclass(frozen=True)
class Splits:
    """The labelled examples in parts (dev and test are None where none were asked for), the unlabelled ones apart, and what to tell."""

    train: Examples
    dev: Examples | None
    test: Examples | None
    unlabelled: Examples
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Examples]:
        """The parts that are there, in order."""
        return {name: part for name, part in (("train", self.train), ("dev", self.dev), ("test", self.test)) if part is not None}


def split(examples: Examples, *, dev: Examples | float | None = 0.1, test: Examples | float | None = 0.1, seed: int = 0) -> Splits:
    """Divide labelled examples into train, dev and test.

    dev, test: a share of the rows, examples that are given, or None (or 0) for no such part.
    Each part holds each label in nearly the same share (to regress: each tenth of the values; multilabel: by a row's rarest label), and
    every label stays in train. Rows with the same text and pair, but for case, blanks and how accents are written, stay together, and so
    does a text with one that quotes it whole (see `find_kin`). The same seed gives the same parts. Unlabelled rows are set apart and counted.

    Raises:
        InputError: shares that leave no train rows, or fewer different texts than parts.
    """
    shares = {name: share for name, share in (("dev", dev), ("test", test)) if isinstance(share, (int, float)) and share}
    check_shares(shares)
    targets, groups = _survey(examples)
    labelled = [index for index, target in enumerate(targets) if target is not None]
    unlabelled = [index for index, target in enumerate(targets) if target is None]
    if len(groups) <= len(shares):
        raise InputError(
            f"{examples.source} has {len(groups)} different labelled texts, too few for {len(shares) + 1} parts. Give more rows."
        )
    repeated, texts = len(labelled) - len(groups), len(groups)
    groups = _join_kin(examples, groups) if shares else groups
    chosen = allocate(_strata(targets, groups, examples.columns.task), shares, random.Random(seed))
    if examples.columns.task != "regress":
        _return_unknown(chosen, targets, groups)
    places = {name: sorted(index for group in taken for index in group) for name, taken in chosen.items()}
    held = set().union(*places.values())
    cut = {name: examples.take(indices) for name, indices in places.items()}
    given = {name: _labelled(part) for name, part in (("dev", dev), ("test", test)) if isinstance(part, Examples)}
    found = {"train": examples.take([index for index in labelled if index not in held]), **cut, **given}
    facts = _facts(found, shares, seed, {"repeated": repeated, "kin": texts - len(groups), "unlabelled": len(unlabelled)})
    return Splits(found["train"], found.get("dev"), found.get("test"), examples.take(unlabelled), facts)


def check_shares(shares: dict[str, float]) -> None:
    """Raise an InputError for shares that are none, or that leave nothing to train on."""
    wrong = [f"{name} is {share!r}, expected a share between 0 and 1" for name, share in shares.items() if not 0 < share < 1]
    if not wrong and sum(shares.values()) >= 1:
        wrong = [f"dev and test together are {sum(shares.values()):g} of the rows, expected less than 1, so that rows are left to train on"]
    if wrong:
        raise InputError("; ".join(wrong) + ".")


def _labelled(part: Examples) -> Examples:
    indices = [index for index, example in enumerate(part) if example.target is not None]
    return part if len(indices) == len(part) else part.take(indices)


def _survey(examples: Examples) -> tuple[list[Any], Groups]:
    """The target of every example, and the labelled ones by their text."""
    targets: list[Any] = []
    groups: dict[bytes, list[int]] = {}
    for index, example in enumerate(examples):
        targets.append(example.target)
        if example.target is not None:
            groups.setdefault(fingerprint(example), []).append(index)
    return targets, list(groups.values())


def _join_kin(examples: Examples, groups: Groups) -> Groups:
    """Groups of the same text, put together where one is quoted in another; pairs share texts by nature and are left as they are."""
    if examples.columns.pair or not can_seek(len(groups)):  # texts may lie on disk: read those alone that are looked at
        return groups
    families = find_kin([examples[group[0]].text for group in groups])
    return [sorted(index for place in family for index in groups[place]) for family in families]


def _strata(targets: Sequence[Any], groups: Groups, task: str) -> dict[Any, Groups]:
    """The groups by what must be spread evenly: their label, their rarest label, or the tenth in which their value lies."""
    strata: dict[Any, Groups] = {}
    if task == "regress":
        values = [fmean(targets[index] for index in group) for group in groups]
        ordered = sorted(values)
        bins = min(BINS, max(1, len(groups) // BINS))
        edges = [ordered[len(ordered) * bin // bins] for bin in range(1, bins)]
        for group, value in zip(groups, values, strict=True):
            strata.setdefault(bisect.bisect_right(edges, value), []).append(group)
        return strata
    several = task == "multilabel"
    counts = Counter(label for group in groups for label in (targets[group[0]] if several else (targets[group[0]],)))
    for group in groups:
        first = targets[group[0]]
        rarest = min(first, key=lambda label: (counts[label], label), default="") if several else first
        strata.setdefault(rarest, []).append(group)
    return strata


def allocate(strata: dict[Any, Groups], shares: dict[str, float], chance: random.Random) -> dict[str, Groups]:
    """Take each part's share out of each stratum; what a stratum rounds off is owed to the next, so that the totals hold."""
    chosen: dict[str, Groups] = {name: [] for name in shares}
    owed = dict.fromkeys(shares, 0.0)
    for stratum in sorted(strata):
        groups = strata[stratum]
        chance.shuffle(groups)
        rows = sum(map(len, groups))
        for name, share in shares.items():
            quota = share * rows + owed[name]
            taken = _take(groups, quota)
            chosen[name] += taken
            owed[name] = min(max(quota - sum(map(len, taken)), -0.5), 1.0)
    for name, taken in chosen.items():
        largest = max(strata.values(), key=len)
        if not taken and len(largest) < 2:
            raise InputError(
                f"There is nothing to put into {name}: no label is left with two different texts. Give more rows for each label."
            )
        if not taken:
            taken.append(largest.pop())
    return chosen


def _take(groups: Groups, quota: float) -> Groups:
    """Remove and return groups until the quota of rows is met as nearly as whole groups allow; one group always stays."""
    taken: Groups = []
    kept: Groups = []
    rows = 0
    for index, group in enumerate(groups):
        last = index == len(groups) - 1 and not kept
        if last or rows + len(group) / 2 > quota:
            kept.append(group)
        else:
            taken.append(group)
            rows += len(group)
    groups[:] = kept
    return taken


def _return_unknown(chosen: dict[str, Groups], targets: Sequence[Any], groups: Groups) -> None:
    """Give back to train the groups with a label that no train row has: a row's other labels, or another row's label in its group."""

    def labels(group: list[int]) -> set[str]:
        return {label for index in group for label in (targets[index] if isinstance(targets[index], tuple) else (targets[index],))}

    held = {group[0] for taken in chosen.values() for group in taken}
    known = set().union(*(labels(group) for group in groups if group[0] not in held))
    for taken in chosen.values():
        for group in list(taken):
            if not labels(group) <= known:
                taken.remove(group)
                known |= labels(group)


def _facts(found: dict[str, Examples], shares: dict[str, float], seed: int, counts: dict[str, int]) -> dict[str, Any]:
    rows = {name: len(part) for name, part in found.items()}
    told = ["Parts: " + ", ".join(f"{name} {count:,} rows" for name, count in rows.items()) + (f" (seed {seed})." if shares else ".")]
    if counts["repeated"] and shares:
        told.append(f"{counts['repeated']:,} rows repeat another row's text and were kept on its side.")
    if counts["kin"]:
        told.append(f"{counts['kin']:,} texts are quoted in others, or quote them, and were kept on their side.")
    if counts["unlabelled"]:
        told.append(f"{counts['unlabelled']:,} rows without a label were set apart.")
    warnings = _rare(found) if found["train"].columns.task != "regress" else []
    return {
        "seed": seed,
        "shares": shares,
        "rows": rows,
        **counts,
        "told": told,
        "warnings": warnings,
    }


def _rare(found: dict[str, Examples]) -> list[str]:
    """A sentence for every part that lacks labels which another part has."""
    counts = {name: Counter(label for example in part for label in labels_of(example)) for name, part in found.items()}
    total = sum(counts.values(), Counter())
    sentences = []
    for name, own in counts.items():
        lacking = sorted((label for label in total if label not in own), key=lambda label: (total[label], label))
        if lacking:
            shown = ", ".join(f"{label!r} ({total[label]} rows)" for label in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            sentences.append(f"{len(lacking)} labels are too rare to be in {name}: {shown}.")
    return sentences
